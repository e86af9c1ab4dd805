"""Counters of a cgroup v1 → io.containerd.cgroups.v1.Metrics (protocol 4.4), as stock fills it.

A controller without the cgroup gives no message, but `cpu` is always there. An unlimited number of
pids is 0 here: that is what stock says, v1's messages being older than the word `max`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sdshim.host.statfile import device, huge_sizes, number, pairs, rdma, single
from sdshim.host.stats import BLKIO_CFQ, DEVICES, MEMORY_ENTRIES
from sdshim.pb import metrics_v1_pb2 as pb

if TYPE_CHECKING:
    from sdshim.host.stats import Counters

PLAIN = (
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "inactive_anon"),
    *("active_anon", "inactive_file", "active_file", "unevictable"),
)
RENAMED = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
}
MEMORY = {
    "hierarchical_memory_limit": "hierarchical_memory_limit",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
    **{
        f"{total}{name}": f"{total}{field}"
        for total in ("", "total_")
        for name, field in {**dict(zip(PLAIN, PLAIN, strict=True)), **RENAMED}.items()
    },
}
"""Name in memory.stat → field."""
THROTTLE = {
    "nr_periods": "periods",
    "nr_throttled": "throttled_periods",
    "throttled_time": "throttled_time",
}
BLKIO_FIELDS = {name: name for name in BLKIO_CFQ} | {"time_recursive": "io_time_recursive"}
BLKIO_THROTTLE = {
    "throttle.io_serviced": "io_serviced_recursive",
    "throttle.io_service_bytes": "io_service_bytes_recursive",
}
_NS = 1_000_000_000


def metrics(counters: Counters, ticks: int = 0) -> pb.Metrics:
    """The whole message. `ticks` a second are what cpuacct.stat counts in (0: this machine's)."""
    message = pb.Metrics(cpu=_cpu(counters, ticks or os.sysconf("SC_CLK_TCK")))
    if "pids.current" in counters:
        message.pids.current = single(counters, "pids.current")
        message.pids.limit = single(counters, "pids.max", unlimited=0)
    if "memory.stat" in counters:
        message.memory.CopyFrom(_memory(counters))
    if "memory.oom_control" in counters:
        values = pairs(counters["memory.oom_control"])
        message.memory_oom_control.CopyFrom(
            pb.MemoryOomControl(
                **{n: values.get(n, 0) for n in ("oom_kill_disable", "under_oom", "oom_kill")}
            )
        )
    if any(name.startswith("blkio.") for name in counters):
        message.blkio.CopyFrom(_blkio(counters))
    if "rdma.current" in counters:
        message.rdma.CopyFrom(
            pb.RdmaStat(
                current=_rdma(counters["rdma.current"]),
                limit=_rdma(counters.get("rdma.max", "")),
            )
        )
    message.hugetlb.extend(_huge(counters, size) for size in huge_sizes(counters))
    return message


def _cpu(counters: Counters, ticks: int) -> pb.CPUStat:
    throttle = pairs(counters.get("cpu.stat", ""))
    spent = pairs(counters.get("cpuacct.stat", ""))
    each = (number(word) for word in counters.get("cpuacct.usage_percpu", "").split())
    return pb.CPUStat(
        usage=pb.CPUUsage(
            total=single(counters, "cpuacct.usage"),
            user=spent.get("user", 0) * _NS // ticks,
            kernel=spent.get("system", 0) * _NS // ticks,
            per_cpu=[value for value in each if value is not None],
        ),
        throttling=pb.Throttle(
            **{field: throttle.get(name, 0) for name, field in THROTTLE.items()}
        ),
    )


def _memory(counters: Counters) -> pb.MemoryStat:
    values = pairs(counters["memory.stat"])
    usage, swap, kernel, kernel_tcp = (
        pb.MemoryEntry(
            limit=single(counters, f"{entry}.limit_in_bytes"),
            usage=single(counters, f"{entry}.usage_in_bytes"),
            max=single(counters, f"{entry}.max_usage_in_bytes"),
            failcnt=single(counters, f"{entry}.failcnt"),
        )
        for entry in MEMORY_ENTRIES
    )
    return pb.MemoryStat(
        **{MEMORY[name]: value for name, value in values.items() if name in MEMORY},
        usage=usage,
        swap=swap,
        kernel=kernel,
        kernel_tcp=kernel_tcp,
    )


def _blkio(counters: Counters) -> pb.BlkIOStat:
    """CFQ's statistics, or, when no device has any, those of the throttling layer."""
    names = _devices(counters.get(DEVICES, ""))
    for table in (BLKIO_FIELDS, BLKIO_THROTTLE):
        found = {
            field: _entries(counters.get(f"blkio.{name}", ""), names)
            for name, field in table.items()
        }
        if any(found.values()):
            return pb.BlkIOStat(**found)
    return pb.BlkIOStat()


def _entries(text: str, names: dict[tuple[int, int], str]) -> list[pb.BlkIOEntry]:
    """Lines of `major:minor [operation] value`; the last one is a `Total` over all devices."""
    entries = []
    for line in text.splitlines():
        words = line.split()
        where = device(words[0]) if words else None
        value = number(words[-1]) if len(words) in (2, 3) else None
        if where and value is not None:
            entries.append(
                pb.BlkIOEntry(
                    op=words[1] if len(words) == 3 else "",
                    device=names.get(where, ""),
                    major=where[0],
                    minor=where[1],
                    value=value,
                )
            )
    return entries


def _devices(partitions: str) -> dict[tuple[int, int], str]:
    """Device files by number, of /proc/partitions: `major minor blocks name`."""
    found: dict[tuple[int, int], str] = {}
    for line in partitions.splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdigit() and words[1].isdigit():
            found.setdefault((int(words[0]), int(words[1])), f"/dev/{words[3]}")
    return found


def _rdma(text: str) -> list[pb.RdmaEntry]:
    return [
        pb.RdmaEntry(device=name, hca_handles=handles, hca_objects=objects)
        for name, handles, objects in rdma(text)
    ]


def _huge(counters: Counters, size: str) -> pb.HugetlbStat:
    return pb.HugetlbStat(
        usage=single(counters, f"hugetlb.{size}.usage_in_bytes"),
        max=single(counters, f"hugetlb.{size}.max_usage_in_bytes"),
        failcnt=single(counters, f"hugetlb.{size}.failcnt"),
        pagesize=size,
    )
