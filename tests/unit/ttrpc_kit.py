"""What the ttrpc tests share: raw frames, a keeper that holds copies, handlers one can steer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import Unimplemented
from sdshim.host.calllog import CallLog
from sdshim.ttrpc.client import Client
from sdshim.ttrpc.frames import (
    HEADER,
    FrameType,
    Request,
    Response,
    decode_response,
    encode_frame,
    encode_request,
    parse_header,
)
from sdshim.ttrpc.sendqueue import SendQueue
from sdshim.ttrpc.server import Call, CallKey, CallKind, Reply, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

SERVICE = "test.Service"


def aio(test: Callable[..., Coroutine[Any, Any, None]], seconds: float = 15) -> Callable[..., None]:
    """Run a coroutine test in asyncio's debug mode.

    The limit is the loop's own: what pytest-timeout raises within a callback the loop swallows.
    """

    async def limited(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(limited(*args, **kwargs), debug=True)

    return run


def may_raise_buffers() -> bool:
    """Whether this process has CAP_NET_ADMIN, as the daemon does."""
    with socket.socket(socket.AF_UNIX) as sock:
        SendQueue(sock, lambda wanted: None)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 1 << 23


def request(
    stream: int, method: str, payload: bytes = b"", timeout_nano: int = 0, service: str = SERVICE
) -> bytes:
    """A request frame."""
    data = encode_request(Request(service, method, payload, timeout_nano))
    return encode_frame(stream, FrameType.REQUEST, data)


async def receive(sock: socket.socket) -> tuple[int, Response]:
    """The next response frame on a non-blocking socket: stream id and contents."""
    head = await exactly(sock, HEADER)
    header = parse_header(head)
    assert header.type == FrameType.RESPONSE
    assert header.flags == 0
    return header.stream, decode_response(await exactly(sock, header.length))


async def exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has come about (the test's timeout is the limit)."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


class Keeper:
    """A fd store in memory, which outlives the servers that fill it."""

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}
        self.gated = False  # barriers wait for `open_gate`
        self._waiting: list[asyncio.Future[None]] = []

    def keep(self, name: str, *fds: int, poll: bool = True) -> Awaitable[None]:
        del poll
        self.held.setdefault(name, []).extend(os.dup(fd) for fd in fds)
        kept = asyncio.get_running_loop().create_future()
        if not self.gated:
            kept.set_result(None)
        else:
            self._waiting.append(kept)
        return kept

    def open_gate(self) -> None:
        """Answer all barriers."""
        self.gated = False
        for kept in self._waiting:
            if not kept.done():
                kept.set_result(None)

    def remove(self, name: str) -> None:
        for fd in self.held.pop(name, ()):
            os.close(fd)

    def copies(self) -> Iterator[tuple[str, int]]:
        """What the next process is started with."""
        for name, fds in self.held.items():
            for fd in fds:
                yield name, os.dup(fd)

    def close(self) -> None:
        for name in list(self.held):
            self.remove(name)


class Handlers:
    """`State` and friends are inline, the rest waits until the test answers it."""

    def __init__(self) -> None:
        self.server: Server
        self.calls: list[Call] = []
        self.inlined: list[Call] = []
        self.answer: Callable[[Call], Reply | None] = lambda call: None
        self.state: Callable[[Call], bytes] = lambda call: call.payload

    def kind(self, service: str, method: str) -> CallKind:
        if service != SERVICE:
            raise Unimplemented(f"service {service}")
        if method == "Missing":
            raise Unimplemented(f"method {method}")
        return CallKind.INLINE if method == "State" else CallKind.JOURNALLED

    def inline(self, call: Call) -> bytes:
        self.inlined.append(call)
        return self.state(call)

    def dispatch(self, call: Call) -> None:
        self.calls.append(call)
        reply = self.answer(call)
        if reply is not None:
            self.server.reply(call.key, reply)


class House:
    """A directory with one listener, a log and a fd store, served by one server after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "s").mkdir()
        self.path = str(directory / "s" / "default")
        self.keeper = Keeper()
        self.handlers = Handlers()
        self.log: CallLog
        self.server: Server
        self._open: list[socket.socket] = []

    async def start(self, **options: Any) -> Server:
        """A first process, or the next one after `stop`."""
        self.handlers = Handlers()
        self.log = CallLog(self.directory / "calls")
        self.server = Server(self.handlers, self.log, self.keeper, **options)
        self.handlers.server = self.server
        for name, fd in self.keeper.copies():
            assert self.server.adopt(name, fd)
        if "listen.default" not in self.keeper.held:
            await self.server.listen(listener(self.path), "default")
        return self.server

    def stop(self) -> None:
        """The process ends; the store and the log stay."""
        self.server.close()
        self.log.close()

    def open_to_all(self) -> None:
        """Let other users reach the socket."""
        self.directory.chmod(0o755)
        Path(self.path).chmod(0o777)

    def connect(self) -> socket.socket:
        """A raw connection."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.connect(self.path)
        self._open.append(sock)
        return sock

    async def client(self) -> Client:
        return await Client.connect(self.path)

    async def call_arrived(self, count: int = 1) -> Call:
        await until(lambda: len(self.handlers.calls) >= count)
        return self.handlers.calls[count - 1]

    def close(self) -> None:
        self.stop()
        self.keeper.close()
        for sock in self._open:
            sock.close()


def listener(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(4096)
    return sock


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Socket paths may have 107 bytes only."""
    path = Path(tempfile.mkdtemp(prefix="sdshim-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.asynccontextmanager
async def house(**options: Any) -> AsyncIterator[House]:
    """A house whose first server runs."""
    with short_directory() as directory:
        here = House(directory)
        await here.start(**options)
        here.server.resume()
        try:
            yield here
        finally:
            here.close()


def ok(payload: bytes = b"") -> Reply:
    return Reply(0, "", payload)


__all__ = ["Call", "CallKey", "CallKind", "Client", "Reply"]
