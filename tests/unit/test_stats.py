"""Recorded cgroup files → containerd's metrics, field by field (protocol 4.3 and 4.4)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.host import stats, stats_v1, stats_v2
from sdshim.host.stats import Reader
from sdshim.pb import metrics_v1_pb2, metrics_v2_pb2
from sdshim.pb.wellknown import pack

if TYPE_CHECKING:
    from google.protobuf.message import Message

FILES = Path(__file__).parent / "cgroups"
MAX = 2**64 - 1
NOT_OF_CGROUPS = {"network", "cgroup_stats"}
"""Fields that stock leaves empty too: they are in no file of a cgroup."""


def _reader(flavour: str) -> Reader:
    return Reader(FILES / flavour, FILES / "hugepages", FILES / "partitions")


def _metrics(flavour: str, unit: str) -> Any:
    reader = _reader(flavour)
    counters = reader.read(f"/{unit}.service/container")
    assert counters is not None
    return stats.metrics(counters, unified=reader.unified)


def _numbers(path: str) -> dict[str, int]:
    lines = (FILES / path).read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _plain(message: Message) -> dict[str, Any]:
    """Fields that are set, messages in them left out."""
    return {f.name: v for f, v in message.ListFields() if f.type != f.TYPE_MESSAGE}


def _unset(message: Message, path: str = "") -> list[str]:
    """Names of the fields of a message, and of the messages in it, that are empty."""
    found = []
    for field in message.DESCRIPTOR.fields:
        name, value = f"{path}{field.name}", getattr(message, field.name)
        if field.name in NOT_OF_CGROUPS:
            continue
        if field.type != field.TYPE_MESSAGE:
            found += [] if value else [name]
        elif isinstance(value, Sequence):
            found += _unset(value[0], f"{name}[0].") if value else [name]
        else:
            found += _unset(value, f"{name}.")
    return found


# --- v2


def test_every_field_of_v2_is_filled() -> None:
    assert _unset(_metrics("v2", "web")) == []


def test_v2_has_stocks_type_url() -> None:
    assert pack(_metrics("v2", "web")).type_url == "io.containerd.cgroups.v2.Metrics"


def test_v2_pids_and_cpu() -> None:
    message = _metrics("v2", "web")
    assert _plain(message.pids) == {"current": 17, "limit": 4096}
    numbers = _numbers("v2/web.service/container/cpu.stat")
    del numbers["nice_usec"], numbers["core_sched.force_idle_usec"]
    assert _plain(message.cpu) == numbers


def test_v2_memory_is_memory_stat_and_the_single_files() -> None:
    numbers = _numbers("v2/web.service/container/memory.stat")
    for name in ("workingset_refault", "workingset_activate"):
        numbers[name] = numbers[f"{name}_anon"] + numbers[f"{name}_file"]
    numbers.update(usage=134217728, usage_limit=268435456, max_usage=201326592)
    numbers.update(swap_usage=1052672, swap_limit=8388608, swap_max_usage=2105344)
    found = _plain(_metrics("v2", "web").memory)
    assert found == {name: numbers[name] for name in found}
    assert len(found) == 37


def test_v2_workingset_of_an_older_kernel() -> None:
    memory = _metrics("v2", "older").memory
    found = (memory.workingset_refault, memory.workingset_activate, memory.workingset_nodereclaim)
    assert found == (11, 12, 13)


def test_v2_memory_events() -> None:
    events = _metrics("v2", "web").memory_events
    wanted = {"low": 1, "high": 22, "max": 333, "oom": 4, "oom_kill": 5, "oom_group_kill": 6}
    assert _plain(events) == wanted


@pytest.mark.parametrize("unit", ["bare", "older"])
def test_v2_memory_events_are_left_out_when_the_file_is_absent_or_empty(unit: str) -> None:
    assert not _metrics("v2", unit).HasField("memory_events")


@pytest.mark.parametrize(("field", "number"), [("cpu", 1), ("memory", 2), ("io", 3)])
def test_v2_pressure(field: str, number: int) -> None:
    psi = getattr(_metrics("v2", "web"), field).psi
    some = {"avg10": number + 0.1, "avg60": number + 0.2, "avg300": number + 0.3}
    full = {"avg10": number + 0.4, "avg60": number + 0.5, "avg300": number + 0.6}
    assert _plain(psi.some) == {**some, "total": int(f"{number}1001")}
    assert _plain(psi.full) == {**full, "total": int(f"{number}2002")}


def test_v2_pressure_without_a_full_line_and_without_a_file() -> None:
    message = _metrics("v2", "older")
    assert message.cpu.psi.HasField("some") and not message.cpu.psi.HasField("full")
    assert message.cpu.psi.some.total == 77
    assert not message.memory.HasField("psi") and not message.io.HasField("psi")


def test_v2_io_rdma_and_hugetlb() -> None:
    message = _metrics("v2", "web")
    first, second = map(_plain, message.io.usage)
    assert first == {
        **{"major": 8, "minor": 16},
        **{"rbytes": 90112, "wbytes": 1949696, "rios": 22, "wios": 476},
    }
    assert second == {"major": 253, "rbytes": MAX, "wbytes": 4096, "rios": 3, "wios": 1}
    current, limit = ([(e.device, e.hca_handles, e.hca_objects) for e in r] for r in _rdma(message))
    assert current == [("mlx4_0", 2, 2000), ("ocrdma1", 3, 1)]
    assert limit == [("mlx4_0", 20, 20000), ("ocrdma1", 3, 2**32 - 1)]
    huge = {entry.pagesize: (entry.current, entry.max, entry.failcnt) for entry in message.hugetlb}
    assert huge == {"2MB": (1 << 21, 3 << 21, 7), "1GB": (1 << 30, 3 << 30, 8)}


def _rdma(message: Any) -> tuple[Any, Any]:
    return message.rdma.current, message.rdma.limit


def test_v2_max_is_the_largest_number() -> None:
    message = _metrics("v2", "older")
    assert message.pids.limit == message.memory.usage_limit == message.memory.swap_limit == MAX


def test_v2_host_without_controllers_has_cpu_times_and_empty_messages() -> None:
    message = _metrics("v2", "bare")
    assert _plain(message.cpu) == {
        **{"usage_usec": 100657, "user_usec": 97062, "system_usec": 3594}
    }
    for name in ("pids", "memory", "io", "rdma"):
        assert message.HasField(name), name
        assert not _plain(getattr(message, name)), name
    assert not message.hugetlb


def test_v2_odd_lines_and_values() -> None:
    message = _metrics("v2", "odd")
    assert _plain(message.cpu) == {"usage_usec": 5, "nr_throttled": MAX, "throttled_usec": 6}
    assert _plain(message.cpu.psi.some) == {"avg300": 0.5}
    assert message.cpu.psi.HasField("full") and not _plain(message.cpu.psi.full)
    assert message.memory.HasField("psi") and not message.memory.psi.ListFields()
    assert _plain(message.memory) == {"anon": MAX, "file": MAX}
    assert not _plain(message.pids)
    assert _plain(message.memory_events) == {"oom_kill": 1}
    assert [(e.major, e.minor, e.rbytes, e.wbytes) for e in message.io.usage] == [
        (8, 0, 1, 2),
        (253, 0, 0, 0),
        (259, 0, 0, 9),
    ]
    assert [(e.device, e.hca_handles, e.hca_objects) for e in message.rdma.current] == [
        ("mlx4_0", 0, 0),
        ("mlx5_0", 0, 2**32 - 1),
    ]
    (huge,) = message.hugetlb
    assert (huge.pagesize, huge.max, huge.failcnt) == ("2MB", MAX, 0)


# --- v1


def test_every_field_of_v1_is_filled() -> None:
    # the rest of blkio is CFQ's, which has a test of its own below
    cfq = {f"blkio.{name}" for name in metrics_v1_pb2.BlkIOStat.DESCRIPTOR.fields_by_name}
    cfq -= {"blkio.io_service_bytes_recursive", "blkio.io_serviced_recursive"}
    assert set(_unset(_metrics("v1", "web"))) == cfq


def test_v1_has_stocks_type_url() -> None:
    assert pack(_metrics("v1", "web")).type_url == "io.containerd.cgroups.v1.Metrics"


def test_v1_pids_and_cpu() -> None:
    counters = _reader("v1").read("/web.service/container")
    assert counters is not None
    message = stats_v1.metrics(counters, ticks=100)
    assert _plain(message.pids) == {"current": 5, "limit": 1024}
    assert _plain(message.cpu.usage) == {
        **{"total": 104733285, "user": 90_000_000, "kernel": 10_000_000},
        "per_cpu": [102837804, 1895481],
    }
    assert _plain(message.cpu.throttling) == {
        **{"periods": 40, "throttled_periods": 3, "throttled_time": 123456789}
    }


def test_v1_memory_stat() -> None:
    numbers = _numbers("v1/memory/web.service/container/memory.stat")
    names = {
        **{"pg_pg_in": "pgpgin", "pg_pg_out": "pgpgout"},
        **{"pg_fault": "pgfault", "pg_maj_fault": "pgmajfault"},
        "hierarchical_swap_limit": "hierarchical_memsw_limit",
    }
    names.update({f"total_{field}": f"total_{name}" for field, name in names.items()})
    found = _plain(_metrics("v1", "web").memory)
    assert found == {field: numbers[names.get(field, field)] for field in found}
    assert len(found) == 32


def test_v1_memory_entries_and_oom_control() -> None:
    message = _metrics("v1", "web")
    for number, name in enumerate(("usage", "swap", "kernel", "kernel_tcp"), 1):
        entry = getattr(message.memory, name)
        wanted = {"usage": 1, "max": 2, "failcnt": 3, "limit": 4}
        assert _plain(entry) == {field: number * 100 + unit for field, unit in wanted.items()}
    oom = {"oom_kill_disable": 1, "under_oom": 1, "oom_kill": 3}
    assert _plain(message.memory_oom_control) == oom


def test_v1_blkio_names_the_devices() -> None:
    message = _metrics("v1", "web").blkio
    found = [(e.op, e.device, e.major, e.minor, e.value) for e in message.io_serviced_recursive]
    assert found[0] == ("Read", "/dev/sdb", 8, 16, 11)
    assert found[-1] == ("Read", "", 7, 0, 1)
    assert len(found) == 7, "the total over all devices is no entry"
    values = [(e.op, e.value) for e in message.io_service_bytes_recursive]
    assert values == [("Read", 45056), ("Write", 90112), ("Total", 135168)]


def test_v1_blkio_of_a_kernel_with_cfq(tmp_path: Path) -> None:
    lines = "8:0 Read 1\n8:0 Total 1\nTotal 1\n"
    for folder in (tmp_path / "blkio", tmp_path / "blkio" / "box"):
        folder.mkdir()
        for name in stats.BLKIO_CFQ:
            one = "8:0 5\n" if name in ("time_recursive", "sectors_recursive") else lines
            (folder / f"blkio.{name}").write_text(one)
        (folder / "blkio.throttle.io_serviced").write_text("8:0 Read 9\nTotal 9\n")
    counters = Reader(tmp_path, FILES / "hugepages", FILES / "partitions").read("/box")
    assert counters is not None
    message = stats_v1.metrics(counters).blkio
    assert not [name for name in _unset(message) if not name.endswith((".minor", ".op"))]
    assert [(e.op, e.value) for e in message.io_serviced_recursive] == [("Read", 1), ("Total", 1)]
    assert [(e.op, e.value) for e in message.io_time_recursive] == [("", 5)]
    idle = {name: "Total 0\n" for name in counters if "throttle" not in name}
    fallen_back = stats_v1.metrics({**counters, **idle}).blkio
    assert [(e.op, e.value) for e in fallen_back.io_serviced_recursive] == [("Read", 9)]


def test_v1_rdma_and_hugetlb() -> None:
    message = _metrics("v1", "web")
    current, limit = ([(e.device, e.hca_handles, e.hca_objects) for e in r] for r in _rdma(message))
    assert current == [("mlx4_0", 2, 2000)]
    assert limit == [("mlx4_0", 2**32 - 1, 3000)]
    huge = {entry.pagesize: (entry.usage, entry.max, entry.failcnt) for entry in message.hugetlb}
    assert huge == {"2MB": (11, 12, 13), "1GB": (21, 22, 23)}


def test_v1_controllers_without_the_cgroup_give_no_message() -> None:
    message = _metrics("v1", "bare")
    assert {field.name for field, _ in message.ListFields()} == {"pids", "cpu", "memory", "blkio"}
    assert (message.pids.current, message.pids.limit) == (1, 0), "v1's word for no limit"
    assert message.cpu.HasField("usage") and message.cpu.HasField("throttling")
    assert message.memory.usage.limit == message.memory.hierarchical_memory_limit == 2**63 - 4096
    assert message.memory.HasField("swap") and not message.memory.swap.ListFields()
    assert not message.blkio.ListFields()


def test_v1_odd_lines_and_values() -> None:
    message = _metrics("v1", "odd")
    assert message.cpu.usage.total == MAX
    assert list(message.cpu.usage.per_cpu) == [1, 0]
    assert message.cpu.usage.user == 0 and message.cpu.usage.kernel > 0
    assert _plain(message.memory) == {"total_rss": 9}
    assert message.HasField("memory_oom_control") and not message.memory_oom_control.ListFields()
    assert [(e.op, e.value) for e in message.blkio.io_serviced_recursive] == [("", 3)]


# --- reading


@pytest.mark.parametrize("flavour", ["v1", "v2"])
def test_a_cgroup_that_is_gone_is_none(flavour: str) -> None:
    assert _reader(flavour).read("/nobody.service/container") is None


def test_files_longer_than_one_read_are_whole(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "box").mkdir()
    lines = [f"8:{minor} rbytes={minor} wbytes=0 rios=0 wios=0" for minor in range(2000)]
    (tmp_path / "box" / "io.stat").write_text("\n".join(lines) + "\n")
    counters = Reader(tmp_path, FILES / "hugepages").read("/box")
    assert counters is not None
    usage = stats_v2.metrics(counters).io.usage
    assert [entry.rbytes for entry in usage] == list(range(2000))


def test_page_sizes_are_spelt_as_the_kernel_spells_them(tmp_path: Path) -> None:
    for size in (64, 2048, 32768, 1048576, 16777216):
        (tmp_path / f"hugepages-{size}kB").mkdir()
    (tmp_path / "hugepages-odd").mkdir()
    assert set(stats.page_sizes(tmp_path)) == {"64KB", "2MB", "32MB", "1GB", "16GB"}
    assert stats.page_sizes(tmp_path / "none") == []


@pytest.mark.parametrize("flavour", ["v1", "v2"])
def test_nothing_at_all_makes_a_message(flavour: str) -> None:
    kind = {"v1": metrics_v1_pb2.Metrics, "v2": metrics_v2_pb2.Metrics}[flavour]
    assert isinstance(stats.metrics({}, unified=flavour == "v2"), kind)


def test_the_messages_are_imported_only_when_one_is_made() -> None:
    code = "import sys, sdshim.daemon.stats; print(*[m for m in sys.modules if 'metrics_v' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
