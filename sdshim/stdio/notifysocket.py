"""The datagram socket that a container says `READY=1` to, and the reading of it.

Kept in systemd's fd store: what is said while no daemon runs waits in the kernel, up to its queue
of datagrams, and the sender with it. A message is looked at, passed on, and only then taken: one
that a daemon died over is passed on once more, which says nothing new.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from sdshim.core.notify import FOLDER, MAX_MESSAGE, SOCKET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

END = "notify"
"""Its name among the ends held for a process."""
PAUSE_S = 0.01
"""After each message: a container that never stops talking delays nobody else."""


def bind(state_dir: Path) -> int:
    """Make the socket in the state folder, anew if one is there, for every user of the container.
    Raises OSError."""
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)  # whatever the umask
    made = socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        (folder / SOCKET).unlink(missing_ok=True)
        with short(folder) as place:
            made.bind(f"{place}/{SOCKET}")
        (folder / SOCKET).chmod(0o666)
        return made.detach()
    finally:
        made.close()


@contextlib.contextmanager
def short(folder: Path) -> Iterator[str]:
    """Another path of a folder, for a socket in it: such a path may have 107 bytes."""
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{at}"
    finally:
        os.close(at)


async def serve(fd: int, heard: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand each message to `heard`, then take it, until cancelled. `fd` stays the caller's."""
    with socket.socket(fileno=os.dup(fd)) as source:
        source.setblocking(False)
        while True:
            message = await _peek(source)
            if message is None:
                await _readable(source)
                continue
            await heard(message)
            source.recv(1)  # with its descriptors: a barrier's is closed with it
            await asyncio.sleep(PAUSE_S)


async def _peek(source: socket.socket) -> bytes | None:
    try:
        return source.recv(MAX_MESSAGE, socket.MSG_PEEK)
    except BlockingIOError:
        return None


async def _readable(source: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_reader(source.fileno(), told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(source.fileno())
