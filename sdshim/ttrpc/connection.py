"""One accepted connection: its descriptors, what it has read so far, and what waits to leave.

The frame at its head is in one of four places: still whole in the socket (taken by `consume` when
it is safe), in a spool (large), being thrown away (oversized), or already answered and held in the
socket until the answer has left (`held`: an inline call leaves no other trace of itself).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.ttrpc.accept import credentials, namespace_of
from sdshim.ttrpc.frames import HEADER
from sdshim.ttrpc.peek import consume, peer_gone
from sdshim.ttrpc.sendqueue import SendQueue

if TYPE_CHECKING:
    import asyncio
    import socket

    from sdshim.ttrpc.frames import Header
    from sdshim.ttrpc.peek import EdgePoller
    from sdshim.ttrpc.spool import Spool


class Connection:
    """Owns the socket from accept (or adoption) to `close`."""

    __slots__ = (
        "_poller",
        "adopted_last",
        "closed",
        "discard",
        "held",
        "last",
        "namespace",
        "peer_pid",
        "queue",
        "serial",
        "size",
        "sock",
        "spool",
        "stall",
        "waiting",
    )

    def __init__(self, serial: int, sock: socket.socket, poller: EdgePoller, last: int) -> None:
        self.serial = serial
        self.sock = sock
        self.namespace = namespace_of(sock)
        self.peer_pid = credentials(sock)[0]
        self.last = last  # the highest stream id so far
        self.adopted_last = 0  # set while the head may be a frame that is in the log already
        self.size = 0  # of the frame at the head, header included, while it is dealt with
        self.spool: Spool | None = None
        self.discard = 0  # bytes of an oversized frame still to be thrown away
        self.waiting = False  # for the fd store: nothing may be read
        self.held = False
        self.stall: asyncio.TimerHandle | None = None
        self.closed = False
        self._poller = poller
        self.queue = SendQueue(sock, lambda wanted: poller.writing(sock.fileno(), wanted))

    def peer_gone(self) -> bool:
        """Whether the peer has closed, even behind frames not yet read."""
        return self.closed or peer_gone(self.sock)

    def head(self, header: Header) -> None:
        """Note which frame is being dealt with."""
        self.size = HEADER + header.length

    def take(self) -> None:
        """Take the frame at the head out of the socket."""
        consume(self.sock, self.size)

    def close(self) -> None:
        """Give up this process's descriptors; whoever keeps copies keeps the connection."""
        self.closed = True
        if self.stall is not None:
            self.stall.cancel()
        self._poller.remove(self.sock.fileno())
        self.sock.close()
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def throw_away(self) -> bool:
        """Read and forget bytes of an oversized frame; False when there is nothing more now.

        EOFError when the peer has left.
        """
        try:
            data = self.sock.recv(min(self.discard, 256 << 10))
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        self.discard -= len(data)
        return True

    def __repr__(self) -> str:
        return f"connection {self.serial} ({self.namespace or 'main'}, pid {self.peer_pid})"
