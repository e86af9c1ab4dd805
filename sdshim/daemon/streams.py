"""The FIFO ends of a task: opened, given to systemd's fd store, taken back, let go (design 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.stdio import fifo

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.task import Task

FD_PREFIX = "io."
OPENING = "opening"


def fd_name(task: Task, stream: str) -> str:
    """Name of one end in the fd store."""
    return f"{FD_PREFIX}{task.identity.token}.{stream}"


async def hold(node: Node, task: Task) -> None:
    """Open our ends and have systemd keep them, before the unit starts.

    Ends that came back from the fd store are kept as they are.
    """
    if task.held.ends or task.held.opening >= 0:
        return
    task.held = fifo.hold(task.identity.stdio)
    ends = dict(task.held.ends)
    if task.held.opening >= 0:
        ends[OPENING] = task.held.opening
    # FDPOLL=0: systemd would drop a FIFO whose peer hangs up (units 7).
    kept = [node.keeper.keep(fd_name(task, s), fd, poll=False) for s, fd in ends.items()]
    for one in kept:
        await one


def take(task: Task, stream: str, fd: int) -> None:
    """Take an end back from the fd store."""
    if stream == OPENING:
        task.held.opening = fd
    else:
        task.held.ends[stream] = fd


def opened(node: Node, task: Task) -> None:
    """The unit has opened its stdin: drop the end that made its open return at once."""
    if task.held.opening >= 0:
        task.held.opened()
        node.keeper.remove(fd_name(task, OPENING))


def close_stdin(node: Node, task: Task) -> None:
    """CloseIO: EOF for the container as soon as the client has closed its own end."""
    if task.held.close(fifo.STDIN):
        node.keeper.remove(fd_name(task, fifo.STDIN))


def release(node: Node, task: Task) -> None:
    """Let go of every end, here and in the fd store."""
    opened(node, task)
    for stream in task.held.close_all():
        node.keeper.remove(fd_name(task, stream))


def parse(name: str) -> tuple[str, str]:
    """(token, stream) of a name in the fd store; empty when it is not the name of an end."""
    if not name.startswith(FD_PREFIX):
        return "", ""
    token, _, stream = name.removeprefix(FD_PREFIX).partition(".")
    return token, stream
