"""Bad input of every kind: a clear error, the same daemon, no neighbour notices, nothing stays."""

from __future__ import annotations

import json
import os
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import Unavailable
from sdshim.pb import runc_pb2, task_types_pb2, types_pb2
from sdshim.pb import task_v2_pb2 as pb
from sdshim.ttrpc.frames import encode_frame
from tests.system.taskclient import (
    HOME,
    ROOTFS,
    V2,
    V3,
    RawSocket,
    no_traceback,
    spec_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Bundle, Rig

pytestmark = pytest.mark.system

UNKNOWN, INVALID, NOT_FOUND, EXISTS, EXHAUSTED, INTERNAL = 2, 3, 5, 6, 8, 13
MALFORMED = b"\xff\xff\xff\xff"


@pytest.fixture(autouse=True)
def nobody_notices(rig: Rig) -> Iterator[None]:
    """A container that runs meanwhile goes on, its Wait stays open, the daemon stays the same and
    is never surprised."""
    bundle = rig.bundle("bystander", "sleep", "1000")
    line = rig.connect()
    line.call("Create", id="bystander", bundle=bundle.path)
    end = line.begin("Wait", id="bystander")
    line.call("Start", id="bystander")
    before = line.call("State", id="bystander")
    daemon = rig.daemon_pid()
    with no_traceback(rig.host):
        yield
    assert rig.daemon_pid() == daemon
    assert line.call("State", id="bystander") == before
    assert before.status == task_types_pb2.RUNNING
    assert not end.done()
    line.call("Kill", id="bystander", signal=9)
    assert end.result(10).exit_status == 137
    line.call("Delete", id="bystander")


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
        types_pb2.Mount(type="bind", source="/", target="/../../etc", options=["rbind"]),
        types_pb2.Mount(type="fuse.sshfs", source="x:/"),
        types_pb2.Mount(type="bind", source="/", options=["uidmap=0:1:1"]),
        types_pb2.Mount(type="bind", source="-o", options=["rbind"]),
        types_pb2.Mount(type="bind", source="", options=["rbind"]),
    ],
    ids=["NUL source", "NUL type", "NUL option", "target", "fuse", "idmap", "flag", "no source"],
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
        assert code in (NOT_FOUND, INVALID)
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
        ("nonsense://x", "nonsense:// is not supported"),
        ("/tmp", "is neither a FIFO nor a file"),
        ("/run/dbus/system_bus_socket", "is neither a FIFO nor a file"),
    ],
    ids=["relative", "NUL", "scheme", "folder", "socket"],
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


# --- clients


def test_a_client_that_leaves_in_the_middle_of_create_leaves_nothing(rig: Rig) -> None:
    bundle = rig.bundle("left", "sleep", "1000")
    for name in ("reached", "go"):
        os.mkfifo(bundle.outside / name)
    hook = bundle.outside / "hook"
    hook.write_text(f"#!/bin/sh\necho >{bundle.path}/reached; read x <{bundle.path}/go\n")
    hook.chmod(0o700)
    spec = spec_of("sleep", "1000")
    spec["hooks"] = {"createRuntime": [{"path": f"{bundle.path}/hook"}]}
    bundle.write_spec(spec)
    line = rig.connect()
    create = line.begin("Create", id="left", bundle=bundle.path)
    (bundle.outside / "reached").read_text()
    line.close()
    assert isinstance(create.exception(5), Unavailable)
    (bundle.outside / "go").write_text("\n")
    assert rig.give_up(bundle).exit_status == 137
    assert rig.refused("State", id="left")[0] == NOT_FOUND
    assert not rig.unit_exists("left")


def test_a_client_that_has_left_before_create_begins_makes_nothing(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("hasty", "sleep", "1000")
    with RawSocket(host) as raw:
        request = pb.CreateTaskRequest(id="hasty", bundle=bundle.path)
        raw.request(1, "Create", request.SerializeToString())
    rig.give_up(bundle)
    rig.deleted("hasty-after")
    rig.events.until("hasty-after", "delete")
    assert rig.refused("State", id="hasty")[0] == NOT_FOUND
    assert not rig.unit_exists("hasty")


@pytest.mark.parametrize("seed", range(8))
def test_garbage_on_the_socket_harms_only_its_sender(rig: Rig, host: Host, seed: int) -> None:
    chance = random.Random(seed)
    with RawSocket(host) as raw:
        try:
            raw.sock.sendall(chance.randbytes(chance.choice((1, 9, 10, 11, 1000, 300_000))))
        except (BrokenPipeError, ConnectionResetError):
            return
    assert rig.call("Connect", id="bystander").task_pid > 0


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", 12), (MALFORMED, INVALID), (b"\x0a\x05ab", INVALID), (b"\x0a\x02\xff\xfe", INVALID)],
    ids=["empty", "garbage", "cut", "not UTF-8"],
)
def test_a_frame_that_is_no_request_is_answered(
    rig: Rig, host: Host, data: bytes, code: int
) -> None:
    with RawSocket(host) as raw:
        raw.sock.sendall(encode_frame(1, 1, data))
        stream, answer = raw.response()
        assert (stream, answer.code) == (1, code)
        raw.request(3, "Connect", pb.ConnectRequest(id="bystander").SerializeToString())
        assert raw.response()[1].code == 0


@pytest.mark.parametrize("stream", [0, 2, 2**32 - 2])
def test_an_even_stream_id_is_refused(rig: Rig, host: Host, stream: int) -> None:
    with RawSocket(host) as raw:
        raw.request(stream, "Connect")
        assert raw.response()[1].code == INVALID


def test_unknown_kinds_of_frames_are_passed_over(rig: Rig, host: Host) -> None:
    with RawSocket(host) as raw:
        for kind in (0, 2, 3, 99, 255):
            raw.sock.sendall(encode_frame(1, kind, b"whatever"))
        raw.request(1, "Connect", pb.ConnectRequest(id="bystander").SerializeToString())
        assert raw.response()[1].code == 0


@pytest.mark.parametrize("length", [(4 << 20) + 1, 2**32 - 1], ids=["over 4 MiB", "4 GiB"])
def test_a_frame_that_is_too_large_is_refused_and_thrown_away(
    rig: Rig, host: Host, length: int
) -> None:
    with RawSocket(host) as raw:
        raw.header(length, 1)
        stream, answer = raw.response()
        assert (stream, answer.code) == (1, EXHAUSTED)
        assert str(length) in answer.message
        part = b"\0" * (1 << 20)
        for _ in range(length // len(part) if length < 1 << 30 else 64):
            raw.sock.sendall(part)
        if length < 1 << 30:
            raw.sock.sendall(b"\0" * (length % len(part)))
            raw.request(3, "Connect", pb.ConnectRequest(id="bystander").SerializeToString())
            assert raw.response()[1].code == 0
    assert rig.call("Connect", id="bystander").task_pid > 0


@pytest.mark.parametrize("service", [V2, V3])
@pytest.mark.parametrize(
    "method",
    [
        "State",
        "Create",
        "Start",
        "Delete",
        "Pids",
        "Kill",
        "CloseIO",
        "Wait",
        "Connect",
        "Shutdown",
    ],
)
def test_a_payload_that_cannot_be_decoded_is_an_internal_error(
    rig: Rig, host: Host, method: str, service: str
) -> None:
    with RawSocket(host) as raw:
        raw.request(1, method, MALFORMED, service=service)
        _, answer = raw.response()
    assert answer.code == INTERNAL
    assert answer.message.startswith("ttrpc: error unmarshalling payload: ")


def test_a_large_request_is_a_request_like_any_other(rig: Rig, host: Host) -> None:
    request = pb.CreateTaskRequest(id="big", bundle="/none", stdin="x" * 3_000_000)
    with RawSocket(host) as raw:
        raw.request(1, "Create", request.SerializeToString())
        _, answer = raw.response()
    assert answer.code == INVALID
    assert len(answer.message) < 20_000


def test_a_thousand_connections_at_once_are_all_served(rig: Rig, host: Host) -> None:
    request = pb.ConnectRequest(id="bystander").SerializeToString()
    lines = [RawSocket(host) for _ in range(1000)]
    try:
        for line in lines:
            line.request(1, "Connect", request)
        assert {line.response()[1].code for line in lines} == {0}
        # Each is alive, while all are.
        for line in lines[:: len(lines) // 10]:
            line.request(3, "Connect", request)
            assert line.response()[1].code == 0
    finally:
        for line in lines:
            line.sock.close()
    assert rig.call("Connect", id="bystander").task_pid > 0


# --- strangers

CALL = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/sdshim/s/default")
try:
    s.sendall(bytes.fromhex(sys.argv[1]))
    sys.stdout.write(s.recv(4096).hex() or "closed")
except (BrokenPipeError, ConnectionResetError):
    sys.stdout.write("closed")
"""


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (["--reuid=65534", "--regid=65534", "--clear-groups"], "PermissionError"),
        (["--reuid=65534"], "PermissionError"),
        (["--regid=65534", "--clear-groups"], "closed"),
        (["--ruid=65534", "--euid=0"], "0a"),
    ],
    ids=["uid and gid", "uid", "gid", "only the real uid"],
)
def test_a_peer_that_is_not_root_is_refused(
    rig: Rig, host: Host, who: list[str], said: str
) -> None:
    frame = encode_frame(1, 1, b"\x0a\x01x")
    argv = ["setpriv", *who, "/usr/bin/python3", "-c", CALL, frame.hex()]
    done = host.run(argv, check=False)
    assert said in done.stdout + done.stderr


def test_a_stranger_who_reaches_the_socket_is_refused_by_his_credentials(
    rig: Rig, host: Host
) -> None:
    inner, outer = host.path("/run/sdshim/s"), host.path("/run/sdshim")
    modes = [(path, path.stat().st_mode & 0o777) for path in (outer, inner, inner / "default")]
    try:
        for path, _ in modes:
            path.chmod(0o777)
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = host.run([*argv, "/usr/bin/python3", "-c", CALL, "00"], check=False)
        assert done.stdout == "closed", done.stderr
    finally:
        for path, mode in modes:
            path.chmod(mode)


def test_the_socket_of_a_namespace_with_an_illegal_name_is_not_made(rig: Rig) -> None:
    for name in ("", "../x", "a/b", "a\0b", "x" * 77):
        with pytest.raises(Exception, match="namespace"):
            rig.listen(name)
    assert not isinstance(rig.call("Connect", id="bystander"), socket.socket)
