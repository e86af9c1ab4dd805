"""Kill: a signal to init by pidfd, or to every process of the container."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from sdshim.core.errors import FailedPrecondition, InvalidArgument, NotFound
from sdshim.daemon import exits
from sdshim.daemon.process import Exec, Task
from sdshim.host import cgroup, freezer

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process
    from sdshim.ttrpc.server import Call

SAFE_TO_REPEAT = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)
"""What may be sent again when nobody knows whether it was sent (design 5)."""


async def kill(node: Node, call: Call, task: Process, number: int, everyone: bool) -> bytes:
    """Send a signal; 0 only asks. Raises NotFound `process already finished: not found` after the
    end; but an end that a cut Kill finds may be its own work, so that one has come to its aim."""
    try:
        _kill(call, task, number, everyone)
        node.crash("signal.sent")
    except NotFound:
        if not (call.recovered and number):
            raise
    return b""


def _kill(call: Call, task: Process, number: int, everyone: bool) -> None:
    if not 0 <= number <= signal.SIGRTMAX:
        raise InvalidArgument(f"signal {number} does not exist")
    if exits.is_over(task):
        raise NotFound("process already finished: not found")
    if not task.pid:  # an exec, or a container to be restored, before its Start
        raise FailedPrecondition("process not created: failed precondition")
    if task.unit_gone:  # it has ended; pid and cgroup may be somebody else's
        raise NotFound("process already finished: not found")
    if number and number not in SAFE_TO_REPEAT:
        if call.begun:
            return
        call.note_begun()
    if isinstance(task, Exec):
        kill_exec(task, number)
    elif everyone:
        _expect(task, number)
        cgroup.signal_all(task.identity.cgroup, number)
        _let_die(task, number)
    else:
        kill_init(task, number)


def kill_exec(child: Exec, number: int) -> None:
    """A signal to the process of an exec (not to its subreaper)."""
    gone = NotFound("exec kill error: process already finished: not found")
    try:
        fd = os.pidfd_open(child.pid)
    except ProcessLookupError as error:
        raise gone from error
    try:
        # The pidfd is open: if the pid is in the container now, it is the process that is meant.
        if not cgroup.holds(child.identity.cgroup, child.pid):
            raise gone
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError as error:
        raise gone from error
    finally:
        os.close(fd)


def kill_init(task: Process, number: int) -> None:
    """A signal to the container's init process."""
    if task.watched is None:
        raise NotFound("process already finished: not found")
    _expect(task, number)
    task.watched.kill(number)
    _let_die(task, number)


def _expect(task: Process, number: int) -> None:
    if number == signal.SIGKILL:
        task.excuse_oom()


def _let_die(task: Process, number: int) -> None:
    """What the v1 freezer has frozen only dies when it is thawed; runc thaws then, on v2 too.
    Nobody is told that it has been resumed."""
    if number == signal.SIGKILL:
        if isinstance(task, Task):
            task.doomed = True
        freezer.thaw(task.identity.cgroup)
