"""A ttrpc client whose connection may be older than its process.

Events go to containerd over a connection that lives in the fd store. So a reply is peeked at,
reported to `on_ack`, and only then taken from the socket: whoever notes the acknowledgement there
misses none, whatever instruction the process dies at (it may see the last one twice); should
`on_ack` raise, the connection is given up with the reply still in it. A reply to a stream that an
earlier process sent is awaited with `expect`; the caller says by `next_stream` which ids are used
up.

Requests and replies that do not fit a socket's buffer are split, and such a connection cannot be
handed over in the middle of one; containerd's Forward has neither.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from sdshim.core.errors import DeadlineExceeded, ShimError, Unavailable
from sdshim.core.points import nowhere
from sdshim.ttrpc.calls import error_for
from sdshim.ttrpc.frames import (
    HEADER,
    MAX_DATA,
    FrameType,
    Request,
    Response,
    decode_response,
    encode_frame,
    encode_request,
)
from sdshim.ttrpc.peek import EdgePoller, Look, consume, look
from sdshim.ttrpc.sendqueue import SendQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from sdshim.core.points import Crash
    from sdshim.ttrpc.frames import Header

_LOG = logging.getLogger(__name__)
_PAUSE = 0.01  # between attempts, while a listener's backlog is full
_UNCLAIMED = 64  # early replies kept for `expect`


class Client:
    """Calls over one connected socket, any number at a time; owns the socket."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        next_stream: int = 1,
        on_ack: Callable[[int, Response], None] | None = None,
        poller: EdgePoller | None = None,
        crash: Crash = nowhere,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._crash = crash
        sock.setblocking(False)
        self._own_poller = poller is None
        self._poller = EdgePoller(self._loop) if poller is None else poller
        self._queue = SendQueue(sock, lambda on: self._poller.writing(sock.fileno(), on))
        self._on_ack = on_ack
        self._first = next_stream
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._unclaimed: dict[int, Response] = {}
        self._large: tuple[Header, bytearray] | None = None
        self.next_stream = next_stream
        self.closed = False
        self._poller.add(sock.fileno(), self._ready)

    @classmethod
    async def connect(
        cls,
        path: str,
        timeout: float = 5.0,  # noqa: ASYNC109
        *,
        poller: EdgePoller | None = None,
    ) -> Client:
        """Connect to a listening socket; Unavailable when that does not come about."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        sock.connect(path)
                        break
                    except BlockingIOError:  # the listener's backlog is full
                        await asyncio.sleep(_PAUSE)
        except OSError as error:  # TimeoutError is one
            sock.close()
            raise Unavailable(f"ttrpc: cannot connect to {path}", cause=str(error)) from error
        except BaseException:
            sock.close()
            raise
        return cls(sock, poller=poller)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket, for the fd store; the client keeps owning it."""
        return self._sock.fileno()

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        metadata: Iterable[tuple[str, str]] = (),
        timeout: float | None = None,  # noqa: ASYNC109  (it travels with the request)
        stream: int | None = None,
    ) -> bytes:
        """Send a request and return the reply's payload, or raise the error that came.

        `stream` sends it under an id of the caller's choice, for example once more.
        """
        if self.closed:
            raise Unavailable("ttrpc: closed")
        if stream is None:
            stream = self.next_stream
        self.next_stream = max(self.next_stream, stream + 2)
        pairs: dict[str, tuple[str, ...]] = {}
        for key, value in metadata:
            pairs[key] = (*pairs.get(key, ()), value)
        nano = 0 if timeout is None else max(1, int(timeout * 1e9))
        request = Request(service, method, payload, nano, pairs)
        frame = encode_frame(stream, FrameType.REQUEST, encode_request(request))
        self._unclaimed.pop(stream, None)
        waiting = self._wait_for(stream)
        self._queue.push(frame, _nothing)
        self._crash("event.sent")
        return await self._result(stream, waiting, timeout)

    async def expect(
        self,
        stream: int,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bytes:
        """The reply to a request that an earlier process sent."""
        waiting = self._wait_for(stream)
        early = self._unclaimed.pop(stream, None)
        if early is not None:
            waiting.set_result(early)
        elif self.closed:
            waiting.set_exception(Unavailable("ttrpc: closed"))
        return await self._result(stream, waiting, timeout)

    def close(self) -> None:
        """Give the connection up; calls under way fail."""
        self._end()

    def _wait_for(self, stream: int) -> asyncio.Future[Response]:
        if stream in self._waiting:
            raise ValueError(f"stream {stream} is awaited already")
        waiting: asyncio.Future[Response] = self._loop.create_future()
        self._waiting[stream] = waiting
        return waiting

    async def _result(
        self, stream: int, waiting: asyncio.Future[Response], seconds: float | None
    ) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                response = await waiting
        except TimeoutError:
            raise DeadlineExceeded("context deadline exceeded") from None
        finally:
            del self._waiting[stream]
        if response.code:
            raise error_for(response.code, response.message)
        return response.payload

    def _ready(self, events: int) -> None:
        del events
        self._queue.flush()
        try:
            while not self.closed and self._step():
                pass
        except Exception:  # of the socket or of on_ack: what was not taken stays to be seen again
            _LOG.exception("ttrpc: a client connection is given up")
            self._end()

    def _step(self) -> bool:
        """Deal with the frame at the head; False when there is no whole one."""
        if self._large is not None:
            return self._read_large(*self._large)
        head = look(self._sock)
        if head.look is Look.FRAME:
            self._frame(head.header, head.data)
            if not self.closed:
                consume(self._sock, HEADER + head.header.length)
            return True
        if head.look is Look.LARGE and head.header.length > MAX_DATA:
            _LOG.error("ttrpc: a reply of %d bytes ends the connection", head.header.length)
            self._end()
            return False
        if head.look is Look.LARGE:
            consume(self._sock, HEADER)
            self._large = (head.header, bytearray())
            return True
        if head.look is Look.EOF:
            self._end()
        return False

    def _read_large(self, header: Header, data: bytearray) -> bool:
        try:
            part = self._sock.recv(min(header.length - len(data), 256 << 10))
        except BlockingIOError:
            return False
        except ConnectionError:  # the peer went away with bytes of ours unread
            part = b""
        if not part:
            self._end()
            return False
        data += part
        if len(data) == header.length:
            self._large = None
            self._frame(header, bytes(data))
        return True

    def _frame(self, header: Header, data: bytes) -> None:
        if header.type != FrameType.RESPONSE:
            return
        try:
            response = decode_response(data)
        except ShimError as error:
            response = Response(int(error.code), str(error))
        if self._on_ack is not None:
            self._on_ack(header.stream, response)
        waiting = self._waiting.get(header.stream)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(response)
        elif header.stream < self._first and len(self._unclaimed) < _UNCLAIMED:
            self._unclaimed[header.stream] = response

    def _end(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._poller.remove(self._sock.fileno())
        self._queue.abandon()
        self._sock.close()
        if self._own_poller:
            self._poller.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("ttrpc: closed"))


def _nothing() -> None:
    pass
