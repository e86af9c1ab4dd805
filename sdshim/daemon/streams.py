"""The FIFO ends of a process: opened, given to systemd's fd store, taken back, let go (design 7).

Of a terminal: the console socket and our ends (stdio/console.py), used by daemon/terminals.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.stdio import console as terminal
from sdshim.stdio import fifo, ownership

if TYPE_CHECKING:
    from pathlib import Path

    from sdshim.core.model import Stdio
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

FD_PREFIX = "io."
OPENING = "opening"


def check(stdio: Stdio) -> None:
    """Refuse paths that cannot be what they shall be. Raises InvalidArgument."""
    if stdio.terminal:
        terminal.check(stdio)
    else:
        fifo.check(stdio)


def fd_name(task: Process, stream: str) -> str:
    """Name of one end in the fd store."""
    return f"{FD_PREFIX}{task.identity.token}.{stream}"


def console_path(node: Node, task: Process) -> Path:
    """Where the OCI runtime sends the terminal: a socket's path may have 107 bytes."""
    return node.run_dir / "c" / task.identity.token


def console(node: Node, task: Process) -> str:
    """The same for the runtime's command line; empty when there is to be no terminal."""
    return str(console_path(node, task)) if task.identity.stdio.terminal else ""


async def hold(node: Node, task: Process) -> None:
    """Open our ends and have systemd keep them, before the unit starts.

    Ends that came back from the fd store are kept as they are.
    """
    if task.identity.stdio.terminal:
        await _hold_terminal(node, task)
        return
    if task.held.ends or task.held.opening >= 0:
        return
    task.held = fifo.hold(task.identity.stdio)
    ownership.give(task.held, task.identity.runtime.io_uid, task.identity.runtime.io_gid)
    ends = dict(task.held.ends)
    if task.held.opening >= 0:
        ends[OPENING] = task.held.opening
    # FDPOLL=0: systemd would drop a FIFO whose peer hangs up (units 7).
    kept = [node.keeper.keep(fd_name(task, s), fd, poll=False) for s, fd in ends.items()]
    for one in kept:
        await one


async def _hold_terminal(node: Node, task: Process) -> None:
    known = set(task.held.ends)
    terminal.hold(task.held, task.identity.stdio, console_path(node, task))
    ends = task.held.ends
    kept = [node.keeper.keep(fd_name(task, s), ends[s], poll=False) for s in ends.keys() - known]
    for one in kept:
        await one


def take(task: Process, stream: str, fd: int) -> None:
    """Take an end back from the fd store."""
    if stream == OPENING:
        task.held.opening = fd
    else:
        task.held.ends[stream] = fd


def opened(node: Node, task: Process) -> None:
    """The unit has opened its stdin: drop the end that made its open return at once."""
    if task.held.opening >= 0:
        task.held.opened()
        node.keeper.remove(fd_name(task, OPENING))


def close_stdin(node: Node, task: Process) -> None:
    """CloseIO: EOF for the container as soon as the client has closed its own end."""
    if task.held.close(fifo.STDIN):
        node.keeper.remove(fd_name(task, fifo.STDIN))


def release(node: Node, task: Process) -> None:
    """Let go of every end, here and in the fd store."""
    opened(node, task)
    if task.pump:
        task.pump.close()
        task.pump = None
    if task.identity.stdio.terminal:
        console_path(node, task).unlink(missing_ok=True)
    for stream in task.held.close_all():
        node.keeper.remove(fd_name(task, stream))


def parse(name: str) -> tuple[str, str]:
    """(token, stream) of a name in the fd store; empty when it is not the name of an end."""
    if not name.startswith(FD_PREFIX):
        return "", ""
    token, _, stream = name.removeprefix(FD_PREFIX).partition(".")
    return token, stream
