"""Hours of mixed load: does anything grow?

`make soak HOURS=2 ROOT=… CGROUP=…`: workers make containers at a modest rate, with execs,
signals, terminals, streams and stats, beside some that run all the time. In the first third the
daemon is killed or restarted between any two samples. For each sample the workers pause, so that
the counts of one are those of any other; memory is followed from the last restart on. Ends with
`soak: … flat` (exit status 0) or `soak: … not flat: …`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import astuple, dataclass, fields
from statistics import linear_regression
from typing import TYPE_CHECKING

from tests.bench.lives import OURS
from tests.bench.memory import pss, shim_pids
from tests.fault import strikes
from tests.fault.field import SOCKET, Field
from tests.fault.plan import dice_of, draw_mixed
from tests.fault.storm import Crew
from tests.host import Host
from tests.tools.containerd import TASKS, Containerd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORKERS = 3
PAUSE = 1.0
RESIDENTS = 5
"""Containers that run all the time."""
SETTLE = 2.0
"""What is done in the background after the last Delete has this long."""
CALL_LOG = 8 << 20
"""The call log is written anew when it has grown to twice its limit at most: that is flat."""
MEMORY = 1.0
"""MiB per hour that count as flat: what the noise of one sample amounts to in a run of an hour."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The node in a moment without load, but for the residents."""

    minute: float
    lives: int
    execs: int
    restarts: int
    pss: float
    """MiB of all processes of sdshim. On a root that shares files with the machine it moves with
    what else runs there."""
    anon: float
    """Their anonymous part: it does not."""
    rss_pid1: float
    """MiB of systemd: what is pinned there shows here."""
    fds: int
    """Of the daemon."""
    store: int
    """Descriptors that systemd keeps."""
    units: int
    call_log: int
    """KiB."""
    files: int
    """Below /run/sdshim."""
    tasks: int
    processes: int
    """Of sdshim."""


COUNTS = ("fds", "store", "units", "files", "tasks", "processes")
"""What must be the same in each sample."""


class Soak:
    """One run on a booted host."""

    def __init__(self, field: Field, seed: int) -> None:
        self._field = field
        self._host = field.host
        self._seed = seed
        self._crew = Crew(field, seed, draw_mixed, WORKERS)
        self._crew.pause = PAUSE
        self._begun = time.monotonic()
        self._restarts = 0

    def run(self, seconds: float, interval: float) -> list[Sample]:
        """Load and samples by turns; the samples without the first turn's, which warms up."""
        residents = [self._resident() for _ in range(RESIDENTS)]
        samples: list[Sample] = []
        dice = dice_of(self._seed, "restarts")
        with self._field.watched():
            while (spent := time.monotonic() - self._begun) < seconds:
                with self._crew.at_work():
                    restarting = bool(samples) and spent < seconds / 3
                    at = dice.uniform(0.2, 0.8) * interval
                    time.sleep(at)
                    if restarting:
                        self._restart()
                    time.sleep(interval - at)
                self._crew.judge_events()
                time.sleep(SETTLE)
                samples.append(self._sample())
                if len(samples) == 1:
                    print("".join(f"{field.name:>10}" for field in fields(Sample)))
                print("".join(f"{_shown(value):>10}" for value in astuple(samples[-1])), flush=True)
        for name in residents:
            self._end(name)
        return samples

    def _restart(self) -> None:
        """By SIGKILL and as an upgrade does, by turns."""
        pid = strikes.daemon_pid(self._host)
        strike = strikes.restart_daemon if self._restarts % 2 else strikes.kill_daemon
        if strike(self._host):
            strikes.await_another(self._host, pid)
            self._restarts += 1
            self._field.tally.count("kills")

    def _resident(self) -> str:
        name, mounts = self._field.bench.make(OURS, "sleep", "1000000")
        self._field.client.call(TASKS, "Create", container_id=name, rootfs=mounts)
        self._field.client.call(TASKS, "Start", container_id=name)
        return name

    def _end(self, name: str) -> None:
        call = self._field.client.call
        waiting = self._field.client.begin(TASKS, "Wait", container_id=name)
        call(TASKS, "Kill", container_id=name, signal=9)
        if waiting.result(10).exit_status != 137:
            self._field.tally.fault("wrong", f"{name}, a resident, has not ended by SIGKILL")
        call(TASKS, "Delete", container_id=name)
        self._field.client.remove_container(name)

    def _sample(self) -> Sample:
        host, tally = self._host, self._field.tally
        daemon = strikes.daemon_pid(host)
        kept = host.run(["systemctl", "show", "-P", "NFileDescriptorStore", "sdshim.service"])
        transient = host.path("/run/systemd/transient")
        listed = shim_pids(host, OURS)
        return Sample(
            minute=round((time.monotonic() - self._begun) / 60, 1),
            lives=tally.done["containers"],
            execs=tally.done["execs"],
            restarts=self._restarts,
            pss=round(pss(listed), 2),
            anon=round(pss(listed, "Pss_Anon"), 2),
            rss_pid1=round(pss([host.pid], "Rss"), 2),
            fds=len(os.listdir(f"/proc/{daemon}/fd")),  # noqa: PTH208
            store=int(kept.stdout),
            units=sum(1 for _ in transient.glob("sdshim-*.service")),
            call_log=host.path("/run/sdshim/calls").stat().st_size >> 10,
            files=sum(len(names) for _, _, names in os.walk(host.path("/run/sdshim"))),
            tasks=len(self._field.client.call(TASKS, "List").tasks),
            processes=len(listed),
        )


def _shown(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def slope(samples: Sequence[Sample], name: str) -> float:
    """What is added in an hour, by a straight line through all samples."""
    if len(samples) < 2:
        return 0.0
    hours = [sample.minute / 60 for sample in samples]
    return linear_regression(hours, [float(getattr(sample, name)) for sample in samples]).slope


def steady(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the last daemon, without the first third, in which it warms up."""
    last = [sample for sample in samples if sample.restarts == samples[-1].restarts]
    return last[len(last) // 3 :]


def verdict(samples: Sequence[Sample]) -> Iterator[str]:
    """What is not flat; nothing when all is."""
    for name in COUNTS:
        values = {getattr(sample, name) for sample in samples}
        if len(values) > 1:
            yield f"{name} {min(values)} to {max(values)}"
    most = max(sample.call_log for sample in samples)
    if most > CALL_LOG >> 10:
        yield f"call log {most} KiB"
    last = steady(samples)
    for name in ("pss", "anon"):
        grown = slope(last, name)
        if last[-1].minute - last[0].minute > 30 and grown > MEMORY:
            yield f"{name} {grown:+.2f} MiB/h"


def summary(samples: Sequence[Sample]) -> str:
    """The figures of the last line."""
    end, last = samples[-1], steady(samples)
    slopes = [f"{name}={slope(last, name):+.2f}MiB/h" for name in ("pss", "anon", "rss_pid1")]
    slopes += [f"{name}={slope(samples, name):+.2f}/h" for name in COUNTS]
    done = f"minutes={end.minute} lives={end.lives} execs={end.execs} restarts={end.restarts}"
    return f"{done} {' '.join(slopes)} calls<={max(s.call_log for s in samples)}KiB"


def run(host: Host, seconds: float, interval: float, seed: int) -> int:
    """A whole soak; 0 when nothing was wrong and all is flat."""
    with Containerd(str(host.path(SOCKET))) as client:
        field = Field(host, client)
        samples = Soak(field, seed).run(seconds, interval)
    for line in host.leftovers(wait=10):
        field.tally.fault("left", line)
    for text in field.tally.texts[:50]:
        print(f"  {text}")
    print(f"soak: {field.tally.line()}")
    found = "; ".join(verdict(samples))
    print(f"soak: {summary(samples)}: {f'not flat: {found}' if found else 'flat'}", flush=True)
    return 0 if field.tally.good and not found else 1


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="self", choices=("self", "trixie", "forky"))
    parser.add_argument("--cgroup", default="v2", choices=("v2", "v1"))
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--interval", type=float, default=60, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with Host(root=options.root, cgroup=options.cgroup) as host:
        print(f"systemd {host.systemd_version}, root {options.root}, cgroup {options.cgroup}")
        return run(host, options.hours * 3600, options.interval, options.seed)


if __name__ == "__main__":
    sys.exit(main())
