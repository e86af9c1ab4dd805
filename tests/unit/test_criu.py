"""What criu and the OCI runtime are told for a checkpoint and a restore."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core import criu
from sdshim.core.criu import Wish
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import RuntimeOptions
from sdshim.daemon import options
from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import pack
from sdshim.runtime import commands
from sdshim.runtime.criu import Criu
from tests.unit.test_record import IDENTITY

if TYPE_CHECKING:
    from pathlib import Path

BASE = ["/usr/sbin/runc", "--root", "/r/ns"]
KEYS = {0: "file[c2:3e]", 1: "file[c2:3f]", 2: "file[c2:3f]"}
EVERY = Wish(
    exit=True,
    open_tcp=True,
    external_unix_sockets=True,
    terminal=True,
    file_locks=True,
    empty_namespaces=("network", "ipc"),
    cgroups_mode="full",
    image_path="/i",
    work_path="/w",
)


def _checkpoint(wish: Wish) -> list[str]:
    argv = commands.checkpoint(BASE, wish, "/images", "/work", "c1")
    assert argv[:7] == [*BASE, "checkpoint", "--image-path", "/images", "--work-path"]
    assert (argv[7], argv[-1]) == ("/work", "c1")
    return argv[8:-1]


@pytest.mark.parametrize(
    ("wish", "flags"),
    [
        (Wish(), ["--leave-running"]),
        (Wish(exit=True), []),
        (Wish(exit=True, open_tcp=True), ["--tcp-established"]),
        (Wish(exit=True, external_unix_sockets=True), ["--ext-unix-sk"]),
        (Wish(exit=True, terminal=True), ["--shell-job"]),
        (Wish(exit=True, file_locks=True), ["--file-locks"]),
        (Wish(exit=True, empty_namespaces=("a", "b")), ["--empty-ns", "a", "--empty-ns", "b"]),
        (Wish(exit=True, cgroups_mode="soft"), ["--manage-cgroups-mode", "soft"]),
    ],
    ids=lambda value: "" if isinstance(value, Wish) else " ".join(value) or "nothing",
)
def test_each_checkpoint_option_is_a_flag_of_the_runtime(wish: Wish, flags: list[str]) -> None:
    assert _checkpoint(wish) == flags


def test_a_restore_is_allowed_what_the_checkpoint_was_allowed() -> None:
    me = replace(IDENTITY, checkpoint="/images", id="c1", bundle="/b", runtime=RuntimeOptions())
    argv = commands.restore(BASE, me, EVERY, "/state", "/work")
    allowed = "--tcp-established --ext-unix-sk --shell-job --file-locks --empty-ns network"
    assert argv == [
        *[*BASE, "restore", "--image-path", "/images", "--work-path", "/work"],
        *[*allowed.split(), "--empty-ns", "ipc", "--detach", "--pid-file", "/state/init.pid"],
        *["--no-subreaper", "--bundle", "/b", "c1"],
    ]


def test_a_restore_with_a_terminal_names_the_console_socket() -> None:
    runtime = RuntimeOptions(no_pivot_root=True)
    me = replace(IDENTITY, checkpoint="/images", id="c1", runtime=runtime)
    argv = commands.restore(BASE, me, Wish(), "/state", "/work", "/c/1")
    assert argv[argv.index("--console-socket") + 1] == "/c/1"
    assert "--no-pivot" in argv
    crun = commands.restore(["/usr/bin/crun"], me, Wish(), "/state", "/work", "/c/1")
    assert not {"--no-pivot", "--no-subreaper"} & set(crun)  # it knows neither


def test_external_streams_are_named_for_the_dump_and_inherited_by_the_restore() -> None:
    assert criu.key(0xC2, 0x3E) == KEYS[0]
    dump = "external file[c2:3e]\nexternal file[c2:3f]\n"
    assert criu.dump_config(KEYS, unified=False) == dump
    assert criu.dump_config(KEYS, unified=True) == dump + 'cgroup-dump-controller ""\n'
    assert criu.restore_config(KEYS, "/a.slice/u/container", (4, 2)).splitlines() == [
        "inherit-fd fd[0]:file[c2:3e]",
        "inherit-fd fd[1]:file[c2:3f]",
        "inherit-fd fd[2]:file[c2:3f]",
        "skip-file-rwx-check",
        "cgroup-root :/a.slice/u/container",
    ]
    assert criu.restore_config({}, "", (3, 17)) == ""  # an option that it does not know ends it
    assert criu.dump_config({}, unified=False) == ""


def test_the_notes_beside_the_images_come_back() -> None:
    keys, wish = criu.decode_notes(criu.encode_notes(KEYS, EVERY))
    assert keys == KEYS
    assert wish == replace(EVERY, exit=False, cgroups_mode="", image_path="", work_path="")


def _notes(**changed: Any) -> bytes:
    whole = {"streams": {"1": "file[1:2]"}, "switches": [], "empty_namespaces": []}
    return json.dumps({**whole, **changed}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"streams": ' + b"[" * 5000,
        _notes(streams={"3": "file[1:2]"}),
        _notes(streams={"x": "file[1:2]"}),
        _notes(streams={"1": "file[1:2]\ninherit-fd fd[9]:x"}),
        _notes(streams=["1"]),
        _notes(switches=["exit"]),
        _notes(switches=3),
        _notes(empty_namespaces=["--lazy-pages"]),
        _notes(empty_namespaces=None),
    ],
)
def test_notes_from_anywhere_cannot_say_more_than_they_may(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        criu.decode_notes(data)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("Version: 4.2.1\nGitID: v4.2\n", (4, 2)),
        ("Warn: x\nVersion: 3.17\n", (3, 17)),
        ("Version: new", None),
        ("", None),
    ],
)
def test_the_version_is_read(output: str, found: tuple[int, int] | None) -> None:
    assert criu.version(output) == found


def test_the_errors_of_a_log_are_told_in_order_and_once() -> None:
    log = (
        "(00.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n"
        "(00.02) Warn  (criu/a.c:1): odd\n"
        "(00.03)      1: Error (criu/files-reg.c:2294): File fd/0 has bad mode\n"
        "(00.04) Error (criu/cr-restore.c:2331): Restoring FAILED.\n"
        "(00.05) Error (criu/cr-restore.c:2331): Restoring FAILED.\n"
    )
    assert criu.errors(log) == "File fd/0 has bad mode; Restoring FAILED."
    assert len(criu.errors("".join(f"Error (a.c:1): {n} is wrong\n" for n in range(99)))) == 500


@pytest.mark.parametrize("kind", options.CHECKPOINT)
def test_the_options_message_is_read_by_both_of_its_names(kind: str) -> None:
    message = pack(
        runc_pb2.CheckpointOptions(
            exit=True,
            open_tcp=True,
            external_unix_sockets=True,
            terminal=True,
            file_locks=True,
            empty_namespaces=["network", "ipc"],
            cgroups_mode="full",
            image_path="/i",
            work_path="/w",
        )
    )
    message.type_url = kind
    assert options.checkpoint(message) == EVERY


def test_a_named_criu_is_the_first_in_the_runtimes_path(tmp_path: Path) -> None:
    made = Criu({"PATH": "/usr/bin"}, 5).environment("/opt/criu-5", tmp_path, "external x\n")
    variables = dict(one.split("=", 1) for one in made)
    first, rest = variables["PATH"].split(":", 1)
    assert (tmp_path / "bin/criu").readlink().as_posix() == "/opt/criu-5"
    assert (first, rest) == (str(tmp_path / "bin"), "/usr/bin")
    config = tmp_path / "criu.conf"
    assert variables["CRIU_CONFIG_FILE"] == str(config)
    assert config.read_text() == "external x\n"
    assert "PATH" not in str(Criu({}, 5).environment("", tmp_path, ""))
