"""ttrpc: the messages in frames, and frames in torn pieces on a real connection of a real server.

The first byte says what is fed: a request's message, a response's, a connection of the server, a
connection of the client (what a containerd answers).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from sdshim.core.errors import Internal, InvalidArgument, ShimError, Unimplemented
from sdshim.host.calllog import CallLog
from sdshim.ttrpc.client import Client
from sdshim.ttrpc.frames import (
    HEADER,
    MAX_DATA,
    FrameType,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_frame,
    encode_request,
    encode_response,
    parse_header,
)
from sdshim.ttrpc.server import Call, CallKind, Reply, Server
from tests.fuzz.kit import Fault, HurriedLoop, Target, no_surprise, pieces
from tests.unit.ttrpc_kit import Keeper

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

REQUEST, RESPONSE, SERVER, CLIENT = range(4)
SERVICE = "fuzz.Service"
_TURNS = 60


class _Echo:
    """`Now` is answered from memory, `Later` by way of the log."""

    server: Server

    def kind(self, service: str, method: str) -> CallKind:
        if service != SERVICE:
            raise Unimplemented(f"service {service}")
        if method not in ("Now", "Later"):
            raise Unimplemented(f"method {method}")
        return CallKind.INLINE if method == "Now" else CallKind.JOURNALLED

    def inline(self, call: Call) -> bytes:
        return call.payload

    def dispatch(self, call: Call) -> None:
        self.server.reply(call.key, Reply(0, "", call.payload))


class _Bench:
    """One server, for all inputs: what one connection leaves behind, the next would meet."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = HurriedLoop()
        self.keeper = Keeper()
        handlers = _Echo()
        path = Path(self.folder.name) / "s" / "fuzz"
        path.parent.mkdir()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(16)
        self.path = str(path)
        self.log = CallLog(Path(self.folder.name) / "calls")

        async def begin() -> Server:
            server = handlers.server = Server(handlers, self.log, self.keeper)
            await server.listen(listener, "fuzz", store=False)
            server.resume()
            return server

        self.server: Server = self.loop.do(begin())

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            self.log.close()

        self.loop.do(end())
        self.loop.close()
        self.folder.cleanup()

    async def talk(self, data: bytes, size: int) -> bytes:
        """What the server answers to `data`, sent in pieces, until it closes."""
        answer = bytearray()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.setblocking(False)
            for piece in pieces(data, size):
                left = memoryview(piece)
                while left:
                    try:
                        left = left[sock.send(left) :]
                    except BlockingIOError:
                        await asyncio.sleep(0)
                    except ConnectionError:
                        left = left[:0]
                    _receive(sock, answer)
                await asyncio.sleep(0)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            while _receive(sock, answer):  # noqa: ASYNC110 (both ends are in this loop)
                await asyncio.sleep(0)
        return bytes(answer)


def _receive(sock: socket.socket, into: bytearray) -> bool:
    """Take what is there; False when the other end is closed."""
    try:
        while part := sock.recv(1 << 16):
            into += part
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return False


@functools.cache
def _bench() -> _Bench:
    return _Bench()


def close() -> None:
    """The server has served."""
    _bench().close()
    _bench.cache_clear()


def _frames(data: bytes) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """(length, stream, contents) of each whole request frame or oversized one, and the rest."""
    found = []
    while len(data) >= HEADER:
        header = parse_header(data)
        end = HEADER + header.length
        oversized = header.length > MAX_DATA
        if header.type == FrameType.REQUEST and (oversized or len(data) >= end):
            found.append((header.length, header.stream, data[HEADER:end]))
        if len(data) < end:
            break
        data = data[end:]
    return found, data


def _check_server(data: bytes) -> None:
    bench = _bench()
    size = 1 + data[0] * data[0] if data else 1
    data = data[1:]
    if len(data) > 4096:
        size += len(data) // 64
    open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with no_surprise():
        answer = bench.loop.do(bench.talk(data, size), 60.0)
    replies: Counter[int] = Counter()
    while answer:
        header = parse_header(answer)
        if header.type != FrameType.RESPONSE or len(answer) < HEADER + header.length:
            raise Fault(f"not a whole response: {answer[:32]!r}")
        response = decode_response(answer[HEADER : HEADER + header.length])
        if "internal error" in response.message:
            raise Fault(response.message)
        replies[header.stream] += 1
        answer = answer[HEADER + header.length :]
    asked = Counter(stream for _, stream, _ in _frames(data)[0])
    if replies != asked:
        raise Fault(f"asked {dict(asked)}, answered {dict(replies)}")
    if bench.server.open_calls or bench.keeper.held:
        raise Fault(f"left: {bench.server.open_calls} {list(bench.keeper.held)}")
    if len(os.listdir("/proc/self/fd")) != open_files:  # noqa: PTH208
        raise Fault("descriptors are left open")


def _check_client(data: bytes) -> None:
    bench = _bench()
    ours, theirs = socket.socketpair()

    async def ask() -> None:
        client = Client(ours)
        try:
            call = asyncio.ensure_future(client.call("s", "m", b"", timeout=1.0))
            await asyncio.sleep(0)
            for piece in pieces(data[1:], 1 + data[0] if data else 1):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    theirs.send(piece, socket.MSG_DONTWAIT)
                await asyncio.sleep(0)
            theirs.close()
            with contextlib.suppress(ShimError):
                await call
        finally:
            client.close()

    with no_surprise(), theirs:
        bench.loop.do(ask(), 60.0)


def check(data: bytes) -> None:
    """Decoding and encoding again changes nothing; each request is answered once, nothing stays."""
    kind, data = (data[0] % 4 if data else 0), data[1:]
    if kind == REQUEST:
        with contextlib.suppress(InvalidArgument):
            request = decode_request(data)
            if decode_request(encode_request(request)) != request:
                raise Fault("a request does not come back")
    elif kind == RESPONSE:
        with contextlib.suppress(Internal):
            response = decode_response(data)
            again = Response(response.code, response.message if response.code else "", b"")
            kept = again._replace(payload=response.payload)
            if decode_response(encode_response(response)) != kept:
                raise Fault("a response does not come back")
    elif kind == SERVER:
        _check_server(data)
    else:
        _check_client(data)


def _request(stream: int, service: str, method: str, payload: bytes, nano: int) -> bytes:
    data = encode_request(Request(service, method, payload, nano, {"k": ("v",)}))
    return encode_frame(stream, FrameType.REQUEST, data)


def _shaped_frame() -> SearchStrategy[bytes]:
    streams = st.one_of(st.integers(1, 9), st.integers(0, 2**32 - 1))
    names = st.sampled_from([SERVICE, "other", ""])
    methods = st.sampled_from(["Now", "Later", "Never"])
    payload = st.one_of(st.binary(max_size=40), st.integers(0, 200_000).map(bytes))
    nanos = st.sampled_from([0, 1, -1, 10**9])
    right = st.builds(_request, streams, names, methods, payload, nanos)
    kinds = st.one_of(st.sampled_from([1, 1, 2, 3]), st.integers(0, 255))
    odd = st.builds(encode_frame, streams, kinds, st.binary(max_size=60), st.integers(0, 255))
    head = st.builds(
        lambda length, stream, kind: length.to_bytes(4, "big") + stream.to_bytes(4, "big") + kind,
        st.sampled_from([1, 100, 70_000, MAX_DATA, MAX_DATA + 1, 2**32 - 1]),
        streams,
        st.sampled_from([b"\1\0", b"\2\0", b"\xff\xff"]),
    )
    return st.one_of(right, right, odd, head)


def shapes() -> SearchStrategy[bytes]:
    """Sequences of frames for the server; messages with many repeated fields; answers."""
    sizes = st.binary(min_size=1, max_size=1)
    stream = st.lists(_shaped_frame(), max_size=8).map(b"".join)
    server = st.tuples(st.just(bytes([SERVER])), sizes, stream).map(b"".join)
    field = st.sampled_from(
        [
            b"\x2a\x00",
            b"\x2a\x05\x0a\x01k\x12\x00",
            b"\x0a\x01s",
            b"\x20\x01",
            b"\x0b\x0c",
            b"\x7a\x00",
        ]
    )
    many = st.tuples(field, st.integers(0, 300_000)).map(lambda pair: pair[0] * pair[1])
    kinds = st.sampled_from([bytes([REQUEST]), bytes([RESPONSE])])
    messages = st.tuples(kinds, many, st.binary(max_size=20)).map(b"".join)
    status = st.builds(Response, st.integers(-(2**31), 2**31 - 1), st.text(max_size=9), st.binary())
    answer = st.tuples(st.integers(0, 3), st.integers(0, 3), status.map(encode_response))
    answers = answer.map(lambda one: encode_frame(*one)).flatmap(
        lambda frame: sizes.map(lambda size: bytes([CLIENT]) + size + frame)
    )
    return st.one_of(server, server, messages, answers)


TARGET = Target(
    "frames",
    check,
    shapes,
    (
        bytes([REQUEST]) + encode_request(Request("s", "m", b"p", 5, {"k": ("v",)})),
        bytes([RESPONSE]) + encode_response(Response(5, "no", b"")),
        bytes([SERVER, 200])
        + _request(1, SERVICE, "Now", b"a", 0)
        + _request(3, SERVICE, "Later", b"b", 10**9),
        bytes([CLIENT, 9])
        + encode_frame(1, FrameType.RESPONSE, encode_response(Response(0, "", b"x"))),
    ),
    close,
)
