"""Reading frames without taking them, and waiting for bytes without spinning.

A frame stays in the socket until whoever reads it has made it safe elsewhere: `look` peeks at the
frame at the head, `consume` takes exactly that many bytes. So a process that dies in between
leaves the frame to the next one, which gets the same connection from the fd store.

A peeked byte is still there, so level-triggered polling would spin on an incomplete frame.
`EdgePoller` is therefore one edge-triggered epoll inside the asyncio loop, for all connections of
the process: a callback must go on until `look` says that nothing more can be done.
It must be told to `remove` a descriptor before that is closed: the copy in the fd store keeps the
open file alive, and with it its place in the epoll.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from sdshim.ttrpc.frames import HEADER, Header, parse_header

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

SMALL = 64 << 10  # data of a frame that surely fits the socket's buffer, and so can be peeked whole
_GLANCE = 4096
_LOG = logging.getLogger(__name__)


class Look(Enum):
    """What lies at the head of a connection."""

    NOTHING = auto()
    EOF = auto()
    BEGUN = auto()  # not even a header yet
    PART = auto()  # the beginning of a small frame
    LARGE = auto()  # the header of a frame that cannot be peeked whole
    FRAME = auto()


class Head(NamedTuple):
    """`header` is set for PART, LARGE and FRAME, `data` for FRAME."""

    look: Look
    header: Header = Header(0, 0, 0, 0)
    data: bytes = b""


def look(sock: socket.socket) -> Head:
    """Peek at the frame at the head; nothing is taken. The socket must not block."""
    try:
        seen = sock.recv(_GLANCE, socket.MSG_PEEK)
        if len(seen) < HEADER:
            return Head(Look.BEGUN if seen else Look.EOF)
        header = parse_header(seen)
        if header.length > SMALL:
            return Head(Look.LARGE, header)
        size = HEADER + header.length
        if len(seen) < size and len(seen) == _GLANCE:
            seen = sock.recv(size, socket.MSG_PEEK)
    except BlockingIOError:
        return Head(Look.NOTHING)
    except ConnectionError:  # the peer went away with bytes of ours unread
        return Head(Look.EOF)
    if len(seen) < size:
        return Head(Look.PART, header)
    return Head(Look.FRAME, header, seen[HEADER:size])


def consume(sock: socket.socket, size: int) -> None:
    """Take `size` bytes which `look` has seen."""
    while size:
        taken = len(sock.recv(size))
        if not taken:
            raise ConnectionResetError("bytes seen before are gone")
        size -= taken


def peer_gone(sock: socket.socket) -> bool:
    """Whether the peer closed its end (or its sending half), even behind frames not yet read."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


class EdgePoller:
    """Edge-triggered readiness of many descriptors, delivered by the asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._run)

    def add(self, fd: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` at each edge, the first soon when there is something now."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def writing(self, fd: int, wanted: bool) -> None:
        """Also tell (or no longer tell) when the descriptor can be written to."""
        out = select.EPOLLOUT if wanted else 0
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET | out)

    def remove(self, fd: int) -> None:
        """Forget a descriptor; to be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Leave the loop."""
        if not self._epoll.closed:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._callbacks.clear()

    def _run(self) -> None:
        # An edge told once is not told again: one callback's failure must not cost another's.
        for fd, events in self._epoll.poll(0, 256):
            callback = self._callbacks.get(fd)
            if callback is None:
                continue
            try:
                callback(events)
            except Exception:
                _LOG.exception("ttrpc: connection callback failed (descriptor %d)", fd)
