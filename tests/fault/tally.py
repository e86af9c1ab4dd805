"""What went wrong, by kind, with a line of text for each."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

KINDS: Final = ("lost", "wrong", "doubled", "hung", "left")
"""lost: a container, a call's answer or an event that never came; wrong: an answer or an order that
is not what was planned; doubled: an event twice; hung: a call without an answer after
10 s; left: something that is still there at the end."""


class Tally:
    """Counts of one scenario. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        """What was done: strikes, containers, execs, and `cut`."""
        self.faults: Counter[str] = Counter()
        self.texts: list[str] = []

    def count(self, what: str, number: int = 1) -> None:
        """Something was done."""
        with self._lock:
            self.done[what] += number

    def fault(self, kind: str, text: str) -> None:
        """Something is wrong."""
        assert kind in KINDS, kind
        with self._lock:
            self.faults[kind] += 1
            self.texts.append(f"{kind}: {text}")

    def add(self, other: Tally) -> None:
        """Sum up scenarios."""
        self.done += other.done
        self.faults += other.faults
        self.texts += other.texts

    @property
    def good(self) -> bool:
        """Nothing is wrong; connections that were cut are told, they are no fault."""
        return not self.texts

    def line(self) -> str:
        """`kills=… cut=… lost=… wrong=… doubled=… hung=… left=…`"""
        done = [f"{what}={self.done[what]}" for what in ("kills", "cut")]
        return " ".join(done + [f"{kind}={self.faults[kind]}" for kind in KINDS])
