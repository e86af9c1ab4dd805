"""What containerd told of a life, against what it must have told."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.fault.life import Expected
    from tests.fault.tally import Tally
    from tests.tools.events import Event

Sign = tuple[str, str]
"""Topic without `/tasks/`, and exec id (or nothing)."""


def signs(life: Expected) -> list[Sign]:
    """Every event of a life, in order."""
    execs = [name for name in life.exits if name]
    middle = [(topic, name) for name in execs for topic in ("exec-added", "exec-started", "exit")]
    return [("create", ""), ("start", ""), *middle, ("exit", ""), ("delete", "")]


def complete(life: Expected, seen: Sequence[Event]) -> bool:
    """Nothing is missing."""
    return set(signs(life)) <= {_sign(life.name, event) for event in seen}


def judge(life: Expected, seen: Sequence[Event], tally: Tally, *, blind: bool) -> None:
    """Count what is wrong. `blind`: events may have gone by unseen, while containerd was away."""
    wanted = signs(life)
    found = [_sign(life.name, event) for event in seen]
    counts = Counter(found)
    for sign, number in counts.items():
        if sign not in wanted:
            tally.fault("wrong", f"{life.name}: an event that was not due: {sign}")
        elif number > 1:
            tally.fault("doubled", f"{life.name}: {sign} came {number} times")
    for sign in wanted:
        if sign not in counts:
            if blind:
                tally.count("unseen")
            else:
                tally.fault("lost", f"{life.name}: no event {sign}")
    order = list(dict.fromkeys(found))
    if order != [sign for sign in wanted if sign in counts]:
        tally.fault("wrong", f"{life.name}: events in this order: {order}")
    for text in _exits(life, seen):
        tally.fault("wrong", f"{life.name}: {text}")


def _exits(life: Expected, seen: Sequence[Event]) -> Iterator[str]:
    """What exit events tell that Wait did not."""
    for event in seen:
        _, exec_id = sign = _sign(life.name, event)
        if sign[0] == "exit" and exec_id in life.exits:
            body = event.body
            told = (body.pid, body.exit_status, body.exited_at)
            if told != life.exits[exec_id]:
                yield f"exit event of {exec_id or 'init'}: {told}, not {life.exits[exec_id]}"


def _sign(name: str, event: Event) -> Sign:
    topic = event.topic.removeprefix("/tasks/")
    exec_id = getattr(event.body, "exec_id", "")
    if topic in ("exit", "delete") and event.body.id not in ("", name):
        exec_id = event.body.id
    return topic, exec_id
