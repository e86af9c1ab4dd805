"""Workers that make containers without a pause, while something is done to the daemon."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.fault import flow
from tests.fault.judge import complete, judge
from tests.fault.life import Life
from tests.fault.plan import dice_of, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from tests.fault.field import Field
    from tests.fault.life import Expected
    from tests.fault.plan import Plan
    from tests.fault.strikes import Scenario
    from tests.fault.tally import Tally
    from tests.host import Host

WORKERS = 8
UNDELIVERED = 2.0
"""Seconds after a life's end in which its last events are on their way to us: what containerd has
taken and not yet passed on ends with it."""
LATE_EVENTS = 10.0
"""Seconds that events may come after the last call."""


class Crew:
    """Workers on a field, each with dice of its own."""

    def __init__(
        self, field: Field, seed: int, draw: Callable[[Random], Plan], workers: int = WORKERS
    ) -> None:
        self._field = field
        self._seed = seed
        self._draw = draw
        self._size = workers
        self._number = 0
        self._stop = threading.Event()
        self._lives: list[Expected] = []
        self._judged: set[str] = set()
        self.pause = 0.0
        """Seconds between two lives of a worker."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lives begin in this block; after it all have come to their ends."""
        self._stop.clear()
        self._number += 1
        threads = [
            threading.Thread(target=self._work, args=(self._number, number), name=f"worker{number}")
            for number in range(self._size)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _work(self, shift: int, number: int) -> None:
        life = 0
        while not self._stop.is_set():
            plan = self._draw(dice_of(self._seed, "worker", shift, number, life))
            try:
                told = Life(self._field, plan).run()
            except Exception as error:  # a thread's end must not go unseen
                self._field.tally.fault("wrong", f"worker {number}: {error!r}")
                return
            if told:
                self._lives.append(told)
            life += 1
            self._stop.wait(self.pause)

    def judge_events(self) -> None:
        """All lives so far are at their end: so must their events be, in time."""
        field, lives, self._lives = self._field, self._lives, []
        deadline = time.monotonic() + LATE_EVENTS
        while True:
            seen = field.take_events()
            late = [
                life
                for life in lives
                if not complete(life, seen.get(life.name, ()))
                and not field.missed(life.begun, life.ended + UNDELIVERED)
            ]
            if not late or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for life in lives:
            blind = field.missed(life.begun, life.ended + UNDELIVERED)
            judge(life, seen.get(life.name, ()), field.tally, blind=blind)
        for name in self._judged & seen.keys():
            field.tally.fault("doubled", f"{name}: long after its end: {seen[name]}")
        self._judged.update(life.name for life in lives)
        field.box.seen.clear()


class DaemonLog:
    """What the daemons of a block have written."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._from = time.time()

    def tracebacks(self) -> list[str]:
        """Messages with a traceback: something came unexpected."""
        argv = ["journalctl", "-q", "-u", "sdshim.service", "-o", "json", "--no-pager"]
        argv += [f"--since=@{self._from:.6f}", "--output-fields=MESSAGE"]
        # (its exit status is 1 when there is nothing)
        said = str(self._host.run(argv, check=False, timeout=60).stdout)
        messages = [json.loads(line)["MESSAGE"] for line in said.splitlines()]
        return [text for text in map(str, messages) if "Traceback" in text]


def run(field: Field, scenario: Scenario, count: int, seed: int) -> None:
    """One scenario on a host: `count` strikes under load. The figures are in the field's tally."""
    tally, begun = field.tally, time.monotonic()
    dice = dice_of(seed, scenario.name)
    known = set(field.host.leftovers())
    unexpected = DaemonLog(field.host)
    if scenario.flows:
        flow.run(field, scenario, count, dice)
    else:
        _work(field, scenario, count, Crew(field, seed, draw), dice)
    for line in field.host.leftovers(wait=10, known=known):
        tally.fault("left", line)
    for text in unexpected.tracebacks():
        tally.fault("wrong", f"the daemon's log: {text}")
    _progress("ended", tally, begun)


def _work(field: Field, scenario: Scenario, count: int, crew: Crew, dice: Random) -> None:
    begun = time.monotonic()
    with field.watched():
        with crew.at_work():
            for number in range(count):
                scenario.strike(field, dice.uniform(0, scenario.pause))
                field.tally.count("kills")
                if number % 10 == 9:
                    _progress(f"{number + 1} of {count}", field.tally, begun)
        crew.judge_events()


def _progress(where: str, tally: Tally, begun: float) -> None:
    done = tally.done
    print(
        f"  {time.monotonic() - begun:4.0f} s, {where}: {done['containers']} containers, "
        f"{done['execs']} execs, {done['repeated']} calls repeated; {tally.line()}",
        flush=True,
    )
