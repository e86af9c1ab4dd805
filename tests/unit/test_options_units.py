"""Unit properties among the options of a task; and whatever else may come as options."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core import unitproperties
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import Identity, RuntimeOptions, Stdio
from sdshim.core.options import RUNC_KEYS
from sdshim.core.unitspec import HostFacts, InitUnit, init_properties
from sdshim.daemon import options
from sdshim.pb import options_pb2
from tests.unit.options_kit import decode, packed, toml

INFINITY = 2**64 - 1


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
        ("CPUWeight", "idle", ("CPUWeight", "t", 0)),
        ("AllowedCPUs", "0-3 8", ("AllowedCPUs", "ay", b"\x0f\x01")),
        ("AllowedMemoryNodes", "1,0", ("AllowedMemoryNodes", "ay", b"\x03")),
        ("IODeviceWeight", "/dev/vda 50", ("IODeviceWeight", "a(st)", [("/dev/vda", 50)])),
        (
            "IOReadBandwidthMax",
            "/dev/vda 5M",
            ("IOReadBandwidthMax", "a(st)", [("/dev/vda", 5 * 10**6)]),
        ),
        (
            "IOWriteIOPSMax",
            "/dev/vda infinity",
            ("IOWriteIOPSMax", "a(st)", [("/dev/vda", INFINITY)]),
        ),
        ("IPAccounting", "yes", ("IPAccounting", "b", True)),
        ("CPUAccounting", "no", ("CPUAccounting", "b", False)),
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
        ("AllowedCPUs", ""),
        ("AllowedCPUs", "3-1"),
        ("AllowedCPUs", "9999"),
        ("IOReadBandwidthMax", "/dev/vda"),
        ("IOReadBandwidthMax", "vda 5M"),
        ("IOReadBandwidthMax", "/dev/../etc 5M"),
        ("IOReadBandwidthMax", "/dev/vda 0"),
        ("IODeviceWeight", "/dev/vda 0"),
        ("CPUWeight", "idler"),
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
