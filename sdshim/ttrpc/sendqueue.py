"""What leaves on one connection: whole frames, in the order given, each handed over at most once.

A frame is given to the kernel in one send() that takes all of it or nothing, so that a process
which dies never leaves half a frame behind for the next one to stumble over. Up to 32 KiB that is
how AF_UNIX stream sockets work; for larger frames the send buffer is raised (this wants
CAP_NET_ADMIN) and a frame waits until the buffer surely has the room. Without that right a peer
that does not read can split a frame of more than about 100 KB: then, and only then, a death in
between garbles the connection.

`after` of each frame is called when the kernel has it, or when it can never be delivered.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING

from sdshim.ttrpc.frames import HEADER, MAX_DATA

if TYPE_CHECKING:
    from collections.abc import Callable

ATOMIC = 32 << 10
_SO_SNDBUFFORCE = 32
_BUFFER = 2 * (MAX_DATA + HEADER)  # the kernel doubles it; polls say "writable" at a quarter full


class SendQueue:
    """Frames on their way out of one non-blocking connection."""

    __slots__ = ("_buffer", "_dead", "_items", "_sock", "_want_write", "_writing", "size")

    def __init__(self, sock: socket.socket, want_write: Callable[[bool], None]) -> None:
        self._sock = sock
        self._want_write = want_write
        self._items: deque[tuple[bytes | memoryview, Callable[[], None]]] = deque()
        self._dead = False
        self._writing = False
        self.size = 0  # bytes not yet handed over
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        self._buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def push(self, frame: bytes, after: Callable[[], None]) -> None:
        """Send now if the kernel takes it and nothing waits, else when `flush` can."""
        waiting = bool(self._items)
        self._items.append((frame, after))
        self.size += len(frame)
        if not waiting:
            self.flush()
            if self._items and not self._writing:
                self._writing = True
                self._want_write(True)

    def flush(self) -> None:
        """Hand over what the kernel takes."""
        while self._items:
            frame, after = self._items[0]
            sent = len(frame) if self._dead else self._send(frame)
            self.size -= sent
            if sent < len(frame):
                self._items[0] = (memoryview(frame)[sent:], after)
                return
            self._items.popleft()
            after()
        if self._writing:
            self._writing = False
            self._want_write(False)

    def abandon(self) -> None:
        """The connection is over: nothing that waits will be delivered, nor anything pushed."""
        self._dead = True
        self._writing = False
        self.flush()

    def _send(self, frame: bytes | memoryview) -> int:
        if len(frame) > ATOMIC and not self._has_room(len(frame)):
            return 0
        try:
            return self._sock.send(frame, socket.MSG_NOSIGNAL) if frame else 0
        except BlockingIOError:
            return 0
        except OSError:  # the peer is gone; reading will find the end and close
            self._dead = True
            return len(frame)

    def _has_room(self, size: int) -> bool:
        need = 2 * size + 4096  # at worst the kernel's bookkeeping doubles it
        if need > self._buffer:
            return True  # it never will have: see above
        queued: int = struct.unpack(
            "i", fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
        )[0]
        return need <= self._buffer - queued
