"""The FIFO ends of a process: opened, given to systemd's fd store, taken back, let go (design 7).

Of a terminal: the console socket and our ends (stdio/console.py), used by daemon/terminals.py. Of a
process with a logger: the FIFOs between the two (stdio/logger.py), used by daemon/loggers.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sdshim.core import logs, loguri
from sdshim.host import descriptors
from sdshim.stdio import console as terminal
from sdshim.stdio import fifo, journal, logger, ownership

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from sdshim.core.model import Stdio
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

FD_PREFIX = "io."


def check(stdio: Stdio) -> None:
    """Refuse streams that cannot be what they shall be. Raises InvalidArgument, and UnknownError in
    stock's words for log URIs of an unknown scheme."""
    if loguri.parse(stdio.stdout):
        stdio = replace(stdio, stdout="", stderr="")
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


async def hold(node: Node, task: Process) -> list[Awaitable[None]]:
    """Open our ends and give them to systemd; what is returned is to be awaited before the unit (or
    its logger's) starts: systemd has them then.

    Ends that came back from the fd store are kept as they are. Raises ResourceExhausted when new
    ones are more than there is room for.
    """
    me, held, folder = task.identity, task.held, node.store.folder(task.identity)
    stdio = logs.process_side(me.stdio, str(folder), me.log.mode)
    fresh: list[str] = []
    if me.log.piped:
        fresh += journal.hold(held, me.stdio, folder)
    elif me.log.mode == logs.NULL:
        fresh += journal.hold_client(held, me.stdio)
    if takes_output := loguri.parse(me.stdio.stdout):
        fresh += logger.hold(held, takes_output, folder)
    if stdio.terminal:
        fresh += terminal.hold(held, stdio, console_path(node, task))
    else:
        fresh += fifo.hold(held, stdio)
        ownership.give(held, me.runtime.io_uid, me.runtime.io_gid)
    descriptors.demand(0)
    await node.keeper.demand(len(fresh))
    node.crash("streams.opened")
    # FDPOLL=0: systemd would drop a FIFO whose peer hangs up (units 7). A CloseIO that came while
    # there was a wait for room has let go of stdin.
    return [
        node.keeper.keep(fd_name(task, stream), held.ends[stream], poll=False)
        for stream in fresh
        if stream in held.ends
    ]


def take(task: Process, stream: str, fd: int) -> None:
    """Take an end back from the fd store."""
    task.held.ends[stream] = fd


def opened(node: Node, task: Process) -> None:
    """The unit has opened its streams: drop the ends that made its opens return at once, and those
    that kept the end from its logger."""
    for name in (fifo.OPENING, *logger.WRITERS.values(), logger.READY):
        let_go(node, task, name)
    node.output.attach(task)


def close_stdin(node: Node, task: Process) -> None:
    """CloseIO: EOF for the container as soon as the client has closed its own end."""
    let_go(node, task, fifo.STDIN)


def let_go(node: Node, task: Process, stream: str) -> None:
    """Close one end, here and in the fd store, if it is held."""
    if task.held.close(stream):
        node.keeper.remove(fd_name(task, stream))


def finish(node: Node, task: Process) -> None:
    """There will be no more output from us: whoever reads sees the end of file, once he has read
    what is there. What a logger, or the journal, has not taken yet is held until `release`."""
    if task.pump:
        task.pump.close()
        task.pump = None
    if task.identity.stdio.terminal:
        console_path(node, task).unlink(missing_ok=True)
    unread: tuple[str, ...] = ()
    if task.identity.log.piped:
        unread = (fifo.STDOUT, fifo.STDERR, *journal.CLIENT.values())
    elif loguri.parse(task.identity.stdio.stdout):
        unread = (fifo.STDOUT, fifo.STDERR)
    for stream in task.held.ends.keys() - set(unread):
        let_go(node, task, stream)


def release(node: Node, task: Process) -> None:
    """Let go of every end, here and in the fd store."""
    finish(node, task)
    for stream in task.held.close_all():
        node.keeper.remove(fd_name(task, stream))


def parse(name: str) -> tuple[str, str]:
    """(token, stream) of a name in the fd store; empty when it is not the name of an end."""
    if not name.startswith(FD_PREFIX):
        return "", ""
    token, _, stream = name.removeprefix(FD_PREFIX).partition(".")
    return token, stream
