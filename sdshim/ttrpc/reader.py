"""Reading: which frame lies at the head of a connection, wherever it lies.

The reader brings each frame, whole, to its `sink`, in order, one at a time per connection; the
sink says `take` when the frame is safe. Small frames are peeked at and stay in the socket until
then. A frame that cannot be peeked whole, or that has begun and does not come to its end (a peer
that writes byte by byte fills its send buffer with some 280 bytes), goes through a spool. An
oversized one is thrown away, under a mark in the fd store: it cannot be carried over a restart.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING

from sdshim.core.errors import ResourceExhausted
from sdshim.ttrpc.accept import NO_DESCRIPTORS, RETRY
from sdshim.ttrpc.frames import HEADER, MAX_DATA, FrameType
from sdshim.ttrpc.peek import EdgePoller, Look, look
from sdshim.ttrpc.spool import Progress, Spool

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from sdshim.core.points import Crash
    from sdshim.ttrpc.connection import Connection
    from sdshim.ttrpc.frames import Header
    from sdshim.ttrpc.protocols import FdKeeper, Sink

BURST = 64  # frames of one connection before the others have their turn
STALL = 0.2  # seconds after which a frame that has begun is spooled
_LOG = logging.getLogger(__name__)


class Reader:
    """Reads all connections of a server through one edge-triggered poller."""

    def __init__(
        self,
        sink: Sink,
        keeper: FdKeeper,
        poller: EdgePoller,
        *,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[[Coroutine[None, None, None]], None],
        crash: Crash,
    ) -> None:
        self._sink = sink
        self._keeper = keeper
        self._poller = poller
        self._loop = loop
        self._spawn = spawn
        self._crash = crash
        self.stopped = False

    def start(self, conn: Connection) -> None:
        """Read this connection from now on; its frames come with the next turns of the loop."""
        self._poller.add(conn.sock.fileno(), partial(self._ready, conn))
        if conn.spool is not None:  # the socket may be empty, and so have no edge to tell
            self._loop.call_soon(self._pump, conn)

    def take(self, conn: Connection) -> None:
        """The frame at the head is dealt with."""
        if conn.spool is not None:
            self.drop(conn)
        else:
            conn.take()

    def drop(self, conn: Connection) -> None:
        """Give up what belongs to a frame under way."""
        if conn.spool is not None:
            conn.spool.finish()
            self._crash("spool.finished")
            self._keeper.remove(f"spool.{conn.serial}")
            conn.spool.close()
            conn.spool = None
        if conn.discard:
            self._keeper.remove(f"discard.{conn.serial}")

    def resume(self, name: str, fds: list[int], connections: Mapping[int, Connection]) -> None:
        """What the store kept of a frame under way; connections are not being read yet."""
        kind, _, serial = name.partition(".")
        conn = connections.get(int(serial))
        if kind == "discard":
            for fd in fds:
                os.close(fd)
            if conn is not None:
                self._sink.end(conn, "the daemon was restarted in the middle of an oversized frame")
        else:
            spool = Spool.adopt(fds)
            if spool is not None and conn is not None:
                conn.spool = spool
                return
            if spool is not None:
                spool.close()
        self._keeper.remove(name)

    def _ready(self, conn: Connection, events: int) -> None:
        del events  # an edge of any kind: do all that can be done
        conn.queue.flush()
        self._pump(conn)

    def _may_read(self, conn: Connection) -> bool:
        return not (self.stopped or conn.closed or conn.waiting or conn.held)

    def _pump(self, conn: Connection) -> None:
        """Deal with frame after frame until nothing more can be done now."""
        for _ in range(BURST):
            if not self._may_read(conn):
                return
            try:
                if not self._step(conn):
                    return
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS:
                    self._sink.end(conn, str(error))
                    return
                _LOG.warning("ttrpc: %r waits: %s", conn, error)
                self._loop.call_later(RETRY, self._pump, conn)
                return
            except Exception:  # a fault of ours; no edge would ever wake this connection again
                _LOG.exception("ttrpc: %r fails", conn)
                self._sink.end(conn, "internal error")
                return
        self._loop.call_soon(self._pump, conn)

    def _step(self, conn: Connection) -> bool:
        """One step with the frame at the head; False when it must wait for something."""
        if conn.discard:
            return self._discard(conn)
        if conn.spool is not None:
            return self._advance(conn, conn.spool)
        head = look(conn.sock)
        if conn.stall is not None and head.look is not Look.PART:
            conn.stall.cancel()
            conn.stall = None
        if head.look is Look.FRAME:
            conn.head(head.header)
            self._crash("peek")
            self._sink.frame(conn, head.header, head.data)
            return True
        if head.look is Look.LARGE:
            self._large(conn, head.header)
        elif head.look is Look.EOF:
            self._sink.end(conn, "")
        elif head.look is not Look.NOTHING:
            self._part(conn, head.look)
        return False

    def _part(self, conn: Connection, found: Look) -> None:
        """A frame has begun. Its rest may be on the way, or never fit behind it in the buffer."""
        if conn.peer_gone() and look(conn.sock).look is found:
            self._sink.end(conn, "its peer left in the middle of a frame")
        elif found is Look.PART and conn.stall is None:
            conn.stall = self._loop.call_later(STALL, self._stalled, conn)

    def _stalled(self, conn: Connection) -> None:
        conn.stall = None
        if not self._may_read(conn):
            return
        head = look(conn.sock)
        if head.look is Look.PART:
            self._large(conn, head.header)
        else:
            self._pump(conn)

    def _large(self, conn: Connection, header: Header) -> None:
        """A frame that cannot be peeked whole: give the store what is needed first."""
        if header.length > MAX_DATA:
            mark = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            kept = self._keeper.keep(f"discard.{conn.serial}", mark, poll=False)
            os.close(mark)
            begin = self._begin_discard(conn, header, kept)
        else:
            conn.spool = Spool.create(header)
            kept = self._keeper.keep(f"spool.{conn.serial}", *conn.spool.fds, poll=False)
            begin = self._begin_spool(conn, kept)
        conn.waiting = True
        self._spawn(begin)

    async def _begin_spool(self, conn: Connection, kept: Awaitable[None]) -> None:
        await kept
        self._crash("spool.kept")
        conn.waiting = False
        self._pump(conn)

    async def _begin_discard(self, conn: Connection, header: Header, kept: Awaitable[None]) -> None:
        await kept
        conn.waiting = False
        if conn.closed:
            self._keeper.remove(f"discard.{conn.serial}")
            return
        conn.discard = HEADER + header.length
        if header.type == FrameType.REQUEST:
            text = f"message length {header.length} exceeds maximum message size of {MAX_DATA}"
            self._sink.refuse(conn, header.stream, ResourceExhausted(text))
        self._pump(conn)

    def _discard(self, conn: Connection) -> bool:
        try:
            more = conn.throw_away()
        except EOFError:
            self._sink.end(conn, "its peer left in the middle of a frame")
            return False
        if not conn.discard:
            self._keeper.remove(f"discard.{conn.serial}")
        return more

    def _advance(self, conn: Connection, spool: Spool) -> bool:
        progress = spool.advance(conn.sock.fileno(), self._crash)
        if progress is Progress.EOF:
            self._sink.end(conn, "its peer left in the middle of a frame")
        elif progress is Progress.WHOLE:
            self._crash("spool.whole")
            self._sink.frame(conn, spool.header, spool.data())
            return True
        return False
