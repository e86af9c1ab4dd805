"""The options of a task: every field and every fault, from each message that can carry them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.core.model import RuntimeOptions, Stdio
from sdshim.core.names import TaskKey
from sdshim.core.options import RUNC_KEYS, Options
from sdshim.daemon import options
from sdshim.pb import options_pb2, runc_pb2, runctypes_pb2, runtimeoptions_pb2
from sdshim.runtime import commands
from sdshim.stdio import fifo, ownership
from tests.unit.options_kit import decode, packed, refusal, toml

if TYPE_CHECKING:
    from pathlib import Path

KEY = TaskKey("default", "box")


# --- nil, types


def test_no_options_are_the_defaults_of_the_config() -> None:
    assert options.decode(AnyMessage(), "crun") == Options(RuntimeOptions(binary="crun"))


@pytest.mark.parametrize(
    "message",
    [
        runc_pb2.Options(),
        runtimeoptions_pb2.Options(),
        options_pb2.Options(),
        runctypes_pb2.CreateOptions(),
    ],
)
@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_empty_options_of_every_type_are_the_defaults_too(message: Any, prefix: str) -> None:
    got = options.decode(packed(message, prefix), "crun")
    assert got == Options(RuntimeOptions(binary="crun"))


@pytest.mark.parametrize("kind", ["windows.Options", "containerd.runc.v1.CheckpointOptions"])
def test_another_type_is_refused_by_its_name(kind: str) -> None:
    assert kind in refusal(AnyMessage(type_url=kind))


def test_a_value_without_a_type_is_refused() -> None:
    assert "no type" in refusal(AnyMessage(value=b"x"))


@pytest.mark.parametrize("kind", [options.RUNC, options.GENERIC, options.OURS, options.LEGACY])
def test_bytes_that_are_no_message_are_refused_with_the_types_name(kind: str) -> None:
    assert kind in refusal(AnyMessage(type_url=kind, value=b"\xff\xff\xff"))


# --- containerd.runc.v1.Options

RUNC_FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"no_pivot_root": True}, {"no_pivot_root": True}),
    ({"no_new_keyring": True}, {"no_new_keyring": True}),
    ({"io_uid": 7}, {"io_uid": 7}),
    ({"io_gid": 2**32 - 2}, {"io_gid": 2**32 - 2}),
    ({"binary_name": "crun"}, {"binary": "crun"}),
    ({"binary_name": "/opt/a b/crün"}, {"binary": "/opt/a b/crün"}),
    ({"root": "/run/elsewhere"}, {"root": "/run/elsewhere"}),
    ({"criu_path": "/usr/sbin/criu"}, {"criu_path": "/usr/sbin/criu"}),
    ({"criu_image_path": "/i"}, {"criu_image_path": "/i"}),
    ({"criu_work_path": "/w"}, {"criu_work_path": "/w"}),
    ({"systemd_cgroup": True}, {}),
    ({"shim_cgroup": "/shims"}, {}),
    ({"task_api_address": "ttrpc+unix:///x"}, {}),
    ({"task_api_version": 3}, {}),
]


def test_every_field_of_the_runc_options_is_tested() -> None:
    tested = {name for given, _ in RUNC_FIELDS for name in given}
    assert tested == {field.name for field in runc_pb2.Options.DESCRIPTOR.fields}
    assert set(RUNC_KEYS.values()) <= tested


@pytest.mark.parametrize(("given", "wanted"), RUNC_FIELDS, ids=lambda value: str(value))
def test_a_field_of_the_runc_options(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    got = decode(packed(runc_pb2.Options(**given))).runtime
    assert got == RuntimeOptions(**{"binary": "runc", **wanted})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [pair for pair in RUNC_FIELDS if pair[0].keys() <= set(RUNC_KEYS.values())],
    ids=lambda value: str(value),
)
def test_the_same_field_as_the_cri_writes_it(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    name, value = next(iter(given.items()))
    key = next(key for key, field in RUNC_KEYS.items() if field == name)
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert decode(toml(f"{key} = {text}")).runtime == RuntimeOptions(**{"binary": "runc", **wanted})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"no_pivot_root": True, "no_new_keyring": True}, None),
        ({"io_uid": 5, "io_gid": 6}, None),
        ({"criu_work_path": "/w", "criu_image_path": "/i"}, None),
        ({"open_tcp": True, "terminal": True, "empty_namespaces": ["net"]}, {}),
        ({"shim_cgroup": "/s"}, {}),
    ],
)
def test_the_options_that_old_clients_send_to_runtimes_not_called_runc(
    given: dict[str, Any], wanted: dict[str, Any] | None
) -> None:
    got = decode(packed(runctypes_pb2.CreateOptions(**given)))
    assert got.runtime == RuntimeOptions(**(given if wanted is None else wanted))
    assert bool(got.ignored) == ("shim_cgroup" in given)


RUNC_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"root": "relative"}, "root 'relative' is not an absolute path"),
    ({"root": "/a\0b"}, "NUL"),
    ({"binary_name": "a\nb"}, "unprintable"),
    ({"binary_name": "./runc"}, "neither a name nor an absolute path"),
    ({"binary_name": "x" * 5000}, "longer than"),
    ({"io_uid": 2**32 - 1}, "io_uid 4294967295 is not an id"),
    ({"io_gid": 2**32 - 1}, "io_gid 4294967295 is not an id"),
    ({"criu_path": "criu"}, "criu_path 'criu' is not an absolute path"),
    ({"criu_image_path": "i"}, "criu_image_path 'i' is not an absolute path"),
    ({"criu_work_path": "w"}, "criu_work_path 'w' is not an absolute path"),
]


@pytest.mark.parametrize(("given", "text"), RUNC_FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_in_the_runc_options(given: dict[str, Any], text: str) -> None:
    said = refusal(packed(runc_pb2.Options(**given)))
    assert said.startswith(f"options of type {options.RUNC}: ")
    assert text in said
    assert len(said) < 400


def test_all_faults_are_told_at_once() -> None:
    said = refusal(packed(runc_pb2.Options(root="r", io_uid=2**32 - 1, criu_path="c")))
    assert said.count(";") == 2


# --- what one daemon cannot do


def _warnings(caplog: pytest.LogCaptureFixture, given: AnyMessage, started: dict[str, str]) -> str:
    with caplog.at_level(logging.WARNING):
        options.warn(KEY, decode(given), started)
    assert len(caplog.messages) <= 1
    return caplog.messages[0] if caplog.messages else ""


@pytest.mark.parametrize(
    ("given", "started", "words"),
    [
        (packed(runc_pb2.Options(shim_cgroup="/s")), {}, ["shim_cgroup '/s'"]),
        (toml("ShimCgroup = '/s'"), {}, ["shim_cgroup '/s'"]),
        (AnyMessage(), {"sched_core": "1"}, ["SCHED_CORE"]),
        (toml("ShimCgroup = '/s'"), {"sched_core": "1"}, ["shim_cgroup", "SCHED_CORE"]),
    ],
)
def test_a_wish_that_cannot_be_honoured_is_one_line_that_names_it(
    caplog: pytest.LogCaptureFixture, given: AnyMessage, started: dict[str, str], words: list[str]
) -> None:
    line = _warnings(caplog, given, started)
    assert "default/box" in line
    for word in words:
        assert word in line


@pytest.mark.parametrize("given", [AnyMessage(), packed(runc_pb2.Options(systemd_cgroup=True))])
def test_nothing_else_is_warned_about(caplog: pytest.LogCaptureFixture, given: AnyMessage) -> None:
    assert _warnings(caplog, given, {"sched_core": "0"}) == ""


# --- sdshim.v1.Options


def test_readiness_is_an_option() -> None:
    assert decode(packed(options_pb2.Options(notify=True))).runtime.notify
    assert decode(toml("notify = true")).runtime.notify
    assert not decode(toml("notify = false")).runtime.notify


def test_our_own_message() -> None:
    properties = {"CPUWeight": "200", "Description": "my box"}
    got = decode(packed(options_pb2.Options(oci_runtime="crun", unit_properties=properties)))
    assert got == Options(RuntimeOptions(binary="crun", unit_properties=properties))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"log": "file"}, "log 'file' is not one of"),
        ({"log_namespace": "../x"}, "log_namespace '../x' is not the name of"),
        ({"log_stdout_priority": "loud"}, "log_stdout_priority 'loud' is neither"),
        ({"log_stderr_priority": "8"}, "log_stderr_priority '8' is neither"),
        ({"oci_runtime": "../runc"}, "neither a name nor an absolute path"),
        ({"unit_properties": {"KillMode": "none", "Type": "simple"}}, "'KillMode', 'Type'"),
        ({"unit_properties": {"MemoryMax": "lots"}}, "MemoryMax='lots': not a size"),
        ({"unit_properties": {"Description": "a\nExecStart=/bin/sh"}}, "printable"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_fault_in_our_own_message(given: dict[str, Any], text: str) -> None:
    said = refusal(packed(options_pb2.Options(**given)))
    assert said.startswith("options of type sdshim.v1.Options: ")
    assert text in said


def test_a_field_of_a_newer_version_is_refused() -> None:
    message = AnyMessage(type_url=options.OURS, value=b"\x9a\x06\x03new")
    assert "does not know" in refusal(message)


# --- io_uid and io_gid


def test_the_fifos_are_given_to_the_containers_user_and_nothing_else_is(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    for name in ("in", "err"):
        os.mkfifo(tmp_path / name, 0o700)
    (tmp_path / "out").touch()
    stdin, stdout, stderr = (str(tmp_path / name) for name in ("in", "out", "err"))
    held = fifo.Held()
    fifo.hold(held, Stdio(stdin, stdout, stderr))
    try:
        ownership.give(held, 0, 0)
        assert (tmp_path / "in").stat().st_uid == 0
        ownership.give(held, 1234, 5678)
    finally:
        held.close_all()
    owners = {p.name: (p.stat().st_uid, p.stat().st_gid) for p in tmp_path.iterdir()}
    mine = (os.geteuid(), os.getegid())
    assert owners == {"in": (1234, 5678), "err": (1234, 5678), "out": mine}


# --- crun's logs


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        ('{"level":"error","msg":"one"}\n', "one"),
        ('{"level":"warning","msg":"w"}\n{"level":"error","msg":"two"}\n', "two"),
        ('{\n  "msg": "no `\\/x`: {gone}",\n  "level": "error"\n}\n', "no `/x`: {gone}"),
        ('{"level":"error","msg":"a"}\n{\n "level":\n "fatal", "msg": "b"}\n{"level":"info"}', "b"),
        ('cut off", "level":"error"}\nplain {words\n{"level":"error","msg":"c"}\n', "c"),
        ('{"level":"error","msg":"cut o', "printed text"),
        ('{"a":' * 9000, "printed text"),
        ("", "printed text"),
    ],
)
def test_the_runtimes_last_error_in_its_log_however_it_is_laid_out(log: str, wanted: str) -> None:
    assert commands.error_text(log, " printed\ntext ") == wanted


def test_a_crun_without_the_capability_it_needs_is_told_what_helps() -> None:
    text = "setrlimit (RLIM_MEMLOCK): Operation not permitted"
    assert "CAP_SYS_RESOURCE" in commands.hint(text)
    assert commands.hint("exec: not found") == ""
