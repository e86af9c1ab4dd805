"""Loggers: FIFOs in the state folder between a process and the program that takes its output.

The process writes to `out` and `err`, the logger's unit reads them as 3 and 4 and tells by `ready`
(5) that it listens (protocol 6.4). What we hold, in systemd's fd store: the *read* ends of `out`
and `err` (a logger that dies is no SIGPIPE), until the process has opened its own also their
*write* ends (the logger sees no end before the beginning), and the read end of `ready`. None is
ever read: whether the logger is ready can be asked again by the next daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import loguri
from sdshim.core.errors import UnknownError
from sdshim.stdio.fifo import STDERR, STDOUT, open_ends

if TYPE_CHECKING:
    from sdshim.core.loguri import Logger
    from sdshim.stdio.fifo import Held

WRITERS = {STDOUT: "log-out", STDERR: "log-err"}
READY = "log-ready"
"""Names of the ends we hold beside fifo.STDOUT and fifo.STDERR."""

_OPEN = os.O_NONBLOCK | os.O_CLOEXEC
_FIFOS = {STDOUT: loguri.OUT, STDERR: loguri.ERR}


def prepare(logger: Logger) -> None:
    """See that the logger can be what it is named as: make the file and its folder, look at the
    program. May block on a slow disk. Raises UnknownError in stock's words (protocol 6.3, 6.4)."""
    if logger.scheme == loguri.FILE:
        _make_file(Path(logger.path))
    else:
        _check_program(logger.path)


def _make_file(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        # What is there already is in the way when it is no directory.
        number = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno
        raise _failed(f"mkdir {error.filename}", number) from error
    try:
        # Not blocking: it may name a FIFO that nobody reads.
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | _OPEN
        os.close(os.open(path, mode, 0o644))
    except OSError as error:
        raise _failed(f"open {path}", error.errno) from error


def _check_program(path: str) -> None:
    what = f"failed to start binary process: fork/exec {path}"
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise _failed(what, error.errno) from error
    if not (stat.S_ISREG(mode) and os.access(path, os.X_OK)):
        raise _failed(what, errno.EACCES)


def _failed(what: str, number: int | None) -> UnknownError:
    return UnknownError(f"{loguri.FAILED}: {what}: {os.strerror(number or 0).lower()}")


def hold(held: Held, logger: Logger, folder: Path) -> list[str]:
    """Make the FIFOs in `folder` and open our ends, each unless it is there already; the names of
    the new ones. Raises UnknownError."""
    wanted = [(READY, f"{folder}/{loguri.READY}", os.O_RDONLY)]
    for stream in (STDOUT,) if logger.scheme == loguri.FILE else (STDOUT, STDERR):
        # In this order: the write end of a FIFO can be opened once it has a reader.
        wanted.append((stream, f"{folder}/{_FIFOS[stream]}", os.O_RDONLY))
        wanted.append((WRITERS[stream], f"{folder}/{_FIFOS[stream]}", os.O_WRONLY))
    try:
        for _, path, _ in wanted:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
        return open_ends(held, wanted)
    except OSError as error:
        raise _failed(f"fifo {error.filename}", error.errno) from error


def said(ready: int) -> str:
    """What a logger has said by its ready FIFO: `byte`, `end` (it was opened and is closed), or
    nothing yet. Asking changes nothing."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    events = next((event for _, event in poll.poll(0)), 0)
    if events & select.POLLIN:
        return "byte"
    return "end" if events & select.POLLHUP else ""


async def heard(fd: int) -> None:
    """Return when there is something to be told about a descriptor that we hold."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_reader(fd, told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(fd)


def unread(folder: Path) -> int:
    """Bytes that the logger has not taken yet; 0 when nobody holds the FIFOs any more."""
    total = 0
    for name in _FIFOS.values():
        with contextlib.suppress(OSError):
            fd = os.open(folder / name, os.O_RDONLY | _OPEN)
            try:
                size = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
                total += int(struct.unpack("i", size)[0])
            finally:
                os.close(fd)
    return total
