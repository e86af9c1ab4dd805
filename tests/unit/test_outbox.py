"""Events leave one at a time, oldest first, until containerd has them."""

from __future__ import annotations

from sdshim.core.model import Event
from sdshim.core.names import TaskKey
from sdshim.core.outbox import Letter, Outbox


def _letter(seq: int) -> Letter:
    return Letter(TaskKey("default", "c"), "t", Event(seq, "/tasks/x", "x", b"", seq))


def test_the_oldest_leaves_first_and_nothing_overtakes_it() -> None:
    box = Outbox()
    for seq in (3, 1, 2):
        box.add(_letter(seq))
    first = box.next()
    assert first is not None
    assert first.event.seq == 1
    box.sending(1)
    assert box.next() is None
    assert box.acknowledged(1) is not None
    second = box.next()
    assert second is not None
    assert second.event.seq == 2


def test_what_did_not_arrive_stays_first() -> None:
    box = Outbox()
    box.add(_letter(1))
    box.sending(1)
    box.failed()
    again = box.next()
    assert again is not None
    assert again.event.seq == 1


def test_the_same_number_twice_is_the_same_event() -> None:
    box = Outbox()
    box.add(_letter(1))
    box.add(_letter(1))
    assert len(box.waiting) == 1


def test_an_acknowledged_event_is_gone() -> None:
    box = Outbox()
    box.add(_letter(1))
    box.sending(1)
    box.acknowledged(1)
    assert box.next() is None
    assert box.acknowledged(1) is None
