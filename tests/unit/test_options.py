"""The options of a task: every field and every fault, from each message that can carry them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core import unitproperties
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import Identity, RuntimeOptions, Stdio
from sdshim.core.names import TaskKey
from sdshim.core.options import RUNC_KEYS, Options
from sdshim.core.unitspec import HostFacts, InitUnit, init_properties
from sdshim.daemon import options
from sdshim.pb import options_pb2, runc_pb2, runctypes_pb2, runtimeoptions_pb2
from sdshim.runtime import commands
from sdshim.stdio import fifo, ownership

if TYPE_CHECKING:
    from pathlib import Path

KEY = TaskKey("default", "box")
INFINITY = 2**64 - 1


def packed(message: Any, prefix: str = "") -> AnyMessage:
    url = prefix + message.DESCRIPTOR.full_name
    return AnyMessage(type_url=url, value=message.SerializeToString())


def toml(body: str | bytes) -> AnyMessage:
    data = body.encode() if isinstance(body, str) else body
    return packed(runtimeoptions_pb2.Options(type_url="some.Type", config_body=data))


def decode(value: AnyMessage) -> Options:
    return options.decode(value, "runc")


def refusal(value: AnyMessage) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode(value)
    return str(caught.value)


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


def test_our_own_message() -> None:
    properties = {"CPUWeight": "200", "Description": "my box"}
    got = decode(packed(options_pb2.Options(oci_runtime="crun", unit_properties=properties)))
    assert got == Options(RuntimeOptions(binary="crun", unit_properties=properties))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"log": "journal"}, "log 'journal' is not supported yet"),
        ({"log": "both"}, "log 'both' is not supported yet"),
        ({"log": "none"}, "log 'none' is not supported yet"),
        ({"log": "file"}, "log 'file' is not one of"),
        ({"notify": True}, "notify is not supported yet"),
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


# --- TOML


def test_our_keys_and_the_cris_in_one_table() -> None:
    body = """
        TypeUrl = "any"
        ConfigPath = ""
        BinaryName = "crun"
        IoUid = 100000
        log = ""
        notify = false
        [unit_properties]
        CPUWeight = 200
        MemoryAccounting = true
        TimeoutStopSec = "1min 30s"
    """
    got = decode(toml(body)).runtime
    assert (got.binary, got.io_uid) == ("crun", 100000)
    assert got.unit_properties == {
        "CPUWeight": "200",
        "MemoryAccounting": "true",
        "TimeoutStopSec": "1min 30s",
    }


@pytest.mark.parametrize("body", ["", " \n", "# nothing"])
def test_an_empty_table_is_the_defaults(body: str) -> None:
    assert decode(toml(body)) == Options(RuntimeOptions())


def test_unknown_keys_and_wrong_types_are_named_all_at_once() -> None:
    said = refusal(
        toml("""
        binaryname = "x"
        Foo = 1
        NoPivotRoot = 1
        Root = 5
        IoUid = -1
        IoGid = true
        unit_properties = "MemoryMax=1"
        ConfigPath = "/etc/other.toml"
        [Bar]
        """)
    )
    assert said.startswith("options of type runtimeoptions.v1.Options: ")
    for text in (
        "unknown keys 'binaryname', 'Foo', 'Bar'",
        "NoPivotRoot must be true or false, not 1",
        "Root must be text, not 5",
        "IoUid must be a number from 0 to 4294967294, not -1",
        "IoGid must be a number from 0 to 4294967294, not True",
        "unit_properties must be a table, not 'MemoryMax=1'",
        "ConfigPath",
    ):
        assert text in said, text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("BinaryName = ", "not TOML"),
        (b"Root = '\xff'", "not TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("oci_runtime = 'crun'\nBinaryName = 'runc'", "two OCI runtimes, 'crun' and 'runc'"),
        ("unit_properties = { MemoryMax = [1] }", "a table of texts, but 'MemoryMax'"),
        ("unit_properties = { TasksMax = 1.5 }", "a table of texts, but 'TasksMax'"),
        (f"unit_properties = {{ TasksMax = 0x{'f' * 9000} }}", "a table of texts"),
        (f"Root = 0x{'f' * 9000}", "Root must be text"),
        ("#" * (2**20 + 1), "larger than 1048576 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_fault_in_toml(body: str | bytes, text: str) -> None:
    said = refusal(toml(body))
    assert said.startswith("options of type runtimeoptions.v1.Options")
    assert text in said
    assert len(said) < 600


def test_one_runtime_named_twice_is_fine() -> None:
    assert decode(toml("oci_runtime = 'crun'\nBinaryName = 'crun'")).runtime.binary == "crun"


# --- a file of TOML


def at(path: object, **fields: Any) -> AnyMessage:
    return packed(runtimeoptions_pb2.Options(config_path=str(path), **fields))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("only root can make a file of root's")
    path = tmp_path / "options.toml"
    path.write_text("BinaryName = 'crun'\n")
    path.chmod(0o644)
    return path


def test_a_file_of_roots_is_read(file: Path) -> None:
    assert decode(at(file)).runtime.binary == "crun"


def test_the_name_of_the_file_is_in_its_faults(file: Path) -> None:
    file.write_text("nonsense = 1")
    assert f"file '{file}': unknown keys 'nonsense'" in refusal(at(file))


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert "may be written by others than root" in refusal(at(file))


def test_a_file_that_is_not_roots_is_refused(file: Path) -> None:
    os.chown(file, 65534, -1)
    assert "owned by uid 65534, not by root" in refusal(at(file))


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    os.truncate(file, 2**20 + 1)
    assert "larger than 1048576 bytes" in refusal(at(file))
    os.truncate(file, 2**20)
    assert "not TOML" in refusal(at(file))


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(at(tmp_path / "fifo"))
    assert "not a regular file" in refusal(at(tmp_path))
    assert "not a regular file" in refusal(at("/dev/zero"))
    assert "No such file" in refusal(at(tmp_path / "missing"))


@pytest.mark.parametrize("path", ["relative.toml", "/a\0b", "/a\nb"])
def test_a_path_that_cannot_be_one_is_refused(path: str) -> None:
    assert "not an absolute path" in refusal(at(path))


def test_a_file_and_a_body_together_are_refused(tmp_path: Path) -> None:
    assert "both" in refusal(at(tmp_path, config_body=b"x"))


def test_toml_and_the_rarer_messages_are_imported_only_when_there(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from google.protobuf.any_pb2 import Any\n"
        "from sdshim.daemon import options\n"
        "options.decode(Any(), 'runc')\n"
        "options.decode(Any(type_url=options.RUNC, value=b''), 'runc')\n"
        "options.decode(Any(type_url=options.GENERIC, value=b''), 'runc')\n"
        "assert 'tomllib' not in sys.modules\n"
        "options.decode(Any(type_url=options.GENERIC, value=b'\\x1a\\x01#'), 'runc')\n"
        "assert 'tomllib' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- unit properties


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("Description", " My box, 100 % ", ("Description", "s", "My box, 100 %")),
        ("KillSignal", "SIGINT", ("KillSignal", "i", signal.SIGINT)),
        ("KillSignal", "QUIT", ("KillSignal", "i", signal.SIGQUIT)),
        ("KillSignal", "9", ("KillSignal", "i", 9)),
        ("KillSignal", "SIGRTMIN+3", ("KillSignal", "i", signal.SIGRTMIN + 3)),
        ("RuntimeMaxSec", "2h30min", ("RuntimeMaxUSec", "t", 9_000_000_000)),
        ("RuntimeMaxSec", "infinity", ("RuntimeMaxUSec", "t", INFINITY)),
        ("TimeoutStopSec", "90", ("TimeoutStopUSec", "t", 90_000_000)),
        ("TimeoutStopSec", "1.5", ("TimeoutStopUSec", "t", 1_500_000)),
        ("TimeoutStopSec", "1min 30s 5ms 7us", ("TimeoutStopUSec", "t", 90_005_007)),
        ("TimeoutStopSec", "5M", ("TimeoutStopUSec", "t", 5 * 2_629_800_000_000)),
        ("TimeoutStopSec", "0", ("TimeoutStopUSec", "t", INFINITY)),
        ("IOAccounting", "yes", ("IOAccounting", "b", True)),
        ("MemoryAccounting", "Off", ("MemoryAccounting", "b", False)),
        ("TasksAccounting", "1", ("TasksAccounting", "b", True)),
        ("CPUQuota", "150%", ("CPUQuotaPerSecUSec", "t", 1_500_000)),
        ("CPUQuota", "0.5%", ("CPUQuotaPerSecUSec", "t", 5_000)),
        ("CPUQuotaPeriodSec", "10ms", ("CPUQuotaPeriodUSec", "t", 10_000)),
        ("CPUWeight", "1", ("CPUWeight", "t", 1)),
        ("IOWeight", "10000", ("IOWeight", "t", 10000)),
        ("MemoryHigh", "1.5G", ("MemoryHigh", "t", 3 * 2**29)),
        ("MemoryLow", "0", ("MemoryLow", "t", 0)),
        ("MemoryMax", "64M", ("MemoryMax", "t", 64 << 20)),
        ("MemoryMax", "12345", ("MemoryMax", "t", 12345)),
        ("MemoryMax", "infinity", ("MemoryMax", "t", INFINITY)),
        ("MemoryMax", "50%", ("MemoryMaxScale", "u", (2**32 - 1 + 1) // 2)),
        ("MemoryMin", "4 K", ("MemoryMin", "t", 4096)),
        ("MemorySwapMax", "0", ("MemorySwapMax", "t", 0)),
        ("TasksMax", "5", ("TasksMax", "t", 5)),
        ("TasksMax", "infinity", ("TasksMax", "t", INFINITY)),
        ("TasksMax", "100%", ("TasksMaxScale", "u", 2**32 - 1)),
    ],
)
def test_a_unit_property(name: str, text: str, wanted: tuple[str, str, Any]) -> None:
    given = {name: text}
    assert unitproperties.faults(given) == []
    late = unitproperties.SETTINGS[name].late
    assert (unitproperties.late if late else unitproperties.at_start)(given) == [wanted]
    assert (unitproperties.at_start if late else unitproperties.late)(given) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Description", ""),
        ("Description", "a\tb"),
        ("Description", "x" * 257),
        ("KillSignal", "SIGNONE"),
        ("KillSignal", "0"),
        ("KillSignal", "65"),
        ("KillSignal", "RTMIN+31"),
        ("KillSignal", "SIGSIGTERM"),
        ("RuntimeMaxSec", "0"),
        ("RuntimeMaxSec", ""),
        ("TimeoutStopSec", "-1"),
        ("TimeoutStopSec", "5 parsecs"),
        ("TimeoutStopSec", "99999999999y"),
        ("TimeoutStopSec", "1 min x"),
        ("IOAccounting", "maybe"),
        ("CPUQuota", "50"),
        ("CPUQuota", "0%"),
        ("CPUQuota", "infinity"),
        ("CPUWeight", "0"),
        ("CPUWeight", "10001"),
        ("CPUWeight", "٣"),
        ("IOWeight", "1.5"),
        ("MemoryMax", "0"),
        ("MemoryMax", "0%"),
        ("MemoryMax", "101%"),
        ("MemoryMax", "64m"),
        ("MemoryMax", "64MB"),
        ("MemoryMax", "-1"),
        ("MemoryMax", "16E"),
        ("MemoryMax", "9" * 300),
        ("TasksMax", "0"),
        ("TasksMax", "0%"),
        ("TasksMax", "many"),
    ],
)
def test_a_unit_property_that_systemd_would_not_take(name: str, text: str) -> None:
    (fault,) = unitproperties.faults({name: text})
    assert fault.startswith(f"unit property {name}=")


def test_limits_wait_until_the_runtimes_create_has_ended() -> None:
    texts = {"MemoryMax": "64M", "TimeoutStopSec": "3s", "Description": "mine", "CPUQuota": "1%"}
    me = Identity(
        "default",
        "c1",
        "t" * 32,
        "/b",
        "sdshim-default-c1.service",
        "s.slice",
        "/x/container",
        True,
        "/c.sock",
        runtime=RuntimeOptions(unit_properties=texts),
        stdio=Stdio(),
    )
    made = init_properties(
        InitUnit(me, "/s", ("runc",), "Container c1"), HostFacts(257, True, "/l")
    )
    names = [name for name, _, _ in made]
    assert len(names) == len(set(names))
    found = {name: value for name, _, value in made}
    assert (found["Description"], found["TimeoutStopUSec"]) == ("mine", 3_000_000)
    assert found["TasksMax"] == INFINITY
    assert not {"MemoryMax", "CPUQuotaPerSecUSec"} & found.keys()
    assert [name for name, _, _ in unitproperties.late(texts)] == [
        "MemoryMax",
        "CPUQuotaPerSecUSec",
    ]


def test_a_name_that_a_newer_version_has_recorded_is_passed_over() -> None:
    assert unitproperties.at_start({"NewThing": "1"}) == []
    assert unitproperties.late({"NewThing": "1"}) == []


# --- io_uid and io_gid


def test_the_fifos_are_given_to_the_containers_user_and_nothing_else_is(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    for name in ("in", "err"):
        os.mkfifo(tmp_path / name, 0o700)
    (tmp_path / "out").touch()
    stdin, stdout, stderr = (str(tmp_path / name) for name in ("in", "out", "err"))
    held = fifo.hold(Stdio(stdin, stdout, stderr))
    try:
        ownership.give(held, 0, 0)
        assert (tmp_path / "in").stat().st_uid == 0
        ownership.give(held, 1234, 5678)
    finally:
        held.close_all()
    owners = {p.name: (p.stat().st_uid, p.stat().st_gid) for p in tmp_path.iterdir()}
    mine = (os.geteuid(), os.getegid())
    assert owners == {"in": (1234, 5678), "err": (1234, 5678), "out": mine}


# --- whatever comes


def _survives(value: AnyMessage) -> None:
    try:
        got = decode(value)
    except InvalidArgument as error:
        assert str(error).isprintable() or "\n" in str(error)
        return
    unitproperties.at_start(got.runtime.unit_properties)
    unitproperties.late(got.runtime.unit_properties)
    assert got.runtime.root.startswith("/")


KINDS = st.sampled_from([options.RUNC, options.GENERIC, options.OURS, options.LEGACY])


@given(KINDS, st.binary(max_size=200))
def test_any_bytes_are_options_or_an_invalid_argument(kind: str, data: bytes) -> None:
    _survives(AnyMessage(type_url=kind, value=data))


@given(st.text(), st.binary(max_size=20))
def test_any_type_is_refused(kind: str, data: bytes) -> None:
    _survives(AnyMessage(type_url=kind, value=data))


@given(st.text(max_size=300))
def test_any_text_as_toml(body: str) -> None:
    _survives(toml(body))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PROPERTY_TEXTS = st.one_of(
    TEXTS, st.from_regex(r"[0-9.]{1,30} ?(K|M|G|E|%|min|ms|y|infinity)?", fullmatch=True)
)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(list(unitproperties.SETTINGS)), TEXTS), PROPERTY_TEXTS, max_size=4
    ),
    TEXTS,
    TEXTS,
)
def test_any_texts_in_our_own_message(properties: dict[str, str], runtime: str, mode: str) -> None:
    message = options_pb2.Options(oci_runtime=runtime, log=mode, unit_properties=properties)
    _survives(packed(message))


@given(
    st.dictionaries(
        st.sampled_from([*RUNC_KEYS, "oci_runtime", "log", "notify", "unit_properties", "x"]),
        st.sampled_from(
            ["''", "'/a'", "1", "-1", "1.5", "true", "[1]", "{}", "{a=1}", "inf", "1979-05-27"]
        ),
    )
)
def test_any_type_for_any_key(table: dict[str, str]) -> None:
    _survives(toml("".join(f"{key} = {value}\n" for key, value in table.items())))


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
