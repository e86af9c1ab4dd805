"""Bad input of every kind: a clear error, the same daemon, no neighbour notices, nothing stays."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import runc_pb2, types_pb2
from tests.system.taskclient import HOME, ROOTFS, spec_of

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Bundle, Rig

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("nobody_notices")]

UNKNOWN, INVALID, NOT_FOUND, EXISTS = 2, 3, 5, 6
MALFORMED = b"\xff\xff\xff\xff"


def _refuses(rig: Rig, made: Bundle, **fields: Any) -> tuple[int, str]:
    """The error of a Create; afterwards the id is free and no trace is left."""
    error = rig.refused("Create", id=made.id, **{"bundle": made.path, **fields})
    assert rig.refused("State", id=made.id)[0] == NOT_FOUND
    assert not rig.unit_exists(made.id)
    assert not list(rig.host.path("/run/sdshim/t/default").glob(f"{made.id}/*"))
    return error


# --- the bundle


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not valid JSON"),
        (b"\0\1\2 garbage \xff\xfe", "is not valid JSON"),
        (b'{"ociVersion": "1.0.2", "process": {', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b"[]", "is not an OCI runtime spec for Linux"),
        (b'"text"', "is not an OCI runtime spec for Linux"),
        (b'{"linux": []}', "is not an OCI runtime spec for Linux"),
        (b'{"linux": "text"}', "is not an OCI runtime spec for Linux"),
        (b'{"linux": {"cgroupsPath": 5}}', "linux.cgroupsPath is not a text"),
        (b'{"linux": {"cgroupsPath": "/"}}', "cgroupsPath '/'"),
        (b'{"linux": {"cgroupsPath": "/a/../../b"}}', "cgroupsPath '/a/../../b'"),
        (b'{"linux": {"cgroupsPath": "/a\\u0000b"}}', "cgroupsPath '/a\\x00b'"),
        (b'{"linux": {"cgroupsPath": "/a\\ud800b"}}', "cgroupsPath '/a\\ud800b'"),
    ],
    ids=[
        "empty", "garbage", "cut", "deep list", "deep object", "list", "text", "linux is a list",
        "linux is text", "cgroupsPath is a number", "root cgroup", "cgroup elsewhere", "NUL",
        "surrogate",
    ],
)  # fmt: skip
def test_a_config_json_that_is_none_is_an_invalid_argument(
    rig: Rig, content: bytes, text: str
) -> None:
    bundle = rig.bundle("corrupt", spec=content)
    code, message = _refuses(rig, bundle)
    assert code == INVALID
    assert f"{bundle.path}/config.json" in message
    assert text in message


def test_nesting_at_the_parsers_limit_is_an_error_like_any_other(rig: Rig) -> None:
    for depth in range(150, 1000, 85):
        spec = spec_of("true")
        body = json.dumps(spec)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
        bundle = rig.bundle("deep", spec=body.encode())
        answer = rig.begin("Create", id="deep", bundle=bundle.path)
        assert answer.exception(10) is None or "JSON" in str(answer.exception())
        rig.give_up(bundle)


def test_a_missing_config_json_is_not_found(rig: Rig) -> None:
    bundle = rig.bundle("bare")
    (bundle.outside / "config.json").unlink()
    error = _refuses(rig, bundle)
    assert error == (NOT_FOUND, f"bundle has no config.json: {bundle.path}/config.json: not found")


@pytest.mark.parametrize("kind", ["folder", "fifo", "endless"])
def test_a_config_json_that_is_no_file_blocks_nobody(rig: Rig, kind: str) -> None:
    bundle = rig.bundle("odd")
    path = bundle.outside / "config.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code, message = _refuses(rig, bundle)
    assert code == INVALID
    assert "config.json is not a regular file" in message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"process": {"args": "text", "cwd": "/", "user": {}}}, "cannot unmarshal"),
        ({"process": None}, "process"),
        ({"root": {"path": "/does/not/exist"}}, "/does/not/exist"),
        ({"annotations": {"io.kubernetes.cri.image-name": 5}}, "cannot unmarshal"),
    ],
    ids=["args is text", "no process", "no root", "annotation is a number"],
)
def test_a_spec_the_runtime_refuses_gives_the_runtimes_own_words(
    rig: Rig, change: dict[str, Any], text: str
) -> None:
    bundle = rig.bundle("refused", spec={**spec_of("true"), **change})
    code, message = _refuses(rig, bundle)
    assert code == UNKNOWN
    assert message.startswith("OCI runtime create failed: ")
    assert text in message


def test_annotations_cannot_write_into_the_unit(rig: Rig, host: Host) -> None:
    spec = spec_of("sleep", "1000")
    evil = "x\nExecStopPost=/bin/touch /tmp/evil\n" + "y" * 10_000
    spec["annotations"] = {
        "io.kubernetes.cri.image-name": evil,
        "io.kubernetes.cri.sandbox-name": "\ud800%n$HOME",
    }
    rig.created("annotated", spec=spec)
    host.run(["systemctl", "daemon-reload"])
    unit = "sdshim-default-annotated.service"
    shown = host.run(["systemctl", "show", "-p", "ExecStopPost", "-p", "Description", unit]).stdout
    assert "path=/bin/touch" not in shown
    assert "%n$HOME" in shown
    assert len(shown) < 2000


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("", INVALID, "is not a clean absolute path"),
        ("relative/path", INVALID, "is not a clean absolute path"),
        (f"{HOME}/b/../b", INVALID, "is not a clean absolute path"),
        ("/tmp/a\0b", INVALID, "is not a clean absolute path"),
        ("/tmp/a\nb", INVALID, "is not a clean absolute path"),
        ("/does/not/exist", INVALID, "is not a directory"),
        ("/etc/passwd", INVALID, "is not a directory"),
        ("/" + "a" * 5000, INVALID, "is not a directory"),
    ],
    ids=["empty", "relative", "dots", "NUL", "newline", "missing", "file", "long"],
)
def test_a_bundle_must_be_a_folder_with_a_clean_path(
    rig: Rig, path: str, code: int, text: str
) -> None:
    bundle = rig.bundle("nowhere", "true")
    error = _refuses(rig, bundle, bundle=path)
    assert error[0] == code
    assert text in error[1]


# --- the rootfs


def _mount(kind: str = "bind", source: str = ROOTFS, *options: str) -> list[types_pb2.Mount]:
    return [types_pb2.Mount(type=kind, source=source, options=options)]


def _rootfs_bundle(rig: Rig, id_: str = "mounted") -> Bundle:
    spec = spec_of("true")
    spec["root"] = {"path": "rootfs", "readonly": True}
    return rig.bundle(id_, spec=spec)


@pytest.mark.parametrize(
    ("rootfs", "text"),
    [
        (_mount("bind", "/does/not/exist", "rbind", "ro"), "/does/not/exist"),
        (_mount("tmpfs", "tmpfs", "nonsense=1"), "tmpfs"),
        (_mount("nonsensefs", "none"), ""),
        (_mount("overlay", "overlay", "lowerdir=/does/not/exist"), "overlay"),
        (_mount("tmpfs", "tmpfs", "size=nonsense"), "tmpfs"),
        ([*_mount("bind", ROOTFS, "rbind"), *_mount("bind", "/does/not/exist")], "/does/not/exist"),
    ],
    ids=["no source", "option", "type", "overlay without lowerdir", "size", "the second of two"],
)
def test_a_mount_that_fails_gives_the_words_of_mount(
    rig: Rig, rootfs: list[types_pb2.Mount], text: str
) -> None:
    code, message = _refuses(rig, _rootfs_bundle(rig), rootfs=rootfs)
    assert code == UNKNOWN
    assert message.startswith("failed to mount rootfs component: mount: ")
    assert text in message


@pytest.mark.parametrize(
    "mount",
    [
        types_pb2.Mount(type="bind", source="/a\0b", options=["rbind"]),
        types_pb2.Mount(type="bi\0nd", source="/", options=["rbind"]),
        types_pb2.Mount(type="bind", source="/", options=["rbind", "a\0b"]),
        types_pb2.Mount(type="bind", source="/", target="a\0b", options=["rbind"]),
        types_pb2.Mount(type="erofs", source="x", options=["X-containerd.mkfs=1"]),
        types_pb2.Mount(type="bind", source="/", options=["uidmap=0:1:1"]),
        types_pb2.Mount(type="bind", source="-o", options=["rbind"]),
        types_pb2.Mount(type="bind", source="", options=["rbind"]),
    ],
    ids=[
        "NUL source",
        "NUL type",
        "NUL option",
        "NUL target",
        "its own",
        "idmap",
        "flag",
        "no source",
    ],
)
def test_a_mount_nobody_can_make_is_an_invalid_argument(rig: Rig, mount: types_pb2.Mount) -> None:
    code, message = _refuses(rig, _rootfs_bundle(rig), rootfs=[mount])
    assert code == INVALID
    assert "rootfs mount" in message


@pytest.mark.parametrize("odd", ["a b", "a$HOME", "a%n", "a'b\"c", "a\\b", "a;b", "a\nb", "ä"])
def test_odd_characters_in_a_mounts_source_arrive_as_they_are(rig: Rig, odd: str) -> None:
    bundle = _rootfs_bundle(rig)
    (bundle.outside / odd).symlink_to(ROOTFS)
    rig.call(
        "Create", id=bundle.id, bundle=bundle.path, rootfs=_mount("bind", f"{bundle.path}/{odd}")
    )
    rig.call("Start", id=bundle.id)
    assert rig.call("Wait", id=bundle.id).exit_status == 0


# --- the OCI runtime


def _options(**fields: Any) -> dict[str, Any]:
    message = runc_pb2.Options(**fields)
    return {
        "options": {
            "type_url": "containerd.runc.v1.Options",
            "value": message.SerializeToString(),
        }
    }


def test_an_unknown_runtime_is_named_in_the_error(rig: Rig) -> None:
    bundle = rig.bundle("rt", "true")
    for name, place in (
        ("no-such-runtime", "executable file not found in $PATH"),
        ("/no/such/runtime", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("nul\0runtime", "NUL"),
    ):
        code, message = _refuses(rig, bundle, **_options(binary_name=name))
        assert code in (UNKNOWN, INVALID)
        assert repr(name)[1:-1] in message
        assert place in message


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"type_url": "containerd.runc.v1.Options", "value": MALFORMED}},
        {"options": {"type_url": "example.com/what.Ever", "value": b""}},
        _options(root="relative"),
        _options(root="/a\0b"),
    ],
    ids=["undecodable", "unknown type", "relative root", "NUL in root"],
)
def test_options_that_cannot_be_used_are_refused(rig: Rig, options: dict[str, Any]) -> None:
    code, message = _refuses(rig, rig.bundle("opts", "true"), **options)
    assert code == INVALID
    assert "options" in message


def test_a_missing_command_fails_in_create_in_the_runtimes_words(rig: Rig) -> None:
    code, message = _refuses(rig, rig.bundle("cmd", "/no/such/command"))
    assert code == UNKNOWN
    assert message.startswith("OCI runtime create failed: ")
    assert '"/no/such/command": stat /no/such/command: no such file or directory' in message
    rig.deleted("cmd-after")  # the events of a whole life mark that nothing came for the other
    rig.events.until("cmd-after", "delete")
    assert rig.events.of("cmd") == []


def test_a_missing_command_is_told_to_the_user_of_ctr(ctr: Ctr) -> None:
    done = ctr.run("missing", "/no/such/command")
    assert done.returncode != 0
    assert "OCI runtime create failed: " in done.stderr
    assert '"/no/such/command": stat /no/such/command: no such file or directory' in done.stderr


def test_a_runtime_that_dies_without_a_word_is_named(rig: Rig, host: Host) -> None:
    program = host.path(f"{HOME}/silent")
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    code, message = _refuses(
        rig, rig.bundle("mute", "true"), **_options(binary_name=f"{HOME}/silent")
    )
    assert code == UNKNOWN
    assert message.startswith("OCI runtime create failed: ")
    assert "silent" in message or "sdshim-default-mute.service" in message


def test_a_runtime_that_only_prints_is_quoted(rig: Rig, host: Host) -> None:
    program = host.path(f"{HOME}/chatty")
    program.write_text("#!/bin/sh\necho something is rotten >&2\nexit 1\n")
    program.chmod(0o755)
    spec = spec_of("true")
    spec["root"] = {"path": "rootfs", "readonly": True}
    bundle = rig.bundle("loud", spec=spec)
    fields = {"stderr": "", **_options(binary_name=f"{HOME}/chatty")}
    code, message = _refuses(rig, bundle, rootfs=_mount("bind", ROOTFS, "rbind"), **fields)
    assert code == UNKNOWN
    assert message.startswith("OCI runtime create failed: ")


# --- ids


@pytest.mark.parametrize(
    "id_",
    ["", ".", "-a", "a-", "a..b", "a/b", "../a", "a b", "a\nb", "a\0b", "a:b", "ä", "a" * 77, "%n"],
    ids=lambda text: repr(text[:8]),
)
def test_an_illegal_id_is_refused_before_anything_is_made(rig: Rig, id_: str) -> None:
    bundle = rig.bundle("plain", "true")
    code, message = rig.refused("Create", id=id_, bundle=bundle.path)
    assert code == INVALID
    assert message.startswith("container id ")


@pytest.mark.parametrize("id_", ["a" * 76, "A0.b_c-d.E", "0"], ids=["76 bytes", "all", "digit"])
def test_every_legal_id_works(rig: Rig, id_: str) -> None:
    rig.stopped(id_)
    assert rig.call("State", id=id_).exit_status == 7


def test_a_unit_of_the_same_name_that_is_not_ours_is_left_alone(rig: Rig, host: Host) -> None:
    unit = "sdshim-default-squatter.service"
    bundle = rig.bundle("squatter", "true")
    host.run(["systemd-run", "--quiet", f"--unit={unit}", "sleep", "1000"])
    try:
        code, message = rig.refused("Create", id="squatter", bundle=bundle.path)
        assert code == EXISTS
        assert unit in message
        assert host.run(["systemctl", "is-active", unit], check=False).stdout == "active\n"
        rig.give_up(bundle)
        assert host.run(["systemctl", "is-active", unit], check=False).stdout == "active\n"
    finally:
        host.run(["systemctl", "stop", unit], check=False)
        host.run(["systemctl", "reset-failed", unit], check=False)


# --- streams


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_not_there_is_an_invalid_argument(rig: Rig, stream: str) -> None:
    bundle = rig.bundle("dry", "true")
    missing = f"{bundle.path}/missing"
    code, message = _refuses(rig, bundle, **{stream: missing})
    assert (code, message) == (INVALID, f"{stream}: {missing} does not exist")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("relative", "is not an absolute path"),
        ("/tmp/a\0b", "is not an absolute path"),
        ("/tmp", "is neither a FIFO nor a file"),
        ("/run/dbus/system_bus_socket", "is neither a FIFO nor a file"),
    ],
    ids=["relative", "NUL", "folder", "socket"],
)
def test_a_stream_that_cannot_be_one_is_an_invalid_argument(rig: Rig, path: str, text: str) -> None:
    code, message = _refuses(rig, rig.bundle("odd-stream", "true"), stdout=path)
    assert code == INVALID
    assert message.startswith("stdout: ")
    assert text in message


def test_a_rootfs_mount_is_not_blamed_for_what_follows_it(rig: Rig) -> None:
    bundle = _rootfs_bundle(rig)
    fields = {"rootfs": _mount("bind", ROOTFS, "rbind"), **_options(root="/proc/nowhere")}
    code, message = _refuses(rig, bundle, **fields)
    assert code == UNKNOWN
    assert message.startswith("OCI runtime create failed: ")
