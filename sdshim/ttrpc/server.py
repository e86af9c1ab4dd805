"""The ttrpc server whose connections and calls survive its process.

Protocol with the fd store: a connection is `conn.<serial>`, a listener `listen.<namespace>`, a
large frame under way `spool.<serial>` (three descriptors), and `discard.<serial>` marks a
connection in the middle of an oversized frame, which cannot be carried over a restart. Nothing is
read from a connection before the store has it.

Protocol with the log: see `calls`. A frame is taken out of its socket when it stands in the log;
an inline call (answered from memory) when its answer has left. Whatever instruction the process
dies at, the next one finds the frame in the socket, in the spool, or in the log:

    peek ─ log.received ─ consume ─ dispatch ┄┄ reply ─ log.done ─ send ─ log.sent
    peek ─ inline ─ send ─ consume

Only between `received` and `consume` it is in two places; stream ids grow, so the head frame of an
adopted connection that bears the last id in the log is taken and dropped.

Life: `adopt` each descriptor from the store, `listen` for the rest, `resume` (open calls first,
then reading), `quiesce` on SIGTERM. `close` only ends this process's part: the store and the log
keep everything. `crash` is called with the name of each point passed (core/points.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from sdshim.core.errors import DeadlineExceeded, Internal, InvalidArgument
from sdshim.core.points import nowhere
from sdshim.ttrpc.accept import Acceptor
from sdshim.ttrpc.calls import Call, CallKey, CallKind, Reply, reply_for
from sdshim.ttrpc.connection import Connection
from sdshim.ttrpc.frames import (
    MAX_DATA,
    FrameType,
    Response,
    decode_request,
    encode_frame,
    encode_response,
)
from sdshim.ttrpc.peek import EdgePoller
from sdshim.ttrpc.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from sdshim.core.errors import ShimError
    from sdshim.core.points import Crash
    from sdshim.ttrpc.frames import Header
    from sdshim.ttrpc.protocols import CallLog, FdKeeper, Handlers, OpenCall

QUEUE_LIMIT = 16 << 20  # replies a peer may leave unread, beyond what the kernel holds
_LOG = logging.getLogger(__name__)

__all__ = ["Call", "CallKey", "CallKind", "Reply", "Server"]


def boottime() -> float:
    """The clock of deadlines: it goes on while the machine sleeps, and over restarts."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Server:
    """Serves `handlers` on any number of listeners; must be made inside the running loop."""

    def __init__(
        self,
        handlers: Handlers,
        log: CallLog,
        keeper: FdKeeper,
        *,
        queue_limit: int = QUEUE_LIMIT,
        crash: Crash = nowhere,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handlers = handlers
        self._log = log
        self._keeper = keeper
        self._queue_limit = queue_limit
        self._crash = crash
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller = EdgePoller(self._loop)
        self._acceptor = Acceptor(self._loop, self._accepted)
        self._reader = Reader(
            self, keeper, self._poller, loop=self._loop, spawn=self._spawn, crash=crash
        )
        self._connections: dict[int, Connection] = {}
        self._calls: dict[CallKey, Call] = {}
        self._timers: dict[CallKey, asyncio.TimerHandle] = {}
        self._adopted: dict[str, list[int]] = {}  # spools and marks, until resume

    # -- life ----------------------------------------------------------------------------------

    @property
    def open_calls(self) -> Mapping[CallKey, Call]:
        """Calls whose work has not ended (or whose reply has not left)."""
        return self._calls

    @property
    def connections(self) -> Mapping[int, Connection]:
        """Connections by serial."""
        return self._connections

    @property
    def namespaces(self) -> list[str]:
        """The namespaces listened for."""
        return self._acceptor.namespaces

    @property
    def poller(self) -> EdgePoller:
        """For clients in the same loop."""
        return self._poller

    def adopt(self, name: str, fd: int) -> bool:
        """Take over a descriptor from the store; False (and not taken) if it is none of ours."""
        kind, dot, rest = name.partition(".")
        if kind == "listen" and dot:
            self._acceptor.add(rest, socket.socket(fileno=fd))
        elif kind == "conn" and rest.isdecimal():
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            serial = int(rest)
            last = self._log.last_stream(serial)
            conn = Connection(serial, sock, self._poller, last)
            conn.adopted_last = last
            self._log.opened(serial, conn.namespace)
            self._connections[serial] = conn
        elif kind in ("spool", "discard") and rest.isdecimal():
            self._adopted.setdefault(name, []).append(fd)
        else:
            return False
        return True

    async def listen(self, sock: socket.socket, namespace: str, *, store: bool = True) -> None:
        """Accept from a listening socket; returns when the store has it (if it shall)."""
        self._acceptor.add(namespace, sock)
        if store:
            await self._keeper.keep(f"listen.{namespace}", sock.fileno())

    def resume(self) -> None:
        """Go on where the last process stopped: open calls first, then accepting and reading."""
        for name, fds in self._adopted.items():
            self._reader.resume(name, fds, self._connections)
        self._adopted = {}
        for serial in self._log.connections():
            if serial not in self._connections:
                self._log.closed(serial)
        for conn in list(self._connections.values()):
            if self._log.is_lost(conn.serial):  # its peer would wait for ever: ended, it cleans up
                self.end(conn, "its open calls are unknown, the call log was unreadable")
        self._log.settled()
        for conn in self._connections.values():
            self._reader.start(conn)
        for entry in self._log.open_calls():
            self._recover(entry)
        self._acceptor.start()

    async def quiesce(self) -> None:
        """Stop accepting and reading; what was accepted already is in the store on return."""
        self._acceptor.stop()
        self._reader.stopped = True
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """End this process's part; connections live on in the store, calls in the log."""
        self._acceptor.close()
        self._reader.stopped = True
        for task in self._tasks:
            task.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for conn in self._connections.values():
            conn.close()
        self._connections.clear()
        self._poller.close()

    def _recover(self, entry: OpenCall) -> None:
        key = CallKey(*entry.key)
        call = Call(
            key,
            service=entry.service,
            method=entry.method,
            payload=entry.payload,
            metadata=entry.metadata,
            namespace=entry.namespace,
            peer_pid=entry.peer_pid,
            token=entry.token,
            received=entry.received,
            deadline=entry.deadline,
            connection=self._connections.get(key.conn),
            note_begun=partial(self._log.begun, key),
            recovered=True,
            begun=entry.begun,
        )
        call.answered = entry.expired
        self._calls[key] = call
        if entry.reply is not None:
            self._deliver(call, Reply(*entry.reply))
        else:
            self._start(call)

    # -- replies -------------------------------------------------------------------------------

    def reply(self, key: CallKey, reply: Reply, note: bytes = b"") -> None:
        """End a dispatched call. `note` goes into the same log record, for `CallLog.open_calls`."""
        call = self._calls.get(key)
        if call is None:
            _LOG.warning("ttrpc: reply for %d/%d, which is not open", *key)
            return
        if call.ended:
            _LOG.warning("ttrpc: second reply for %d/%d", *key)
            return
        if not call.answered and key.conn in self._connections:
            self._log.done(key, reply, note)
            self._crash("done")
        self._deliver(call, reply)

    def fail(self, key: CallKey, error: BaseException) -> None:
        """End a dispatched call with the error's status."""
        self.reply(key, reply_for(error))

    def _deliver(self, call: Call, reply: Reply) -> None:
        """Send the reply of a call, or nothing if its caller has had one; then it is over."""
        call.ended = True
        over = partial(self._sent, call.key)
        conn = self._connections.get(call.key.conn)
        if conn is None:
            over()
        elif call.answered:
            conn.queue.push(b"", over)  # after the answer, should that still be in the queue
        else:
            call.answered = True
            self._send(conn, call.key.stream, reply, over)

    def _send(self, conn: Connection, stream: int, reply: Reply, after: Callable[[], None]) -> None:
        data = encode_response(Response(*reply))
        if len(data) > MAX_DATA:
            _LOG.error("ttrpc: a response of %d bytes cannot be sent", len(data))
            error = Internal(f"the response has {len(data)} bytes, {MAX_DATA} are allowed")
            data = encode_response(Response(*reply_for(error)))
        self._crash("send")
        conn.queue.push(encode_frame(stream, FrameType.RESPONSE, data), after)
        if conn.queue.size > self._queue_limit:
            self.end(conn, f"its peer leaves {conn.queue.size} bytes of replies unread")

    def _sent(self, key: CallKey) -> None:
        self._crash("sent")
        self._log.sent(key)
        self._calls.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()

    def _expire(self, key: CallKey) -> None:
        """The caller's time is up: it gets its answer, the operation goes on."""
        self._timers.pop(key, None)
        call = self._calls[key]
        if call.answered or call.deadline is None:
            return
        left = call.deadline - boottime()
        if left > 0:  # the loop's clock is another one
            self._timers[key] = self._loop.call_later(left, self._expire, key)
            return
        call.answered = True
        conn = self._connections.get(key.conn)
        if conn is not None:
            late = reply_for(DeadlineExceeded("context deadline exceeded"))
            self._send(conn, key.stream, late, partial(self._log.expired, key))

    # -- connections ---------------------------------------------------------------------------

    def _accepted(self, sock: socket.socket) -> None:
        """The store comes first: until it has the socket, a death closes it."""
        serial = self._log.next_serial()
        self._crash("accept")
        try:
            kept = self._keeper.keep(f"conn.{serial}", sock.fileno())
            conn = Connection(serial, sock, self._poller, 0)
        except OSError:
            sock.close()
            raise
        self._connections[serial] = conn
        self._spawn(self._begin(conn, kept))

    async def _begin(self, conn: Connection, kept: Awaitable[None]) -> None:
        try:
            self._log.opened(conn.serial, conn.namespace)
            await kept
        except OSError as error:
            self.end(conn, str(error))
        self._crash("kept")
        if not conn.closed:
            self._reader.start(conn)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _LOG.error("ttrpc: a connection is not served", exc_info=error)

    def end(self, conn: Connection, why: str) -> None:
        """The connection is over; its operations go on without anybody to answer."""
        if conn.closed:
            return
        _LOG.log(logging.WARNING if why else logging.DEBUG, "ttrpc: %r ends: %s", conn, why)
        conn.closed = True
        del self._connections[conn.serial]
        conn.queue.abandon()
        self._log.closed(conn.serial)
        self._reader.drop(conn)
        self._keeper.remove(f"conn.{conn.serial}")
        conn.close()
        self._acceptor.connection_closed()

    # -- frames --------------------------------------------------------------------------------

    def frame(self, conn: Connection, header: Header, data: bytes) -> None:
        """A whole frame is at the head: make it safe or answer it, and take it."""
        adopted_last, conn.adopted_last = conn.adopted_last, 0
        known = bool(adopted_last) and header.stream == adopted_last
        if header.type != FrameType.REQUEST or known:
            self._reader.take(conn)
            return
        try:
            call, kind = self._judge(conn, header.stream, data)
            if kind is CallKind.JOURNALLED:
                self._journal(call)
                self._crash("append")
        except Exception as error:
            self._answer(conn, header.stream, reply_for(error))
            return
        if kind is CallKind.INLINE:
            try:
                reply = Reply(0, "", self._handlers.inline(call))
            except Exception as error:
                reply = reply_for(error)
            self._answer(conn, header.stream, reply)
            return
        self._reader.take(conn)
        self._crash("consume")
        self._calls[call.key] = call
        self._start(call)
        self._crash("dispatch")

    def _judge(self, conn: Connection, stream: int, data: bytes) -> tuple[Call, CallKind]:
        """The call that a request frame is, and how to serve it; or the error to answer."""
        if stream % 2 == 0:
            raise InvalidArgument("StreamID must be odd for client initiated streams")
        if stream <= conn.last:
            raise InvalidArgument("StreamID cannot be re-used and must increment")
        conn.last = stream
        request = decode_request(data)
        kind = self._handlers.kind(request.service, request.method)
        if request.timeout_nano < 0:
            raise DeadlineExceeded("context deadline exceeded")
        deadline = boottime() + request.timeout_nano / 1e9 if request.timeout_nano else None
        key = CallKey(conn.serial, stream)
        call = Call(
            key,
            service=request.service,
            method=request.method,
            payload=request.payload,
            metadata=request.metadata,
            namespace=conn.namespace,
            peer_pid=conn.peer_pid,
            token=os.urandom(16) if kind is CallKind.JOURNALLED else b"",
            received=time.time(),
            deadline=deadline,
            connection=conn,
            note_begun=partial(self._log.begun, key),
        )
        return call, kind

    def _journal(self, call: Call) -> None:
        self._log.received(
            call.key,
            service=call.service,
            method=call.method,
            payload=call.payload,
            metadata=call.metadata,
            namespace=call.namespace,
            peer_pid=call.peer_pid,
            token=call.token,
            received=call.received,
            deadline=call.deadline,
        )

    def _start(self, call: Call) -> None:
        if call.deadline is not None and not call.answered:
            left = max(0.0, call.deadline - boottime())
            self._timers[call.key] = self._loop.call_later(left, self._expire, call.key)
        try:
            self._handlers.dispatch(call)
        except Exception as error:
            self.fail(call.key, error)

    def _answer(self, conn: Connection, stream: int, reply: Reply) -> None:
        """Answer the frame at the head; it is taken when the answer has left."""
        conn.held = True
        self._send(conn, stream, reply, partial(self._release, conn))

    def _release(self, conn: Connection) -> None:
        self._crash("inline")
        conn.held = False
        if not conn.closed:
            self._reader.take(conn)

    def refuse(self, conn: Connection, stream: int, error: ShimError) -> None:
        """Answer a frame that is thrown away."""
        self._send(conn, stream, reply_for(error), _nothing)


def _nothing() -> None:
    pass
