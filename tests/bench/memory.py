"""Memory of all processes of a shim: Pss, so that shared pages are counted once.

On the root `self` other Python processes of the machine may share pages with the daemon, and make
its Pss look smaller; its Rss is the figure without any sharing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.lives import OURS
from tests.tools.containerd import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.lives import Bench
    from tests.host import Host

CGROUPS = ("system.slice/sdshim.service", "system.slice/sdshim.pump.service")
"""The daemon's, and, while containers' output goes to the journal, the pump's."""
STOCK_NAME = "containerd-shim-runc-v2"
MIB = 1024.0


def pss(pids: Sequence[int], kind: str = "Pss") -> float:
    """MiB of some processes together."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(kind + ":"))
    return total / MIB


def shim_pids(host: Host, runtime: str) -> list[int]:
    """The processes (pids outside) that are there because of this shim."""
    if runtime == OURS:
        files = [host.cgroup_path / group / "cgroup.procs" for group in CGROUPS]
        return [int(pid) for file in files if file.exists() for pid in file.read_text().split()]
    space = Path(f"/proc/{host.pid}/ns/pid").readlink()
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_stock(entry) and (entry / "ns/pid").readlink() == space
    ]


def _is_stock(entry: Path) -> bool:
    try:
        return STOCK_NAME.encode() in (entry / "cmdline").read_bytes().partition(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def with_containers(bench: Bench, runtime: str, counts: Sequence[int]) -> dict[int, float]:
    """Number of running containers → Pss of the shim's processes."""
    call = bench.client.call
    names: list[str] = []
    found: dict[int, float] = {}
    for wanted in counts:
        while len(names) < wanted:
            name, mounts = bench.make(runtime, "sleep", "1000")
            names.append(name)
            call(TASKS, "Create", container_id=name, rootfs=mounts)
            call(TASKS, "Start", container_id=name)
        found[wanted] = pss(shim_pids(bench.host, runtime))
    for name in names:
        waiting = bench.client.begin(TASKS, "Wait", container_id=name)
        call(TASKS, "Kill", container_id=name, signal=9, all=True)
        waiting.result()
        call(TASKS, "Delete", container_id=name)
        bench.client.remove_container(name)
    return found
