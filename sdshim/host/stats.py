"""The counters of a container's cgroup: read as the kernel writes them, made into messages later.

`Reader.read` is all that must happen while the cgroup is there: the files' text, by name. What it
means (`metrics`, protocol 4.3 and 4.4) is worked out when somebody asks, also long after the cgroup
has gone. The messages are imported only then.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.host.cgroup import CGROUP_ROOT, unified

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

Counters = dict[str, str]
"""Text of a cgroup's files by name; what cannot be read is not in it."""

HUGEPAGES = Path("/sys/kernel/mm/hugepages")
PARTITIONS = Path("/proc/partitions")
DEVICES = "partitions"
"""Its name among the counters: it has the names of the devices in v1's block statistics."""

V2 = (
    *("pids.current", "pids.max", "cpu.stat", "cpu.pressure"),
    *("memory.stat", "memory.current", "memory.max", "memory.peak", "memory.pressure"),
    *("memory.swap.current", "memory.swap.max", "memory.swap.peak", "memory.events"),
    *("io.stat", "io.pressure", "rdma.current", "rdma.max"),
)
V2_HUGE = ("current", "max", "events")

MEMORY_ENTRIES = ("memory", "memory.memsw", "memory.kmem", "memory.kmem.tcp")
BLKIO_CFQ = (
    *("io_service_bytes_recursive", "io_serviced_recursive", "io_queued_recursive"),
    *("io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive"),
    *("time_recursive", "sectors_recursive"),
)
V1 = {
    "pids": ("pids.current", "pids.max"),
    "cpu": ("cpu.stat",),
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_percpu", "cpuacct.stat"),
    "memory": (
        *("memory.stat", "memory.oom_control"),
        *(
            f"{entry}.{value}"
            for entry in MEMORY_ENTRIES
            for value in ("usage_in_bytes", "max_usage_in_bytes", "limit_in_bytes", "failcnt")
        ),
    ),
    "blkio": ("blkio.throttle.io_serviced", "blkio.throttle.io_service_bytes"),
    "rdma": ("rdma.current", "rdma.max"),
}
V1_HUGE = ("usage_in_bytes", "max_usage_in_bytes", "failcnt")

_CHUNK = 16 << 10


class Reader:
    """Reads the cgroups below one root; what the host has is looked up once."""

    def __init__(
        self,
        root: Path = CGROUP_ROOT,
        hugepages: Path = HUGEPAGES,
        partitions: Path = PARTITIONS,
    ) -> None:
        self.unified = unified(root)
        self.oom = "memory.events" if self.unified else "memory.oom_control"
        """The file that counts processes killed for want of memory."""
        self._partitions = partitions
        sizes = page_sizes(hugepages)
        if self.unified:
            self._places = [(str(root), (*V2, *_huge(sizes, V2_HUGE)))]
            return
        places = {**V1, "hugetlb": _huge(sizes, V1_HUGE)}
        if (root / "blkio" / "blkio.io_serviced_recursive").exists():  # kernels with CFQ
            places["blkio"] += tuple(f"blkio.{name}" for name in BLKIO_CFQ)
        self._places = [(f"{root}/{name}", files) for name, files in places.items() if files]

    def read(self, cgroup: str) -> Counters | None:
        """The files of a cgroup (its path from the hierarchy's root); None when it is gone.

        On v1 each controller is a hierarchy of its own, and those without the cgroup are left out.
        """
        found: Counters = {}
        for base, files in self._places:
            _read_folder(base + cgroup, files, found)
        self._name_devices(found)
        return found or None

    def parse(self, lines: str) -> Counters:
        """The same from what the exit hook has copied, `NAME:LINE` for each line of each file."""
        known = {name for _, files in self._places for name in files}
        found: Counters = {}
        for line in lines.splitlines(keepends=True):
            name, _, rest = line.partition(":")
            if name in known and rest.endswith("\n"):
                found[name] = found.get(name, "") + rest
        self._name_devices(found)
        return found

    def _name_devices(self, found: Counters) -> None:
        if any(name.startswith("blkio.") and ":" in text for name, text in found.items()):
            _read_folder(self._partitions.parent, (self._partitions.name,), found)


@functools.cache
def reader() -> Reader:
    """The one of this host."""
    return Reader()


def metrics(counters: Counters, *, unified: bool) -> Message:
    """io.containerd.cgroups.v2.Metrics, or v1's on a v1 host."""
    if unified:
        from sdshim.host import stats_v2

        return stats_v2.metrics(counters)
    from sdshim.host import stats_v1

    return stats_v1.metrics(counters)


def page_sizes(folder: Path = HUGEPAGES) -> list[str]:
    """The huge pages of this machine as cgroup files name them: 64KB, 2MB, 1GB."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    sizes = []
    for name in names:
        kilobytes = name.removeprefix("hugepages-").removesuffix("kB")
        if kilobytes.isdigit() and name == f"hugepages-{kilobytes}kB":
            size, unit = int(kilobytes), 0
            while size >= 1024 and unit < 2:
                size, unit = size >> 10, unit + 1
            sizes.append(f"{size}{('KB', 'MB', 'GB')[unit]}")
    return sizes


def _huge(sizes: Iterable[str], values: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"hugetlb.{size}.{value}" for size in sizes for value in values)


def _read_folder(path: str | Path, names: Iterable[str], into: Counters) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for name in names:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            except OSError:
                continue
            try:
                into[name] = _read_all(fd).decode(errors="replace")
            except OSError:  # e.g. EOPNOTSUPP: pressure is switched off; ENODEV: going away
                continue
            finally:
                os.close(fd)
    finally:
        os.close(folder)


def _read_all(fd: int) -> bytes:
    data = part = os.read(fd, _CHUNK)
    while len(part) == _CHUNK:
        part = os.read(fd, _CHUNK)
        data += part
    return data
