"""How an exit is learnt best: pidfd and one look, or a match on the unit's property changes.

    python -m tests.bench.exit_signal [--root self|trixie|forky] [-n 300] [--parallel 8]

Boots a host, runs itself in it, and prints one table:
- is ExecMainCode known when asked for at the very moment the pidfd says that the process ended?
- milliseconds from the end of the process to the known exit, median and 95th percentile;
- CPU per unit life (start, exit, removal) of our process, of dbus-daemon and of PID 1, and messages
  received by us.
Units are held (AddRef) in each way, as they are in the daemon. "bare" is the life without learning
the exit at all: what the others come on top of. "match late" begins when the start job is done and
would miss an earlier exit; "match from start" misses none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sdshim.core.names import unit_path
from sdshim.systemd.bus import Bus
from sdshim.systemd.manager import Manager
from sdshim.systemd.wire import Signal, decode, typed
from tests.host import Host

REPOSITORY = Path(__file__).parents[2]
WAYS = ("bare", "pidfd + 2 Get", "pidfd + 4 Get", "match late", "match from start")
PAYLOAD = "read x <$0; exit 7"


@dataclass
class Result:
    """What one way of learning exits cost."""

    way: str
    lives: int
    cpu_ms: float = 0.0
    bus_ms: float = 0.0
    pid1_ms: float = 0.0
    wall_ms: float = 0.0
    messages: float = 0.0
    unknown: int = 0
    wrong: int = 0
    delays: list[float] = field(default_factory=list)

    def row(self) -> str:
        if self.delays:
            ordered = sorted(self.delays)
            middle = f"{statistics.median(ordered):9.2f} {ordered[len(ordered) * 95 // 100]:9.2f}"
        else:
            middle = f"{'-':>9} {'-':>9}"
        return (
            f"{self.way:16} {self.lives:6} {self.unknown:8} {self.wrong:6} {middle}"
            f" {self.cpu_ms:7.2f} {self.bus_ms:7.2f} {self.pid1_ms:7.2f}"
            f" {self.messages:9.1f} {self.wall_ms:9.2f}"
        )


HEAD = (
    f"{'way':16} {'lives':>6} {'unknown':>8} {'wrong':>6} {'p50 ms':>9} {'p95 ms':>9}"
    f" {'CPU ms':>7} {'bus':>7} {'PID 1':>7} {'messages':>9} {'wall ms':>9}"
)


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def by_pidfd(manager: Manager, unit: str, go: int, result: Result, gets: int) -> None:
    pidfd = os.pidfd_open(await manager.main_pid(unit))
    os.write(go, b"\n")
    await readable(pidfd)
    woken = time.perf_counter()
    os.close(pidfd)
    if gets == 2:
        answers = await asyncio.gather(
            manager.get_unit_property(unit, "Service", "ExecMainStatus"),
            manager.get_unit_property(unit, "Service", "ExecMainCode"),
        )
        status, code = answers
    else:
        end = await manager.main_exit(unit)
        status, code = (end.status, end.code) if end else (0, 0)
    result.delays.append((time.perf_counter() - woken) * 1000)
    result.unknown += code == 0
    result.wrong += code != 0 and (code, status) != (1, 7)


class Match:
    """A match on the property changes of one unit, and the exit it tells of."""

    def __init__(self, bus: Bus, unit: str) -> None:
        self._bus = bus
        self._rule = (
            "type='signal',sender='org.freedesktop.systemd1',"
            "interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',"
            f"path='{unit_path(unit)}',arg0='org.freedesktop.systemd1.Service'"
        )
        self._seen: asyncio.Future[tuple[object, object]] = (
            asyncio.get_running_loop().create_future()
        )

    async def begin(self) -> None:
        await self._bus.add_match(self._rule, self._changed)

    def _changed(self, signal: Signal) -> None:
        values = signal.body[1]
        if values.get("ExecMainCode") and not self._seen.done():
            self._seen.set_result((values["ExecMainCode"], values.get("ExecMainStatus")))

    async def exit(self, manager: Manager, unit: str, go: int, result: Result) -> None:
        # the pidfd is only the clock here: all ways count from the same moment
        pidfd = os.pidfd_open(await manager.main_pid(unit))
        os.write(go, b"\n")
        await readable(pidfd)
        woken = time.perf_counter()
        os.close(pidfd)
        code, status = await self._seen
        result.delays.append((time.perf_counter() - woken) * 1000)
        result.wrong += (code, status) != (1, 7)
        await self._bus.remove_match(self._rule, self._changed)


async def life(manager: Manager, number: int, result: Result) -> None:
    unit = f"sdshim-bench-{result.way.replace(' ', '').replace('+', '.')}{number}.service"
    fifo = f"/run/{unit}"
    os.mkfifo(fifo)
    go = os.open(fifo, os.O_RDWR)
    match = Match(manager._bus, unit)
    if result.way == "match from start":
        await match.begin()
    job = await manager.start_transient(
        unit,
        [
            ("Type", "s", "exec"),
            ("ExecStart", "a(sasb)", [("/bin/sh", ["/bin/sh", "-c", PAYLOAD, fifo], False)]),
            ("CollectMode", "s", "inactive"),
            ("AddRef", "b", True),
            ("Slice", "s", "sdshim-bench.slice"),
        ],
    )
    assert await job.wait() == "done"
    if result.way == "bare":
        pidfd = os.pidfd_open(await manager.main_pid(unit))
        os.write(go, b"\n")
        await readable(pidfd)
        os.close(pidfd)
    elif result.way.startswith("match"):
        if result.way == "match late":
            await match.begin()
        await match.exit(manager, unit, go, result)
    else:
        await by_pidfd(manager, unit, go, result, int(result.way.split()[2]))
    os.close(go)
    os.unlink(fifo)  # noqa: PTH108
    await (await manager.stop(unit)).wait()
    removal = manager.removal(unit)
    await manager.reset_failed(unit)
    await manager.unref(unit)
    await removal


def on_cpu_ms(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def daemon_pid() -> int:
    """The bus itself."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        if comm.read_text().strip() in ("dbus-daemon", "dbus-broker"):
            return int(comm.parent.name)
    raise SystemExit("no dbus-daemon here")


async def measure(way: str, lives: int, parallel: int, counted: list[int]) -> Result:
    bus = Bus()
    await bus.connect()
    manager = Manager(bus)
    await manager.start()
    result = Result(way, lives)
    for number in range(3):
        await life(manager, -1 - number, Result(way, 0))
    numbers = iter(range(lives))

    async def worker() -> None:
        for number in numbers:
            await life(manager, number, result)

    others = [on_cpu_ms(daemon_pid()), on_cpu_ms(1)]
    before, cpu, wall = counted[0], time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(parallel)))
    result.cpu_ms = (time.process_time() - cpu) * 1000 / lives
    result.wall_ms = (time.perf_counter() - wall) * 1000 / lives
    result.bus_ms = (on_cpu_ms(daemon_pid()) - others[0]) / lives
    result.pid1_ms = (on_cpu_ms(1) - others[1]) / lives
    result.messages = (counted[0] - before) / lives
    await manager.close()
    await bus.close()
    return result


def count_messages() -> list[int]:
    """Messages received by any bus of this process, counted where they are decoded."""
    from sdshim.systemd import bus as room

    counted = [0]

    def counting(frame: bytes) -> object:
        counted[0] += 1
        return decode(frame)

    vars(room)["decode"] = counting
    return counted


def marshalling(times: int = 500) -> tuple[int, float]:
    """CPU milliseconds for the properties of a realistic start, made and marshalled."""
    from dbus_next import Message

    line = ("/bin/sh", ["/bin/sh", "-c", "exec", *["argument"] * 12], ["no-env-expand"])
    properties: list[tuple[str, str, object]] = [
        ("Description", "s", "docker.io/library/busybox:latest"),
        ("ExecStartEx", "a(sasas)", [line]),
        ("ExecStartPreEx", "a(sasas)", [line]),
        ("ExecStopPostEx", "a(sasas)", [line]),
        ("Environment", "as", ["TOKEN=" + "0" * 32, "X=1"]),
        ("LogExtraFields", "aay", [b"CONTAINER_ID=a", b"CONTAINER_NAMESPACE=b"]),
        ("Asserts", "a(sbbs)", [("AssertPathExists", False, True, "/run/sdshim/t/x/exit")]),
        ("After", "as", ["sdshim.target"]),
        *((f"Number{n}", "t", 10_000_000) for n in range(8)),
        *((f"Flag{n}", "b", True) for n in range(6)),
        *((f"Word{n}", "s", "control-group") for n in range(8)),
    ]
    start = time.process_time()
    for _ in range(times):
        Message(
            destination="org.freedesktop.systemd1",
            path="/org/freedesktop/systemd1",
            interface="org.freedesktop.systemd1.Manager",
            member="StartTransientUnit",
            signature="ssa(sv)a(sa(sv))",
            body=["sdshim-default-a.service", "fail", typed(properties), []],
            serial=1,
        )._marshall()
    return len(properties), (time.process_time() - start) * 1000 / times


def inside(lives: int, parallel: int) -> None:
    counted = count_messages()
    for way in WAYS:
        result = asyncio.run(measure(way, lives, parallel, counted))
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    sys.stdout.write(json.dumps(marshalling()) + "\n")


def main() -> None:
    """Boot a host and run `inside` in it, or be that."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="self", choices=("self", "trixie", "forky"))
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--inside", action="store_true")
    options = parser.parse_args()
    if options.inside:
        inside(options.n, options.parallel)
        return
    # the libraries are the host's own (python3-dbus-next), the code is this tree's
    binds = {"/mnt": str(REPOSITORY)}
    with Host(root=options.root, install=False, images=False, binds=binds) as host:
        command = ["env", "-C", "/mnt", "/usr/bin/python3", "-m", "tests.bench.exit_signal"]
        numbers = ["--inside", "-n", str(options.n), "--parallel", str(options.parallel)]
        output = host.run([*command, *numbers], timeout=600).stdout
        version = host.systemd_version
    *results, (properties, cpu) = map(json.loads, output.splitlines())
    print(f"systemd {version}, {options.parallel} at a time")
    print(HEAD)
    for result in results:
        print(Result(**result).row())
    print(f"marshalling a start of {properties} properties: {cpu:.2f} ms CPU")


if __name__ == "__main__":
    main()
