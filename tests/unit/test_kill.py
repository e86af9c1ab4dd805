"""Kill that a daemon took over, when the process has ended meanwhile."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from sdshim.core.errors import NotFound
from sdshim.core.lifecycle import Phase
from sdshim.daemon.kill import kill

ENDED: Any = SimpleNamespace(phase=Phase.EXITED, pid=7)


def _kill(number: int, *, recovered: bool) -> bytes:
    call: Any = SimpleNamespace(recovered=recovered)
    return asyncio.run(kill(call, ENDED, number, False))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cut_kill_may_have_been_the_end_itself(number: int) -> None:
    assert _kill(number, recovered=True) == b""


def test_a_kill_after_the_end_is_told_so() -> None:
    with pytest.raises(NotFound, match="already finished"):
        _kill(signal.SIGKILL, recovered=False)


def test_a_cut_question_whether_it_lives_is_answered_by_no() -> None:
    with pytest.raises(NotFound, match="already finished"):
        _kill(0, recovered=True)
