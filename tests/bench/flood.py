"""Containers that flood the journal: what do others' task calls feel of it?

`make flood ROOT=… CGROUP=…`: the latency of State and of the parts of a life, with none of them,
with CONTAINERS that do nothing but write (to the journal, by the pump), and with as many whose
output goes nowhere: that shows how much of it is the CPU's. Prints figures, judges nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

from tests.bench import memory
from tests.bench.lives import OURS, PHASES, Bench
from tests.host import Host
from tests.host.roots import ROOTS
from tests.tools.containerd import TASKS, Containerd

if TYPE_CHECKING:
    from collections.abc import Sequence

SOCKET = "/run/containerd/containerd.sock"
CONTAINERS = 20
STATES = 400
LIVES = 10
LINE = "a line of a container that has a lot to say, as long as lines of logs are on the average"
WRITE = f"while :; do echo {LINE}; done"
LOADS = {"nobody else": "", "into the journal": WRITE, "into nothing": f"{{ {WRITE}; }} >/dev/null"}


def _quantiles(values: Sequence[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49]:6.2f}  p90 {cuts[89]:6.2f}  p99 {cuts[98]:6.2f} ms"


def _states(bench: Bench, name: str) -> list[float]:
    found = []
    for _ in range(STATES):
        begun = time.perf_counter()
        bench.client.call(TASKS, "Get", container_id=name)
        found.append((time.perf_counter() - begun) * 1e3)
    return found


def _start(bench: Bench, *command: str) -> str:
    name, mounts = bench.make(OURS, *command)
    bench.client.call(TASKS, "Create", container_id=name, rootfs=mounts)
    bench.client.call(TASKS, "Start", container_id=name)
    return name


def _end(bench: Bench, name: str) -> None:
    waiting = bench.client.begin(TASKS, "Wait", container_id=name)
    bench.client.call(TASKS, "Kill", container_id=name, signal=9)
    waiting.result()
    bench.client.call(TASKS, "Delete", container_id=name)
    bench.client.remove_container(name)


def _lines(host: Host) -> int:
    """Lines of output in the journal, by the pump's unit."""
    host.run(["journalctl", "--sync"], timeout=120)
    argv = ["journalctl", "-q", "-o", "cat", "--output-fields=PRIORITY"]
    argv += ["_SYSTEMD_UNIT=sdshim.pump.service"]
    return len(host.run(argv, timeout=120).stdout.splitlines())


def measure(host: Host, bench: Bench, load: str, script: str) -> None:
    """One load: print its figures."""
    quiet = _start(bench, "sleep", "1000")
    loud = [_start(bench, "sh", "-c", script) for _ in range(CONTAINERS if script else 0)]
    time.sleep(1)  # the flood is up
    begun = time.perf_counter()
    states = _states(bench, quiet)
    lives = [bench.life(OURS) for _ in range(LIVES)]
    seconds = time.perf_counter() - begun
    held = memory.pss(memory.shim_pids(host, OURS))
    for name in (quiet, *loud):
        _end(bench, name)
    print(
        f"{load} ({len(loud)} containers, {seconds:.1f} s), Pss of daemon and pump {held:.1f} MiB"
    )
    print(f"  State   {_quantiles(states)}")
    for phase in (*PHASES, "life"):
        print(f"  {phase:7} p50 {statistics.median(life[phase] for life in lives):6.1f} ms")
    print(flush=True)


def main() -> int:
    """Boot, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood")
    parser.add_argument("--root", choices=[root.name for root in ROOTS], default="self")
    parser.add_argument("--cgroup", choices=["v2", "v1"], default="v2", help="v1 is the hybrid")
    arguments = parser.parse_args()
    with (
        Host(arguments.root, arguments.cgroup) as host,
        Containerd(str(host.path(SOCKET))) as client,
    ):
        bench = Bench(host, client)
        bench.life(OURS)
        for load, script in LOADS.items():
            measure(host, bench, load, script)
        print(f"{_lines(host)} lines of them are still in the journal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
