"""OCI resources → properties of the unit."""

from __future__ import annotations

from typing import Any

import pytest

from sdshim.core import devicerules
from sdshim.core.errors import InvalidArgument
from sdshim.core.resources import (
    INFINITY,
    decode,
    fitting,
    properties,
    raised,
    restored,
)

GIB = 2**30


def _v2(**parts: Any) -> dict[str, Any]:
    return {name: value for name, _, value in properties(parts, unified=True)}


def _v1(**parts: Any) -> dict[str, Any]:
    return {name: value for name, _, value in properties(parts, unified=False)}


def test_nothing_is_set_for_what_is_not_given() -> None:
    empty: dict[str, Any] = {"memory": {}, "cpu": None, "devices": [{"allow": False}]}
    assert properties(empty, unified=True) == []
    assert _v2(memory={"limit": 0}, pids={"limit": 0}, cpu={"quota": 0, "shares": 0}) == {}


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [
        ({"limit": GIB}, {"MemoryMax": GIB}),
        ({"limit": GIB, "swap": GIB}, {"MemoryMax": GIB, "MemorySwapMax": 0}),
        ({"limit": GIB, "swap": 3 * GIB}, {"MemoryMax": GIB, "MemorySwapMax": 2 * GIB}),
        ({"limit": GIB, "swap": -1}, {"MemoryMax": GIB, "MemorySwapMax": INFINITY}),
        ({"limit": -1}, {"MemoryMax": INFINITY, "MemorySwapMax": INFINITY}),
        ({"reservation": GIB}, {"MemoryLow": GIB}),
    ],
)
def test_memory(memory: dict[str, int], wanted: dict[str, int]) -> None:
    assert _v2(memory=memory) == wanted


def test_v1_has_a_memory_limit_and_no_more() -> None:
    assert _v1(memory={"limit": GIB, "swap": 2 * GIB, "reservation": 5}) == {"MemoryMax": GIB}


@pytest.mark.parametrize(
    ("quota", "period", "per_second"),
    [(1000, 100_000, 10_000), (150_000, 100_000, 1_500_000), (10_000, 30_000, 333_334)],
)
def test_a_quota_is_never_tighter_than_the_containers(
    quota: int, period: int, per_second: int
) -> None:
    wanted = {"CPUQuotaPerSecUSec": per_second, "CPUQuotaPeriodUSec": period}
    assert _v2(cpu={"quota": quota, "period": period}) == wanted
    assert per_second * period // 10**6 >= quota


def test_no_quota_and_the_default_period() -> None:
    assert _v2(cpu={"quota": -1, "period": 100_000}) == {"CPUQuotaPerSecUSec": INFINITY}
    assert _v2(cpu={"quota": 50_000})["CPUQuotaPerSecUSec"] == 500_000


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (10**9, 10000)]
)
def test_shares(shares: int, weight: int) -> None:
    assert _v2(cpu={"shares": shares}) == {"CPUWeight": weight}
    assert _v1(cpu={"shares": shares}) == {"CPUShares": min(shares, 262144)}


@pytest.mark.parametrize(
    ("text", "mask"),
    [("0", b"\x01"), ("0-3,8", b"\x0f\x01"), ("1, 3", b"\x0a"), ("9", b"\x00\x02")],
)
def test_cpus_and_nodes(text: str, mask: bytes) -> None:
    wanted = {"AllowedCPUs": mask, "AllowedMemoryNodes": mask}
    assert _v2(cpu={"cpus": text, "mems": text}) == wanted
    assert _v1(cpu={"cpus": text, "mems": text}) == {}


def test_tasks_and_io() -> None:
    assert _v2(pids={"limit": 5}) == {"TasksMax": 5}
    assert _v1(pids={"limit": -1}) == {"TasksMax": INFINITY}
    assert _v2(blockIO={"weight": 1000}) == {"IOWeight": 10000}
    assert _v1(blockIO={"weight": 10}) == {"BlockIOWeight": 10}


DEVICES = {
    "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}, {"major": 8, "minor": 1}],
    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
    "throttleWriteBpsDevice": [
        {"major": 8, "minor": 0, "rate": 2000},
        {"major": 253, "minor": 7, "rate": 0},
    ],
    "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 30}],
    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 40}],
}
DISK = "/dev/block/8:0"


def test_rates_and_weights_of_devices() -> None:
    assert _v2(blockIO=DEVICES) == {
        "IODeviceWeight": [(DISK, 10000)],
        "IOReadBandwidthMax": [(DISK, 1000)],
        "IOWriteBandwidthMax": [(DISK, 2000), ("/dev/block/253:7", INFINITY)],
        "IOReadIOPSMax": [(DISK, 30)],
        "IOWriteIOPSMax": [(DISK, 40)],
    }
    assert _v1(blockIO=DEVICES) == {
        "BlockIODeviceWeight": [(DISK, 1000)],
        "BlockIOReadBandwidth": [(DISK, 1000)],
        "BlockIOWriteBandwidth": [(DISK, 2000), ("/dev/block/253:7", INFINITY)],
    }


def test_a_refused_update_opens_the_devices_that_it_has_added() -> None:
    old = {"IOReadIOPSMax": [["/dev/vda", 5]], "TasksMax": 7}
    new = [("IOReadIOPSMax", "a(st)", [("/dev/vda", 9), (DISK, 1)]), ("TasksMax", "t", 8)]
    assert raised(old, new) == [("TasksMax", "t", 8)]
    assert restored(old, new) == [
        ("IOReadIOPSMax", "a(st)", [["/dev/vda", 5], (DISK, INFINITY)]),
        ("TasksMax", "t", 7),
    ]


def test_the_files_of_io_and_cpu_sets() -> None:
    files = {
        "io.max": "8:0 rbps=1000 wiops=max\n253:7 rbps=5\nnonsense rbps=1\n8:1 rbps=x",
        "io.weight": "default 200",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "cpu.idle": "1",
    }
    assert _v2(unified=files) == {
        "IOWeight": 200,
        "IOReadBandwidthMax": [(DISK, 1000), ("/dev/block/253:7", 5)],
        "IOWriteIOPSMax": [(DISK, INFINITY)],
        "AllowedCPUs": b"\x03",
        "AllowedMemoryNodes": b"\x01",
        "CPUWeight": 0,
    }
    assert _v2(unified={"io.max": "", "io.weight": "8:0 7", "cpuset.cpus": "\n"}) == {}


DENY = {"allow": False, "access": "rwm"}


def test_device_rules_are_never_tighter_than_the_containers() -> None:
    rules = [
        DENY,
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "w"},
        {"allow": False, "type": "b", "major": 8, "minor": 0, "access": "w"},
    ]
    policy, allowed = devicerules.properties(rules)
    assert policy == ("DevicePolicy", "s", "closed")
    assert allowed[2] == [
        ("char-*", "m"),
        ("block-*", "m"),
        ("/dev/char/1:3", "rwm"),
        ("char-136", "rwm"),
        ("/dev/block/8:0", "rw"),
    ]
    every = {"allow": True, "access": "rwm"}
    for open_to_all in ([], None, "x", [every], [DENY, every], [{**every, "type": "a"}], [5]):
        assert devicerules.properties(open_to_all) == []
    assert devicerules.properties([every, {**DENY, "type": "a"}])[1][2] == []


def test_unified_files_win_over_the_rest() -> None:
    files = {"memory.max": "max", "memory.min": "4096", "cpu.max": "5000 10000", "misc.max": "x"}
    assert _v2(memory={"limit": GIB}, unified=files) == {
        "MemoryMax": INFINITY,
        "MemoryMin": 4096,
        "CPUQuotaPeriodUSec": 10000,
        "CPUQuotaPerSecUSec": 500_000,
    }
    assert _v1(unified=files) == {}


def test_only_what_gives_more_is_set_first() -> None:
    new = properties(
        {"memory": {"limit": 100}, "pids": {"limit": 9}, "cpu": {"cpus": "0-1"}}, unified=True
    )
    names = {
        one[0] for one in raised({"MemoryMax": 50, "TasksMax": 10, "AllowedCPUs": b"\x01"}, new)
    }
    assert names == {"MemoryMax", "AllowedCPUs"}
    assert raised({"MemoryMax": INFINITY, "TasksMax": INFINITY, "AllowedCPUs": b""}, new) == []


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"7", b"null", b"[" * 100_000, b"\xff"])
def test_what_is_no_object_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        decode(value)


@pytest.mark.parametrize(
    "parts",
    [
        {"memory": 5},
        {"memory": {"limit": "6m"}},
        {"memory": {"limit": True}},
        {"memory": {"limit": 2**70}},
        {"cpu": {"quota": 1.5}},
        {"cpu": {"cpus": 3}},
        {"cpu": {"cpus": "3-1"}},
        {"cpu": {"mems": "0-99999"}},
        {"pids": []},
        {"blockIO": {"weight": "9"}},
        {"blockIO": {"weightDevice": {"major": 8}}},
        {"blockIO": {"throttleReadBpsDevice": [7]}},
        {"blockIO": {"throttleReadBpsDevice": [{"major": "8", "minor": 0, "rate": 1}]}},
        {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0}]}},
        {"blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": -1}]}},
    ],
)
def test_a_value_of_a_wrong_type_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        properties(parts, unified=True)


def test_a_memory_limit_below_what_is_used_must_wait_and_nothing_else() -> None:
    given = properties({"memory": {"limit": 6}, "pids": {"limit": 5}}, unified=True)
    memory, tasks = given
    assert fitting(given, 7) == ([tasks], [memory])
    assert fitting(given, 6) == (given, [])
    assert fitting(given, None) == (given, [])
    assert fitting([("MemoryMax", "t", INFINITY)], 7)[1] == []
