"""A container that says itself when it is ready: its unit is active only then (design 4).

Its unit is Type=notify with the PID file. Create answers when systemd has the container's init for
the main process, as with every other container; the start job goes on until READY=1, which may
never come, and nobody waits for it. Start, execs, Pause and Update do not depend on it.

The container speaks to a socket of ours (stdio/notifysocket.py), in whatever namespaces it lives
and whichever OCI runtime made it; what may be passed on is said to systemd in the name of its init.
A daemon that takes over has the socket from the fd store, or makes it again in the same folder.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sdshim.core import notify
from sdshim.core.errors import ResourceExhausted, ShimError
from sdshim.daemon import streams
from sdshim.host import descriptors
from sdshim.stdio import notifysocket
from sdshim.stdio.notifysocket import END

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task

log = logging.getLogger(__name__)


async def hold(node: Node, task: Task) -> None:
    """Make the socket, unless it is held, and have systemd keep it. Raises ResourceExhausted."""
    if END in task.held.ends:
        return
    descriptors.demand(1)
    await node.keeper.demand(1)
    try:
        fd = notifysocket.bind(node.store.folder(task.identity))
    except OSError as error:
        text = f"cannot make the notification socket of {task}"
        raise ResourceExhausted(text, cause=str(error)) from error
    task.held.ends[END] = fd
    await node.keeper.keep(streams.fd_name(task, END), fd, poll=False)


async def listen(node: Node, task: Task) -> None:
    """Pass on what the container says, if it has been given a socket."""
    if not task.identity.runtime.notify:
        return
    try:
        await hold(node, task)
    except ShimError as error:  # of one that runs; it was lost with a daemon
        log.warning("%s cannot say that it is ready: %s", task, error)
        return
    if task.listening is None and not task.ending:
        work = _listen(node, task, task.held.ends[END])
        task.listening = node.spawn(work, f"notifications of {task}")


def hush(task: Task) -> None:
    """Its init has ended: nobody would take its word."""
    if task.listening:
        task.listening.cancel()
        task.listening = None


async def _listen(node: Node, task: Task, fd: int) -> None:
    async def heard(message: bytes) -> None:
        state = notify.passed_on(message)
        if state:
            node.keeper.notify_for(task.pid, state)
        if notify.wants_answer(message):
            await node.keeper.barrier()

    await notifysocket.serve(fd, heard)
