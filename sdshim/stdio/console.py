"""Terminals: the console socket, the pty's master, and a pump between it and the client's FIFOs.

The OCI runtime makes the pty and sends its master over a socket we listen on (protocol 6.5). Bytes
move by splice(2), inside the kernel (from a tty into a pipe: Linux 5.11 and newer): what has left
the pty is in the client's FIFO, and the other way round, so a SIGKILL of ours loses nothing and the
next daemon goes on with the same descriptors.

What we hold of the FIFOs: stdout O_RDWR (a client that leaves is neither SIGPIPE nor an error);
stdin's read end and, until CloseIO, a write end (a client that leaves is not the end of stdin).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import socket
import stat
import struct
import termios
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import InvalidArgument, UnknownError
from sdshim.stdio.fifo import STDIN, Held, open_ends

if TYPE_CHECKING:
    from collections.abc import Callable

    from sdshim.core.model import Stdio

LISTENER, MASTER = "console", "master"
SOURCE, SINK = "tty-in", "tty-out"
"""Names of the ends we hold; fifo.STDIN is the write end that CloseIO closes."""

_SPLICE_F_NONBLOCK = 2
_CHUNK = 64 << 10
_TURN = 16
"""Moves in one turn of the event loop, of at most a page each out of a tty: others come next."""
_HELD_BY_PTY = (64 << 10) + 4096
"""All that a pty can hold: the kernel's flip buffer (TTYB_DEFAULT_MEM_LIMIT) and the line."""
_ROOM = 1 << 20
"""Of the stdout FIFO: a splice takes a page of it, however few its bytes, and sixteen lines that
nobody reads (a detached container) shall not stop the process; 256 may."""
_LOG = logging.getLogger(__name__)


def check(stdio: Stdio) -> None:
    """Refuse what cannot be the streams of a terminal. stderr is ignored: clients name a FIFO that
    they never make (protocol 6.1). Raises InvalidArgument."""
    for name, path in (("stdin", stdio.stdin), ("stdout", stdio.stdout)):
        if not path:
            continue
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument(f"{name}: {path!r} is not an absolute path")
        try:
            mode = Path(path).stat().st_mode
        except OSError as error:
            raise InvalidArgument(f"{name}: {path[:256]}", cause=error.strerror or "") from error
        if not stat.S_ISFIFO(mode):
            raise InvalidArgument(f"{name}: {path} is not a FIFO: a terminal needs one")


def hold(held: Held, stdio: Stdio, path: Path) -> list[str]:
    """Listen at `path` and open our ends of the FIFOs, each unless it is held already; the names of
    the new ones.

    Raises InvalidArgument when a stream cannot be opened; nothing new is held then.
    """
    # In this order: the write end of a FIFO can be opened once it has a reader.
    wanted = [(SINK, stdio.stdout, os.O_RDWR)]
    wanted += [(SOURCE, stdio.stdin, os.O_RDONLY), (STDIN, stdio.stdin, os.O_WRONLY)]
    fresh: list[str] = []
    try:
        fresh = open_ends(held, [end for end in wanted if end[1]])
        if SINK in fresh:
            with contextlib.suppress(PermissionError):
                fcntl.fcntl(held.ends[SINK], fcntl.F_SETPIPE_SZ, _ROOM)
        if LISTENER not in held.ends and MASTER not in held.ends:
            held.ends[LISTENER] = listen(path)
            fresh.append(LISTENER)
    except OSError as error:
        for name in fresh:
            held.close(name)
        raise InvalidArgument(
            f"cannot open a stream: {error.filename or path}", cause=str(error)
        ) from error
    return fresh


def listen(path: Path) -> int:
    """A socket for the OCI runtime to connect to, in place of one that a dead daemon left."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))
        listener.listen(1)
        return listener.detach()


def has_sent(listener: int) -> bool:
    """Whether somebody has connected and was not taken yet."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def receive(listener: int) -> int:
    """The master that the OCI runtime has sent; it has ended, so this never waits.

    Raises UnknownError when there is no message with exactly one descriptor.
    """
    fds = array("i")
    listening = socket.socket(fileno=listener)
    try:
        with listening.accept()[0] as peer:
            peer.setblocking(False)
            room = socket.CMSG_SPACE(8 * fds.itemsize)
            _, rights, _, _ = peer.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise UnknownError("the OCI runtime sent no terminal", cause=str(error)) from error
    finally:
        listening.detach()
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise UnknownError(f"the OCI runtime sent {len(fds)} descriptors, not one terminal")
    os.set_blocking(fds[0], False)
    return fds[0]


def resize(master: int, width: int, height: int) -> None:
    """Set the terminal's size; both are cut to 16 bits as stock does."""
    size = struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0)
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


class Pump:
    """Moves bytes between one pty's master and FIFOs, as fast as the slower side takes them.

    It has an epoll of its own: edge-triggered, so that neither a full FIFO nor a pty without a
    slave makes it spin, and one terminal's standstill is nobody else's. Whatever edge comes, both
    directions are tried until neither can move. The descriptors belong to the caller, who calls
    close() before closing them (the copies in the fd store would keep them in the epoll).
    """

    def __init__(
        self,
        master: int,
        source: int,
        sink: int,
        *,
        closed: Callable[[], None],
        drained: Callable[[], None],
    ) -> None:
        """`source` and `sink` are -1 when the client gave none: no input, output thrown away.
        `closed` is called once at the end of stdin, `drained` once after finish()."""
        self._loop = asyncio.get_running_loop()
        self._master, self._source, self._sink = master, source, sink
        self._closed, self._drained = closed, drained
        self.done = asyncio.Event()
        """Set when it has stopped for good."""
        self._owed = -1
        self._again: asyncio.Handle | None = None
        self._epoll = select.epoll()
        self._epoll.register(master, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        if source >= 0:
            self._epoll.register(source, select.EPOLLIN | select.EPOLLET)
        if sink >= 0:
            self._epoll.register(sink, select.EPOLLOUT | select.EPOLLET)
        self._loop.add_reader(self._epoll.fileno(), self._woken)

    def finish(self) -> None:
        """The process has ended: move what the pty holds now, then call `drained`, even if others
        still have the terminal open and write to it."""
        if self._owed < 0 and not self._epoll.closed:
            self._owed = _HELD_BY_PTY
            self._schedule()

    def close(self) -> None:
        """Stop moving. Idempotent."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self.done.set()
        if self._again:
            self._again.cancel()
            self._again = None

    def _woken(self) -> None:
        self._epoll.poll(0, 8)
        self._turn()

    def _schedule(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._again:
            self._again.cancel()
            self._again = None
        try:
            more = self._move_in() | self._move_out()
        except OSError as error:
            _LOG.error("a terminal cannot be pumped any more: %s", error)
            self.close()
            return
        if self._owed >= 0 and self._is_drained():
            self.close()
            self._drained()
        elif more:
            self._schedule()

    def _move_out(self) -> bool:
        """Terminal → stdout; True when there is more to do at once."""
        for _ in range(_TURN):
            try:
                moved = self._out()
            except OSError as error:
                # Nothing there, no room, or (EIO) no slave is open now: one may be again.
                if isinstance(error, BlockingIOError) or error.errno == 5:
                    return False
                raise
            if not moved:
                return False
            if self._owed >= 0:
                self._owed = max(0, self._owed - moved)
        return True

    def _out(self) -> int:
        if self._sink < 0:
            return len(os.read(self._master, _CHUNK))
        return os.splice(self._master, self._sink, _CHUNK, flags=_SPLICE_F_NONBLOCK)

    def _is_drained(self) -> bool:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        return not self._owed or not any(e & select.POLLIN for _, e in poll.poll(0))

    def _move_in(self) -> bool:
        """Stdin → terminal; True when there is more to do at once."""
        if self._source < 0 or self._owed >= 0:
            return False
        for _ in range(_TURN):
            try:
                if not os.splice(self._source, self._master, _CHUNK, flags=_SPLICE_F_NONBLOCK):
                    self._end_input()
                    return False
            except OSError as error:
                if isinstance(error, BlockingIOError) or error.errno == 5:
                    return False
                raise
        return True

    def _end_input(self) -> None:
        """CloseIO was called, the client has gone, all of its bytes are in the terminal: type the
        end-of-file character, once for a line begun and once for the end of file."""
        self._epoll.unregister(self._source)
        self._source = -1
        with contextlib.suppress(OSError, termios.error):
            modes = termios.tcgetattr(self._master)
            if modes[3] & termios.ICANON:
                os.write(self._master, modes[6][termios.VEOF] * 2)
        self._closed()
