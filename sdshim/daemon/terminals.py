"""Terminals of processes: master taken and kept, pumped, resized, let go (design 7).

Order: console socket and FIFO ends in systemd's fd store → the unit starts → the master is received
and in the store → the first byte moves. All ends are `process.held.ends` by the names of
stdio/console.py, so a later daemon gets them back as it does FIFO ends, and pumps on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import UnknownError
from sdshim.core.lifecycle import Phase
from sdshim.daemon import streams
from sdshim.daemon.process import Exec
from sdshim.host.store import PROCESS_SPEC
from sdshim.stdio import console

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

log = logging.getLogger(__name__)

SIZE = "consoleSize"
"""Of the OCI process: an exec begins with the size that was asked for before its Start."""
DRAIN_S = 2.0
"""How long Delete waits for a reader to take what the terminal still holds (protocol 6.2)."""


def is_lost(process: Process) -> bool:
    """Whether the runtime, which has ended, has left no terminal: it has failed before, or an
    earlier daemon was killed between its accept() and the fd store."""
    ends = process.held.ends
    if not process.identity.stdio.terminal or console.MASTER in ends:
        return False
    return console.LISTENER not in ends or not console.has_sent(ends[console.LISTENER])


async def connect(node: Node, process: Process) -> None:
    """The runtime has ended well: take the terminal it sent, have systemd keep it, pump.

    Raises UnknownError when there is none.
    """
    if not process.identity.stdio.terminal:
        return
    ends = process.held.ends
    if console.MASTER not in ends:
        if is_lost(process):
            raise UnknownError(
                f"the terminal of {process} is lost",
                cause="the OCI runtime sent none, or the daemon died as it came",
                hint="start it again",
            )
        # Nothing between these two: a daemon that dies in between takes the terminal along.
        ends[console.MASTER] = console.receive(ends[console.LISTENER])
        node.crash("console.taken")
        kept = node.keeper.keep(
            streams.fd_name(process, console.MASTER), ends[console.MASTER], poll=False
        )
        await kept
    if isinstance(process, Exec) and (size := _spec(node, process).get(SIZE)):
        console.resize(ends[console.MASTER], size["width"], size["height"])
    streams.console_path(node, process).unlink(missing_ok=True)
    streams.let_go(node, process, console.LISTENER)
    pump(node, process)


def pump(node: Node, process: Process) -> None:
    """Move bytes, if the process has its terminal and nobody moves them yet."""
    ends = process.held.ends
    if console.MASTER not in ends or process.pump is not None:
        return
    process.pump = console.Pump(
        ends[console.MASTER],
        ends.get(console.SOURCE, -1),
        ends.get(console.SINK, -1),
        closed=lambda: streams.let_go(node, process, console.SOURCE),
        drained=lambda: streams.finish(node, process),
    )
    if process.phase in (Phase.EXITED, Phase.DELETED):
        process.pump.finish()


def ended(process: Process) -> None:
    """The process has ended: once its output is out, the client sees the end of it. Nobody waits:
    a reader may take its time."""
    if process.pump:
        process.pump.finish()


async def drained(process: Process) -> None:
    """Wait, within reason, until the output of a process that has ended is out."""
    if process.pump is None or process.phase is not Phase.EXITED:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            await process.pump.done.wait()


def resize(node: Node, process: Process, width: int, height: int) -> None:
    """ResizePty. Raises UnknownError in stock's words for an exec that has ended; without a
    terminal it does nothing, as in stock (protocol 3.4)."""
    if isinstance(process, Exec) and process.phase is Phase.EXITED:
        raise UnknownError("cannot resize a stopped container")
    if not process.identity.stdio.terminal or process.phase is Phase.EXITED:
        return
    master = process.held.ends.get(console.MASTER, -1)
    if master >= 0:
        console.resize(master, width, height)
        node.crash("terminal.resized")
    elif isinstance(process, Exec):
        spec = _spec(node, process)
        spec[SIZE] = {"width": width & 0xFFFF, "height": height & 0xFFFF}
        node.store.put(process.identity, PROCESS_SPEC, json.dumps(spec).encode())


def _spec(node: Node, child: Exec) -> dict[str, Any]:
    """The OCI process of an exec as it will be run (execs.process_spec)."""
    path = node.store.folder(child.identity) / PROCESS_SPEC
    spec: dict[str, Any] = json.loads(path.read_bytes())
    return spec
