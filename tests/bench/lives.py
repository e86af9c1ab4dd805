"""Container lives through containerd's API: create, start, wait, delete, each timed.

The driver runs outside the host, so that the host's cgroup holds the shims, containerd, systemd and
the containers, but not the driver. Snapshot and container record are made and removed outside the
timed part: they are containerd's alone. Every life runs `true` without streams.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.host import BUSYBOX
from tests.tools.containerd import TASKS, Containerd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host

OURS, STOCK = "io.containerd.systemd.v1", "io.containerd.runc.v2"
RUNTIMES = (OURS, STOCK)
PHASES = ("create", "start", "wait", "delete")
TEMPLATE = "bench-template"
SETTLE = 0.3  # seconds after a block in which what it left to do in the background is done

Life = dict[str, float]
"""Phase → ms, and their sum as `life`."""


@dataclass(slots=True)
class Bench:
    """One booted host with a template container, and a client of its containerd."""

    host: Host
    client: Containerd
    first: int = 0
    """The number in the name of the first container."""
    spec: dict[str, Any] = field(init=False)
    parent: str = field(init=False)
    _numbers: count[int] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = count(self.first)
        listed = self.host.run(["ctr", "container", "ls", "-q"]).stdout.split()
        if TEMPLATE not in listed:
            self.host.run(["ctr", "container", "create", BUSYBOX, TEMPLATE, "true"])
        self.spec = self.client.spec_of(TEMPLATE)
        self.spec["linux"]["resources"].pop("cpu", None)  # a v2 host may have no controller
        self.parent = self.client.parent_of(TEMPLATE)

    def make(self, runtime: str, *command: str, terminal: bool = False) -> tuple[str, list[Any]]:
        """A container that is not running yet: its name and mounts."""
        name = f"bench{next(self._numbers)}"
        spec = copy.deepcopy(self.spec)
        spec["linux"]["cgroupsPath"] = f"/default/{name}"
        spec["process"] |= {"args": list(command) or ["true"], "terminal": terminal}
        return name, self.client.create_container(name, runtime, spec, self.parent)

    def life(self, runtime: str) -> Life:
        """One container's life, timed."""
        name, mounts = self.make(runtime)
        call = self.client.call
        marks = [time.perf_counter()]
        call(TASKS, "Create", container_id=name, rootfs=mounts)
        marks.append(time.perf_counter())
        # asked for before the start, as ctr and the CRI do
        waiting = self.client.begin(TASKS, "Wait", container_id=name)
        call(TASKS, "Start", container_id=name)
        marks.append(time.perf_counter())
        exited = waiting.result()
        marks.append(time.perf_counter())
        deleted = call(TASKS, "Delete", container_id=name)
        marks.append(time.perf_counter())
        if exited.exit_status or deleted.exit_status:
            raise RuntimeError(f"{runtime}: `true` ended with {exited.exit_status}")
        self.client.remove_container(name)
        spans = pairwise(marks)
        life = dict(zip(PHASES, [(end - begin) * 1000 for begin, end in spans], strict=True))
        return {**life, "life": (marks[-1] - marks[0]) * 1000}

    def lives(self, runtime: str, parallel: int) -> list[Life]:
        """As many lives at once."""
        if parallel == 1:
            return [self.life(runtime)]
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(self.life, [runtime] * parallel))


def take_turns(
    contestants: dict[str, Callable[[], list[Life]]],
    rounds: int,
    warm_up: int,
    beat: Callable[[str], None],
) -> dict[str, list[Life]]:
    """Each one's lives; in every round all have a turn, and another one begins."""
    names = list(contestants)
    found: dict[str, list[Life]] = {name: [] for name in names}
    for number in range(rounds + warm_up):
        beat(f"round {number + 1} of {rounds + warm_up}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            lives = contestants[name]()
            if number >= warm_up:
                found[name] += lives
    return found


def cpu(
    bench: Bench, blocks: int, size: int, parallel: int, beat: Callable[[str], None]
) -> dict[str, list[float]]:
    """Runtime → ms of CPU per life, one figure for each block of `size` lives."""
    meter = meter_of(bench.host)
    found: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for number in range(blocks):
        beat(f"cpu, {parallel} at once, block {number + 1} of {blocks}")
        for runtime in RUNTIMES if number % 2 else RUNTIMES[::-1]:
            time.sleep(SETTLE)
            begun = meter()
            for _ in range(size // parallel):
                bench.lives(runtime, parallel)
            time.sleep(SETTLE)
            found[runtime].append((meter() - begun) / size)
    return found


def meter_of(host: Host) -> Callable[[], float]:
    """Reads the CPU time of everything in the host, in ms."""
    name = host.cgroup_path.name
    for path in (host.cgroup_path, Path("/sys/fs/cgroup/unified", name)):
        stat = path / "cpu.stat"
        if stat.exists() and stat.read_text().startswith("usage_usec"):
            return lambda: int(stat.read_text().split()[1]) / 1e3
    usage = Path("/sys/fs/cgroup/cpuacct", name, "cpuacct.usage")
    return lambda: int(usage.read_text()) / 1e6
