"""The server over real AF_UNIX sockets, within one process."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket

import pytest

from sdshim.core.errors import DeadlineExceeded, NotFound, Unimplemented
from sdshim.ttrpc import reader
from sdshim.ttrpc.calls import MAX_TEXT
from sdshim.ttrpc.connection import Connection
from sdshim.ttrpc.frames import MAX_DATA, Request, encode_frame, encode_request
from tests.unit.ttrpc_kit import (
    SERVICE,
    Call,
    Reply,
    aio,
    house,
    listener,
    ok,
    receive,
    request,
    send,
    until,
)


@aio
async def test_an_inline_call_is_answered_at_once_and_leaves_no_trace() -> None:
    async with house() as here, await here.client() as client:
        assert await client.call(SERVICE, "State", b"x") == b"x"
        assert not here.server.open_calls
        assert here.log.last_stream(1) == 0


@aio
async def test_a_journalled_call_is_in_the_log_until_its_reply_has_left() -> None:
    async with house() as here, await here.client() as client:
        reply = asyncio.ensure_future(client.call(SERVICE, "Create", b"x"))
        call = await here.call_arrived()
        (logged,) = here.log.open_calls()
        assert logged.key == call.key == (1, 1)
        assert (logged.payload, logged.token) == (b"x", call.token)
        assert len(call.token) == 16
        here.server.reply(call.key, ok(b"y"))
        assert await reply == b"y"
        assert not here.log.open_calls()
        assert not here.server.open_calls


@aio
async def test_replies_may_come_in_any_order() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, b"".join(request(n, "Wait") for n in (1, 3, 5)))
        await here.call_arrived(3)
        for n in (3, 5, 1):
            here.server.reply(here.handlers.calls[n // 2].key, ok(b"%d" % n))
        assert [(await receive(sock))[0] for _ in range(3)] == [3, 5, 1]


@aio
async def test_a_second_reply_is_dropped() -> None:
    async with house() as here, await here.client() as client:
        reply = asyncio.ensure_future(client.call(SERVICE, "Create", b""))
        call = await here.call_arrived()
        here.server.reply(call.key, ok(b"1"))
        here.server.reply(call.key, ok(b"2"))
        assert await reply == b"1"
        assert await client.call(SERVICE, "State", b"x") == b"x"


@aio
async def test_the_namespace_is_the_listeners_and_metadata_is_lower_case() -> None:
    async with house() as here, await here.client() as client:
        await client.call(SERVICE, "State", b"", metadata=[("KEY", "a"), ("key", "b")])
        (call,) = here.handlers.inlined
        assert call.namespace == "default"
        assert call.metadata == {"key": ("a", "b")}
        assert call.peer_pid == os.getpid()
        await here.server.listen(listener(str(here.directory / "main.sock")), "", store=False)
        assert "listen." not in here.keeper.held
        main = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with main:
            main.connect(str(here.directory / "main.sock"))
            await send(main, request(1, "State"))
            await receive(main)
        assert here.handlers.inlined[1].namespace == ""


@pytest.mark.parametrize(
    ("frame", "code", "text"),
    [
        (request(1, "X", service="no.Such"), 12, "service no.Such"),
        (request(1, "Missing"), 12, "method Missing"),
        (encode_frame(1, 1, b"\x0a\x05x"), 3, "unmarshal request error: unexpected end of data"),
        (encode_frame(1, 1, b""), 12, "service "),
        (request(2, "State"), 3, "StreamID must be odd for client initiated streams"),
        (request(0, "State"), 3, "StreamID must be odd for client initiated streams"),
        (request(1, "Create", timeout_nano=-1), 4, "context deadline exceeded"),
    ],
)
def test_what_cannot_be_served_is_answered_and_taken(frame: bytes, code: int, text: str) -> None:
    @aio
    async def check() -> None:
        async with house() as here:
            sock = here.connect()
            await send(sock, frame + request(9, "State", b"after"))
            stream, response = await receive(sock)
            assert (stream, response.code, response.message) == (frame[7], code, text)
            assert (await receive(sock))[1].payload == b"after"
            assert not here.handlers.calls

    check()


@aio
async def test_a_stream_id_that_does_not_grow_is_refused() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, b"".join(request(n, "State") for n in (5, 5, 3, 7)))
        answers = [await receive(sock) for _ in range(4)]
        codes = [(stream, response.code) for stream, response in answers]
        assert codes == [(5, 0), (5, 3), (3, 3), (7, 0)]


@aio
async def test_an_error_keeps_its_code_and_text() -> None:
    async with house() as here, await here.client() as client:

        def missing(call: Call) -> bytes:
            raise NotFound("task x", hint="look")

        here.handlers.state = missing
        with pytest.raises(NotFound, match=r"^task x \(hint: look\)$"):
            await client.call(SERVICE, "State", b"")
        work = asyncio.ensure_future(client.call(SERVICE, "Create", b""))
        here.server.fail((await here.call_arrived()).key, NotFound("gone: not found"))
        with pytest.raises(NotFound, match=r"^gone: not found$"):
            await work


@aio
async def test_a_surprise_in_a_handler_becomes_unknown_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as here:

        def fail(call: Call) -> Reply:
            raise KeyError("é" * MAX_TEXT)

        here.handlers.state = here.handlers.answer = fail  # type: ignore[assignment]
        sock = here.connect()
        await send(sock, request(1, "State") + request(3, "Create"))
        for _ in range(2):
            _, response = await receive(sock)
            assert response.code == 2
            assert response.message.startswith("internal error: KeyError('éé")
            assert MAX_TEXT - 8 <= len(response.message.encode()) <= MAX_TEXT
        assert len([r for r in caplog.records if r.exc_info]) == 2


@aio
async def test_a_deadline_ends_the_reply_not_the_operation() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create", timeout_nano=20_000_000))
        _, response = await receive(sock)
        assert (response.code, response.message) == (4, "context deadline exceeded")
        (call,) = here.handlers.calls
        assert call.key in here.server.open_calls
        (logged,) = here.log.open_calls()
        assert logged.expired
        here.server.reply(call.key, ok(b"late"))
        assert not here.log.open_calls()
        await send(sock, request(3, "State", b"next"))
        assert (await receive(sock))[1].payload == b"next"


@aio
async def test_a_clients_timeout_is_a_deadline_here() -> None:
    async with house() as here, await here.client() as client:
        with pytest.raises(DeadlineExceeded):
            await client.call(SERVICE, "Create", b"", timeout=0.02)
        assert (await here.call_arrived()).deadline is not None


@aio
async def test_the_longest_deadline_is_fine() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create", timeout_nano=(1 << 63) - 1))
        here.server.reply((await here.call_arrived()).key, ok(b"x"))
        assert (await receive(sock))[1].payload == b"x"


@pytest.mark.parametrize("size", [65_000, 70_000, 300_000, MAX_DATA - 100])
def test_frames_of_any_legal_size_pass_both_ways(size: int) -> None:
    @aio
    async def check() -> None:
        async with house() as here, await here.client() as client:
            here.handlers.answer = lambda call: ok(call.payload)
            data = random.Random(size).randbytes(size)
            for method in ("State", "Create"):
                assert await client.call(SERVICE, method, data) == data
                assert await client.call(SERVICE, method, b"small") == b"small"
            assert set(here.keeper.held) == {"listen.default", "conn.1"}

    check()


@aio
async def test_a_large_frame_of_an_unknown_type_is_ignored() -> None:
    async with house() as here:
        sock = here.connect()
        for kind, size in ((3, 5), (2, 0), (77, 200_000), (3, 100_000)):
            await send(sock, encode_frame(1, kind, bytes(size)))
        await send(sock, request(1, "State", b"x"))
        assert (await receive(sock))[1].payload == b"x"


@aio
async def test_an_oversized_frame_is_refused_and_the_connection_kept() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, encode_frame(1, 1, bytes(MAX_DATA + 1)) + request(1, "State", b"x"))
        stream, response = await receive(sock)
        assert (stream, response.code) == (1, 8)
        assert (await receive(sock))[1].payload == b"x"
        assert set(here.keeper.held) == {"listen.default", "conn.1"}
        await send(sock, encode_frame(3, 9, bytes(MAX_DATA + 1)) + request(3, "State", b"y"))
        assert await receive(sock) == (3, (0, "", b"y"))


@aio
async def test_a_response_that_is_too_large_becomes_an_error() -> None:
    async with house() as here:
        sock = here.connect()
        here.handlers.state = lambda call: bytes(MAX_DATA)
        await send(sock, request(1, "State"))
        _, response = await receive(sock)
        assert response.code == 13
        assert "4194304 are allowed" in response.message


@aio
async def test_a_peer_that_writes_byte_by_byte_is_understood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "STALL", 0.005)
    async with house() as here:
        sock = here.connect()
        for byte in request(1, "State", bytes(range(256)) * 8):  # many times what the buffer takes
            await send(sock, bytes([byte]))
        assert (await receive(sock))[1].payload == bytes(range(256)) * 8
        await send(sock, request(3, "State", b"x"))
        assert (await receive(sock))[1].payload == b"x"


@aio
async def test_a_busy_connection_lets_the_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "BURST", 2)
    async with house() as here:
        busy, quiet = here.connect(), here.connect()
        await until(lambda: len(here.server.connections) == 2)
        await send(busy, b"".join(request(n, "State", b"busy") for n in range(1, 200, 2)))
        await send(quiet, request(1, "State", b"quiet"))
        assert [(await receive(busy))[0] for _ in range(100)] == list(range(1, 200, 2))
        await receive(quiet)
        order = [call.payload for call in here.handlers.inlined]
        assert order.index(b"quiet") < 10


@aio
async def test_without_descriptors_a_large_frame_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "RETRY", 0.01)
    real = os.memfd_create
    failures = iter([errno.EMFILE, errno.ENFILE])

    def scarce(name: str, flags: int) -> int:
        for code in failures:
            raise OSError(code, os.strerror(code))
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", scarce)
    async with house() as here, await here.client() as client:
        data = bytes(100_000)
        assert await client.call(SERVICE, "State", data) == data
        assert len([r for r in caplog.records if "waits" in r.message]) == 2


@aio
async def test_a_fault_of_ours_costs_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with house() as here, await here.client() as good:
        await good.call(SERVICE, "State", b"")
        bad = here.connect()
        await until(lambda: 2 in here.server.connections)

        def broken(conn: object) -> None:
            raise ZeroDivisionError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "take", broken)
            await send(bad, request(1, "Create"))
            with pytest.raises((EOFError, ConnectionResetError)):
                await receive(bad)
        assert "ZeroDivisionError" in caplog.text
        assert await good.call(SERVICE, "State", b"x") == b"x"


@aio
async def test_a_client_that_reads_unimplemented_gets_that_class() -> None:
    async with house() as here, await here.client() as client:
        with pytest.raises(Unimplemented, match=r"^method Missing$"):
            await client.call(SERVICE, "Missing", b"")


def test_an_empty_metadata_is_shared_safely() -> None:
    assert encode_request(Request("s", "m")) == b"\x0a\x01s\x12\x01m"
