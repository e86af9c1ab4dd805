"""OOM kills: /tasks/oom and the unit's status text, before the exit that a kill may have caused.

The kernel counts (host/oom.py); the count last seen stands in the task's record, so a kill is told
once, whoever has noticed it: this daemon when it was woken, the next one when it takes over, or
either at the exit of init or of an exec, from the cgroup or, when that has gone with its unit, from
the copy that the exit hook made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sdshim.core import exitrecord
from sdshim.core.errors import ShimError
from sdshim.core.lifecycle import Phase, Seen
from sdshim.host import oom as counter
from sdshim.host.store import KILLED, OOM

if TYPE_CHECKING:
    from sdshim.core.model import ExitStatus
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process, Task

log = logging.getLogger(__name__)


def watch(node: Node, task: Task) -> None:
    """Notice OOM kills in the container from now on; what was missed is noticed now."""
    if task.oom_watch is None:
        try:
            task.oom_watch = counter.Watch(task.identity.cgroup, lambda: look(node, task))
        except OSError as error:  # no memory controller, or it has ended: the exit says the rest
            log.debug("OOM kills in %s are not watched: %s", task, error)
    look(node, task)
    if task.record.life.ooms:
        show(node, task)  # the daemon before may have died just ahead of it


def unwatch(task: Task) -> None:
    """Nothing more is noticed."""
    if task.oom_watch:
        task.oom_watch.close()


def look(node: Node, task: Task) -> bool | None:
    """Tell of OOM kills that were not told yet. True: there were some; None: nobody counts (any
    more)."""
    kills = counter.kills(task.identity.cgroup)
    counted = kills if kills is not None else _left_by_hook(node, task)
    if counted is None or task.phase in (Phase.EXITED, Phase.DELETED):
        return None
    known = task.record.life.ooms
    if counted != known:
        try:
            task.see(Seen.OOM, ooms=counted)
        except ShimError as error:  # no room on /run; it is looked at again
            log.error("an OOM kill in %s cannot be noted: %s", task, error)
            return False
    if counted > known:
        log.warning("%s: OOM kill in the container, %d so far", task, counted)
        return True
    return None if kills is None else False


def judged(node: Node, task: Task, exit: ExitStatus, since: int = 0) -> ExitStatus:
    """The exit of a container's process with the OOM killer as its reason, if it was that; kills
    not told yet are told first. `since`: the count when the process began."""
    look(node, task)
    since = max(since, exitrecord.number(node.store.text(task.identity, KILLED)))
    return exitrecord.blamed(exit, task.record.life.ooms - since)


def excuse(node: Node, task: Process) -> None:
    """A client sends SIGKILL to init: the OOM kills so far are not to be blamed for its end, not by
    the exit hook either."""
    kills = task.record.life.ooms
    if kills and not task.identity.exec_id:
        try:
            node.store.put(task.identity, KILLED, str(kills).encode())
        except ShimError as error:
            log.warning("the end of %s will be put down to want of memory: %s", task, error)


def show(node: Node, task: Process) -> None:
    """Say it in the status text of the container's unit, in the name of its main process. When that
    has ended the exit hook says it."""
    node.keeper.notify_for(task.pid, f"STATUS={status_text(task.record.life.ooms)}")


def status_text(kills: int) -> str:
    """What `systemctl status` shows; the exit hook has the same words."""
    return f"OOM: the kernel has killed in this container for want of memory, {kills} so far"


def _left_by_hook(node: Node, task: Task) -> int | None:
    text = node.store.text(task.identity, OOM)
    return counter.kills_in(text) if text else None
