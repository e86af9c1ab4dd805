"""Counters of a cgroup v2 → io.containerd.cgroups.v2.Metrics (protocol 4.3), as stock fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdshim.host.statfile import device, huge_sizes, keyed, number, pairs, rdma, single
from sdshim.pb import metrics_v2_pb2 as pb

if TYPE_CHECKING:
    from sdshim.host.stats import Counters

SPLIT = ("workingset_refault", "workingset_activate")
"""Since Linux 5.9 memory.stat counts these apart, as …_anon and …_file."""


def metrics(counters: Counters) -> pb.Metrics:
    """The whole message; what the kernel does not have is 0 or absent."""
    return pb.Metrics(
        pids=pb.PidsStat(
            current=single(counters, "pids.current"), limit=single(counters, "pids.max")
        ),
        cpu=pb.CPUStat(
            **_same_names(pb.CPUStat, pairs(counters.get("cpu.stat", ""))),
            psi=_pressure(counters, "cpu"),
        ),
        memory=_memory(counters),
        memory_events=_memory_events(counters),
        io=pb.IOStat(usage=_io(counters.get("io.stat", "")), psi=_pressure(counters, "io")),
        rdma=pb.RdmaStat(
            current=_rdma(counters.get("rdma.current", "")),
            limit=_rdma(counters.get("rdma.max", "")),
        ),
        hugetlb=[_huge(counters, size) for size in huge_sizes(counters)],
    )


def _same_names(message: Any, values: dict[str, int]) -> dict[str, int]:
    """Those values whose names in the file are names of integer fields in the message."""
    fields = message.DESCRIPTOR.fields_by_name
    return {
        name: value
        for name, value in values.items()
        if name in fields and fields[name].type == fields[name].TYPE_UINT64
    }


def _memory(counters: Counters) -> pb.MemoryStat:
    values = pairs(counters.get("memory.stat", ""))
    for name in SPLIT:
        if name not in values:
            values[name] = values.get(f"{name}_anon", 0) + values.get(f"{name}_file", 0)
    values.update(
        usage=single(counters, "memory.current"),
        usage_limit=single(counters, "memory.max"),
        swap_usage=single(counters, "memory.swap.current"),
        swap_limit=single(counters, "memory.swap.max"),
        max_usage=single(counters, "memory.peak"),
        swap_max_usage=single(counters, "memory.swap.peak"),
    )
    return pb.MemoryStat(
        **_same_names(pb.MemoryStat, values),
        psi=_pressure(counters, "memory"),
    )


def _memory_events(counters: Counters) -> pb.MemoryEvents | None:
    values = pairs(counters.get("memory.events", ""))
    return pb.MemoryEvents(**_same_names(pb.MemoryEvents, values)) if values else None


def _pressure(counters: Counters, controller: str) -> pb.PSIStats | None:
    text = counters.get(f"{controller}.pressure")
    if text is None:
        return None
    found: dict[str, pb.PSIData] = {}
    for names, values in keyed(text):
        if names[0] in ("some", "full"):
            found[names[0]] = pb.PSIData(
                avg10=_share(values.get("avg10", "")),
                avg60=_share(values.get("avg60", "")),
                avg300=_share(values.get("avg300", "")),
                total=number(values.get("total", "")) or 0,
            )
    return pb.PSIStats(**found)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _io(text: str) -> list[pb.IOEntry]:
    entries = []
    for names, values in keyed(text):
        # Kernels may leave out the line break behind a device without statistics: the last counts.
        if where := device(names[-1]):
            numbers = {
                name: number(values.get(name, "")) or 0
                for name in ("rbytes", "wbytes", "rios", "wios")
            }
            entries.append(pb.IOEntry(major=where[0], minor=where[1], **numbers))
    return entries


def _rdma(text: str) -> list[pb.RdmaEntry]:
    return [
        pb.RdmaEntry(device=name, hca_handles=handles, hca_objects=objects)
        for name, handles, objects in rdma(text)
    ]


def _huge(counters: Counters, size: str) -> pb.HugeTlbStat:
    return pb.HugeTlbStat(
        current=single(counters, f"hugetlb.{size}.current"),
        max=single(counters, f"hugetlb.{size}.max"),
        pagesize=size,
        failcnt=pairs(counters.get(f"hugetlb.{size}.events", "")).get("max", 0),
    )
