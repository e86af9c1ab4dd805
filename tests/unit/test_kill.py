"""Kill that a daemon took over from one that died over it."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from sdshim.core.errors import NotFound
from sdshim.core.lifecycle import Phase
from sdshim.core.points import nowhere
from sdshim.daemon.kill import kill

ENDED: Any = SimpleNamespace(phase=Phase.EXITED, pid=7)


class Call:
    """As much of a call as Kill looks at; `done` is what it and the process saw, in order."""

    def __init__(self, *, recovered: bool, begun: bool = False) -> None:
        self.recovered = recovered
        self.begun = begun
        self.done: list[object] = []
        self.runs: Any = SimpleNamespace(
            phase=Phase.RUNNING,
            pid=7,
            unit_gone=False,
            watched=SimpleNamespace(kill=self.done.append),
        )

    def note_begun(self) -> None:
        self.done.append("noted")


def _kill(call: Any, task: Any, number: int) -> bytes:
    node: Any = SimpleNamespace(crash=nowhere)
    return asyncio.run(kill(node, call, task, number, False))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cut_kill_may_have_been_the_end_itself(number: int) -> None:
    assert _kill(Call(recovered=True), ENDED, number) == b""


def test_a_kill_after_the_end_is_told_so() -> None:
    with pytest.raises(NotFound, match="already finished"):
        _kill(Call(recovered=False), ENDED, signal.SIGKILL)


def test_a_cut_question_whether_it_lives_is_answered_by_no() -> None:
    with pytest.raises(NotFound, match="already finished"):
        _kill(Call(recovered=True), ENDED, 0)


@pytest.mark.parametrize("recovered", [False, True])
def test_a_signal_that_surely_was_not_sent_is_sent(recovered: bool) -> None:
    call = Call(recovered=recovered)
    assert _kill(call, call.runs, signal.SIGTERM) == b""
    assert call.done == ["noted", signal.SIGTERM]


def test_a_signal_that_may_have_been_sent_is_not_sent_again() -> None:
    call = Call(recovered=True, begun=True)
    assert _kill(call, call.runs, signal.SIGTERM) == b""
    assert call.done == []


def test_what_is_the_same_twice_is_sent_again_and_costs_no_note() -> None:
    call = Call(recovered=True)
    assert _kill(call, call.runs, signal.SIGSTOP) == b""
    assert call.done == [signal.SIGSTOP]
