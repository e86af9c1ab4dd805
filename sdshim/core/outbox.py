"""The order in which events leave for one containerd. Pure; "acknowledged" is an input.

Events enter in the order of the lifecycle table's effects (create < start < exit < delete per
task) with a sequence number that only grows, and leave one at a time: containerd publishes
concurrent ones in any order (protocol 2.4). What was sent and not yet acknowledged when a daemon
died is *in doubt*: it is sent again with the same stream id, which containerd 1.7 and newer refuse
if it had arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdshim.core.model import Event
    from sdshim.core.names import TaskKey


@dataclass(frozen=True, slots=True)
class Letter:
    """An event with the task it belongs to."""

    task: TaskKey
    token: str
    event: Event


@dataclass(slots=True)
class Outbox:
    """Events waiting for one containerd, oldest first."""

    waiting: dict[int, Letter] = field(default_factory=dict)
    in_flight: int | None = None
    """Sequence number of the one event that is on its way."""

    def add(self, letter: Letter) -> None:
        """Queue an event; the same sequence number twice is the same event."""
        self.waiting.setdefault(letter.event.seq, letter)

    def next(self) -> Letter | None:
        """The event to send now, or None: nothing waits, or one is on its way."""
        if self.in_flight is not None or not self.waiting:
            return None
        return self.waiting[min(self.waiting)]

    def sending(self, seq: int) -> None:
        """`seq` is about to be written to containerd."""
        self.in_flight = seq

    def acknowledged(self, seq: int) -> Letter | None:
        """containerd has it; the event leaves the outbox. Returns what was acknowledged."""
        if self.in_flight == seq:
            self.in_flight = None
        return self.waiting.pop(seq, None)

    def failed(self) -> None:
        """The one on its way did not arrive; it stays first in the queue."""
        self.in_flight = None
