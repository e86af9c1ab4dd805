"""Kill: a signal to init by pidfd, or to every process of the container."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from sdshim.core.errors import InvalidArgument, NotFound
from sdshim.daemon import exits
from sdshim.host import cgroup

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.task import Task
    from sdshim.ttrpc.server import Call

SAFE_TO_REPEAT = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)
"""What may be sent again when nobody knows whether it was sent (design 5)."""


async def kill(node: Node, call: Call, task: Task, number: int, everyone: bool) -> bytes:
    """Send a signal; 0 only asks. Raises NotFound `process already finished: not found` after the
    end."""
    if not 0 <= number <= signal.SIGRTMAX:
        raise InvalidArgument(f"signal {number} does not exist")
    if exits.is_over(task):
        raise NotFound("process already finished: not found")
    if call.recovered and number not in SAFE_TO_REPEAT:
        return b""
    if everyone:
        for pid in cgroup.pids(task.identity.cgroup):
            _signal(pid, number)
    else:
        kill_init(task, number)
    return b""


def kill_init(task: Task, number: int) -> None:
    """A signal to the container's init process."""
    if task.watched is None:
        raise NotFound("process already finished: not found")
    task.watched.kill(number)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
