"""Servers that are killed: each call is answered, each effect happens once, nothing hangs.

The lives are real processes and real SIGKILLs; the store is a small stand-in for systemd's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import Unavailable
from tests.unit.ttrpc_kit import Client, aio, short_directory
from tests.unit.ttrpc_systemd import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "30"))


class Manager:
    """The manager program as the tests see it."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.path = str(directory / "s" / "default")
        self.process = process
        self.done: list[bytes] = []  # payloads of `Do` that were answered

    async def life(self) -> None:
        """Wait for the next life to begin."""
        assert self.process.stdout
        assert await self.process.stdout.readline() == b"life\n"

    async def kill(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"kill\n")
        await self.process.stdin.drain()

    async def call(self, client: Client, method: str, payload: bytes) -> None:
        assert await client.call("s", method, payload) == answer(payload)
        if method == "Do":
            self.done.append(payload)

    def check_effects(self) -> None:
        """Each answered `Do` happened, and once."""
        lines = (self.directory / "effects").read_text().splitlines()
        assert len(lines) == len(set(lines))
        made = collections.Counter(line.split()[1] for line in lines)
        asked = collections.Counter(hashlib.sha256(payload).hexdigest() for payload in self.done)
        assert made == asked


@contextlib.asynccontextmanager
async def manager(plan: list[tuple[str, int]]) -> AsyncIterator[Manager]:
    with short_directory() as directory:
        (directory / "s").mkdir()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.unit.ttrpc_systemd", str(directory), json.dumps(plan)),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        here = Manager(directory, process)
        await here.life()
        try:
            yield here
        finally:
            assert process.stdin
            process.stdin.close()
            await process.communicate()


POINTS = [
    *(("kept", n) for n in (1, 2)),
    *((point, n) for point in ("peek", "append", "consume", "dispatch") for n in (1, 2, 5)),
    *((point, n) for point in ("done", "send", "sent") for n in (1, 2, 5)),
    *(("inline", n) for n in (1, 2, 4)),
    ("spool.kept", 1),
    *(("spool.moved", n) for n in (1, 2, 9)),
    *(("spool.filed", n) for n in (1, 2, 9)),
    ("spool.whole", 1),
    ("spool.finished", 1),
    *(("log.torn", n) for n in (2, 3, 4, 5, 6, 7, 8)),
]


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_a_death_at_any_point_loses_nothing(point: str, count: int) -> None:
    @aio
    async def check() -> None:
        async with manager([(point, count)]) as here:
            async with (
                await Client.connect(here.path) as one,
                await Client.connect(here.path) as two,
            ):
                calls = [
                    here.call(client, method, client_name + method.encode() + fill)
                    for client_name, client in ((b"1", one), (b"2", two))
                    for method, fill in (
                        ("Do", b"a"),
                        ("State", b"b"),
                        ("Do", bytes(700_000)),
                        ("Wait", b"c"),
                        ("Do", b"d"),
                        ("State", bytes(90_000)),
                        ("Do", b"e"),
                    )
                ]
                await asyncio.gather(*calls)
                await here.life()  # it did die
                await here.call(one, "Do", b"afterwards")
            here.check_effects()

    check()


@pytest.mark.parametrize("point", ["spool.kept", "spool.moved", "spool.filed", "spool.whole"])
@pytest.mark.parametrize("method", ["Do", "State"])
def test_a_large_frame_with_nothing_behind_it_is_found_again(point: str, method: str) -> None:
    @aio
    async def check() -> None:
        async with manager([(point, 1), (point, 1), ("append", 1)]) as here:
            async with await Client.connect(here.path) as client:
                await here.call(client, method, bytes(500_000))
                await here.call(client, "Do", b"x")
            here.check_effects()

    check()


def test_a_connection_dies_with_its_server_only_before_the_store_has_it() -> None:
    @aio
    async def check() -> None:
        async with manager([("accept", 1)]) as here:
            async with await Client.connect(here.path) as client:
                with pytest.raises(Unavailable):
                    await client.call("s", "State", b"")
            await here.life()
            async with await Client.connect(here.path) as client:
                await here.call(client, "State", b"x")

    check()


def test_one_death_after_another_in_the_recovery_loses_nothing() -> None:
    plan = [("consume", 2), ("done", 1), ("sent", 1), ("spool.moved", 2), ("spool.whole", 1)]
    plan += [("append", 1), ("spool.finished", 1), ("send", 1), ("dispatch", 1), ("inline", 1)]

    @aio
    async def check() -> None:
        async with manager(plan) as here:
            async with await Client.connect(here.path) as client:
                calls = [here.call(client, "Do", b"%d" % n) for n in range(10)]
                calls += [here.call(client, "Do", b"%d" % n * 150_000) for n in range(10)]
                calls += [here.call(client, "State", b"%d" % n) for n in range(10)]
                await asyncio.gather(*calls)
                for _ in plan:
                    await here.life()
            here.check_effects()

    check()


def test_a_death_while_an_oversized_frame_is_thrown_away_costs_that_connection_only() -> None:
    @aio
    async def check() -> None:
        async with manager([("send", 1)]) as here:
            async with (
                await Client.connect(here.path) as good,
                await Client.connect(here.path) as bad,
            ):
                with pytest.raises(Unavailable):
                    await bad.call("s", "Do", bytes(5 << 20))
                await here.call(good, "Do", b"x")
            here.check_effects()

    check()


@pytest.mark.timeout(20 + KILLS)
def test_sigkills_at_random_moments_lose_and_double_nothing() -> None:
    async def check() -> None:
        rng = random.Random(11)
        stop = False
        answered = 0

        async def hammer(here: Manager, client: Client, name: int) -> None:
            nonlocal answered
            mine = random.Random(name)
            serial = 0
            while not stop:
                batch = []
                for _ in range(mine.choice((1, 1, 8))):
                    serial += 1
                    size = mine.choice((0, 0, 0, 0, 0, 500, 20_000, 90_000, 400_000))
                    method = mine.choice(("Do", "Do", "State", "Wait"))
                    payload = b"%d %d " % (name, serial) + bytes(size)
                    batch.append(here.call(client, method, payload))
                await asyncio.gather(*batch)
                answered += len(batch)

        async with manager([]) as here:
            clients = [await Client.connect(here.path) for _ in range(8)]
            for client in clients:
                await here.call(client, "State", b"first")  # it is in the store now
            async with asyncio.TaskGroup() as group:
                for name, client in enumerate(clients):
                    group.create_task(hammer(here, client, name))
                for _ in range(KILLS):
                    await asyncio.sleep(rng.uniform(0.001, 0.06))
                    await here.kill()
                    await here.life()
                stop = True
            for client in clients:
                client.close()
            here.check_effects()
            assert answered > KILLS

    aio(check, 15 + KILLS)()
