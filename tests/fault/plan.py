"""What a container and its execs do in a fault run or a soak, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

KILLED, TERMINATED = 128 + 9, 128 + 15
NAPS = (0.0, 0.0, 0.05, 0.2)
"""Seconds that a process takes which ends by itself."""


@dataclass(frozen=True, slots=True)
class End:
    """How a process ends: by itself after a nap with a code, or by a signal."""

    code: int
    nap: float = 0.0
    signal: int = 0

    @property
    def command(self) -> list[str]:
        """Its argv. It says `one`, and `two` when it ends by itself."""
        if self.signal:
            return ["sh", "-c", "echo one; exec sleep 1000"]
        return ["sh", "-c", f"echo one; sleep {self.nap}; echo two; exit {self.code}"]

    @property
    def output(self) -> bytes:
        """What it has said at its end."""
        return b"one\n" if self.signal else b"one\ntwo\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """One container's life."""

    init: End
    execs: tuple[End, ...] = ()
    kill_all: bool = False
    terminal: bool = False
    """A terminal that a line is typed into; without it stdout is a FIFO."""
    stats: bool = False


def draw(dice: random.Random) -> Plan:
    """A life of the fault run. A container with execs must outlive them, so it is killed."""
    if dice.random() < 0.4:
        return Plan(End(dice.randrange(120), dice.choice(NAPS)))
    execs = tuple(_exec(dice) for _ in range(dice.choice((0, 1, 2))))
    return Plan(End(KILLED, signal=9), execs, kill_all=dice.random() < 0.3)


def draw_mixed(dice: random.Random) -> Plan:
    """A life of the soak: also terminals and stats."""
    if dice.random() < 0.2:
        return Plan(End(dice.randrange(120)), terminal=True)
    found = draw(dice)
    return Plan(found.init, found.execs, found.kill_all, stats=found.init.signal != 0)


def _exec(dice: random.Random) -> End:
    kind = dice.random()
    if kind < 0.5:
        return End(dice.randrange(120), dice.choice(NAPS))
    return End(TERMINATED, signal=15) if kind < 0.6 else End(KILLED, signal=9)


def dice_of(seed: int, *where: object) -> random.Random:
    """Dice for one worker, one life, one schedule: none depends on how fast another is."""
    return random.Random(f"{seed}/{'/'.join(map(str, where))}")
