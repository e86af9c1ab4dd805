"""How soon the daemon is back: after SIGKILL with many containers, and what clients see of it.

`make recovery ROOT=… CGROUP=…`: each of 200 containers has a connection of its own with an
open Wait, as below containerd. Two tables:

- back in service: from the SIGKILL to the answer of a call that was sent right after it, on an old
  connection and on a new one, and until every container has answered a State on its connection;
- the pause: the longest State of a client that asks again and again, over one restart each, by
  SIGKILL and by `systemctl restart`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdshim.pb import task_v2_pb2 as pb
from sdshim.ttrpc.client import Client
from tests.bench.lives import OURS
from tests.bench.memory import shim_pids
from tests.bench.report import percentile
from tests.host import Host
from tests.host.roots import ROOTS
from tests.system.taskclient import V2, Rig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SOCKET = "/run/sdshim/s/default"
KILLS = 10
RESTARTS = 25
STEADY_S = 0.3
"""Of answered States before the next restart, so that one has nothing of the one before."""
AIM_MS = 1000
POINTS = (50, 90, 99)


@dataclass(slots=True)
class Field:
    """One host with its containers, each with a connection and an open Wait on it."""

    host: Host
    rig: Rig
    clients: dict[str, Client] = field(default_factory=dict)
    waits: list[asyncio.Task[bytes]] = field(default_factory=list)

    def fill(self, count: int) -> None:
        """Start the containers."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: self.rig.running(f"c{n}", "sleep", "100000"), range(count)))
        self.rig.do(self._connect([f"c{number}" for number in range(count)]))

    async def _connect(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            client = self.clients[id_] = await self.dial()
            request = pb.WaitRequest(id=id_).SerializeToString()
            self.waits.append(asyncio.create_task(client.call(V2, "Wait", request)))
        await self.all_answer()

    async def dial(self) -> Client:
        """A new connection."""
        return await Client.connect(str(self.host.path(SOCKET)))

    async def state(self, id_: str) -> None:
        """One State on the container's connection."""
        await self.clients[id_].call(V2, "State", pb.StateRequest(id=id_).SerializeToString())

    async def all_answer(self) -> None:
        """A State of every container."""
        await asyncio.gather(*(self.state(id_) for id_ in self.clients))

    def unanswered(self) -> int:
        """Waits that have ended, though nothing has exited."""
        return sum(wait.done() for wait in self.waits)

    def kill(self) -> None:
        """SIGKILL to the daemon, from outside."""
        (pid,) = shim_pids(self.host, OURS)
        os.kill(pid, signal.SIGKILL)

    async def restart(self) -> None:
        """`systemctl restart`; returns when it has ended."""
        await asyncio.to_thread(self.host.run, ["systemctl", "restart", "sdshim.service"])


async def back(one: Field) -> dict[str, float]:
    """What → ms from a SIGKILL."""
    begun = time.perf_counter()
    one.kill()

    async def clock(work: Awaitable[object]) -> float:
        await work
        return (time.perf_counter() - begun) * 1000

    async def fresh() -> None:
        client = await one.dial()
        await client.call(V2, "Connect", pb.ConnectRequest(id="c0").SerializeToString())
        client.close()

    names = ("State on an old connection", "Connect on a new one", "State of every container")
    took = await asyncio.gather(clock(one.state("c0")), clock(fresh()), clock(one.all_answer()))
    return dict(zip(names, took, strict=True))


async def pause(one: Field, strike: Callable[[], Awaitable[None]]) -> float:
    """The longest State, in ms, of a client that never stops asking, over one restart."""
    longest, over = 0.0, False

    async def ask() -> None:
        nonlocal longest
        quiet = time.perf_counter() + STEADY_S
        while not over or time.perf_counter() < quiet:
            begun = time.perf_counter()
            await one.state("c0")
            took = time.perf_counter() - begun
            if took > longest:
                longest, quiet = took, time.perf_counter() + STEADY_S

    asking = asyncio.create_task(ask())
    await asyncio.sleep(STEADY_S)
    await strike()
    over = True
    await asking
    return longest * 1000


def _row(name: str, took: Sequence[float]) -> str:
    return f"  {name:28}" + "".join(f"{percentile(took, point):8.0f}" for point in POINTS)


def _head(title: str) -> str:
    return f"{title}\n{'':30}" + "".join(f"{f'p{point}':>8}" for point in POINTS)


def _run(one: Field, kills: int, restarts: int) -> None:
    do = one.rig.submit
    found = [do(back(one)).result(60) for _ in range(kills)]
    count = len(one.clients)
    print(_head(f"Back in service after SIGKILL, {count} containers (ms, {kills} kills)"))
    for name in found[0]:
        print(_row(name, [took[name] for took in found]) + f"   (aim ≤ {AIM_MS})")

    async def kill() -> None:
        one.kill()

    print(_head(f"Pause of State over a restart, {count} containers (ms, {restarts} of each)"))
    for name, strike in (("SIGKILL", kill), ("systemctl restart", one.restart)):
        took = [do(pause(one, strike)).result(60) for _ in range(restarts)]
        print(_row(name, took), flush=True)
    print(f"Waits that were answered though nothing had exited: {one.unanswered()}")


def main() -> int:
    """Boot, fill, kill, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recovery")
    parser.add_argument("--root", choices=[root.name for root in ROOTS], default="self")
    parser.add_argument("--cgroup", choices=["v2", "v1"], default="v2", help="v1 is the hybrid")
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--restarts", type=int, default=RESTARTS)
    options = parser.parse_args()
    with Host(options.root, options.cgroup) as host, Rig(host) as rig:
        python = ".".join(map(str, host.python_version))
        versions = f"systemd {host.systemd_version}, Python {python}"
        print(f"{options.root}, cgroup {options.cgroup}: {versions}, {os.cpu_count()} CPUs")
        one = Field(host, rig)
        one.fill(options.containers)
        _run(one, options.kills, options.restarts)
    print(f"other work on the machine: load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
