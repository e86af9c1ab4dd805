"""What the next server finds: adoption and recovery, within one process."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from sdshim.ttrpc.calls import Reply
from sdshim.ttrpc.frames import MAX_DATA, parse_header
from sdshim.ttrpc.server import boottime
from sdshim.ttrpc.spool import Progress, Spool
from tests.unit.ttrpc_kit import (
    SERVICE,
    aio,
    house,
    may_raise_buffers,
    ok,
    receive,
    request,
    send,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path


@aio
async def test_connections_and_open_calls_pass_to_the_next_server() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create", b"x", timeout_nano=60_000_000_000))
        first = await here.call_arrived()
        here.stop()
        await here.start()
        here.server.resume()
        (call,) = here.handlers.calls
        assert call.recovered
        assert (call.key, call.payload, call.token) == (first.key, b"x", first.token)
        assert (call.method, call.service, call.namespace) == ("Create", SERVICE, "default")
        assert (call.deadline, call.received) == (first.deadline, first.received)
        assert call.peer_pid == os.getpid()
        assert not call.peer_gone()
        here.server.reply(call.key, ok(b"y"))
        assert await receive(sock) == (1, (0, "", b"y"))
        await send(sock, request(3, "State", b"z"))
        assert await receive(sock) == (3, (0, "", b"z"))


@aio
async def test_reading_begins_with_resume() -> None:
    async with house() as here:
        sock = here.connect()
        await until(lambda: "conn.1" in here.keeper.held)
        here.stop()
        await here.start()
        await send(sock, request(1, "State", b"z"))
        other = here.connect()
        await send(other, request(1, "State", b"o"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not here.handlers.inlined
        here.server.resume()
        assert (await receive(sock))[1].payload == b"z"
        assert (await receive(other))[1].payload == b"o"
        assert set(here.server.connections) == {1, 2}


@aio
async def test_an_answer_in_the_log_is_sent_without_asking_the_handlers() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create"))
        call = await here.call_arrived()
        here.log.done(call.key, (5, "gone: not found", b""), b"a note")
        here.stop()
        await here.start()
        (logged,) = here.log.open_calls()
        assert logged.note == b"a note"
        here.server.resume()
        assert await receive(sock) == (1, (5, "gone: not found", b""))
        assert not here.handlers.calls
        assert not here.log.open_calls()


@aio
async def test_calls_of_a_connection_that_is_gone_are_dispatched_too() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create"))
        await here.call_arrived()
        here.stop()
        here.keeper.remove("conn.1")
        sock.close()
        await here.start()
        here.server.resume()
        (call,) = here.handlers.calls
        assert call.connection is None
        assert call.peer_gone()
        assert here.log.connections() == []
        here.server.reply(call.key, ok())
        assert not here.log.open_calls()


@aio
async def test_a_frame_that_is_in_the_log_already_is_dropped_once() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create"))
        await here.call_arrived()
        here.stop()
        await send(sock, request(1, "Create") + request(1, "Create") + request(3, "State", b"s"))
        await here.start()
        here.server.resume()
        assert (await receive(sock))[1].code == 3  # the second of the two
        assert await receive(sock) == (3, (0, "", b"s"))
        assert len(here.handlers.calls) == 1


@aio
async def test_the_deadlines_rest_counts_after_a_restart() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create", timeout_nano=50_000_000))
        first = await here.call_arrived()
        here.stop()
        assert first.deadline is not None
        await here.start()
        here.server.resume()
        (call,) = here.handlers.calls
        assert (await receive(sock))[1].code == 4
        assert boottime() >= first.deadline
        here.server.reply(call.key, ok(b"late"))
        assert not here.log.open_calls()


@aio
async def test_a_deadline_answered_before_the_restart_is_not_answered_again() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create", timeout_nano=1_000_000))
        assert (await receive(sock))[1].code == 4
        here.stop()
        await here.start()
        here.server.resume()
        (call,) = here.handlers.calls
        here.server.reply(call.key, ok(b"late"))
        assert not here.log.open_calls()
        await send(sock, request(3, "State", b"s"))
        assert await receive(sock) == (3, (0, "", b"s"))


@aio
async def test_serials_are_never_used_again() -> None:
    async with house() as here:
        here.connect().close()
        await until(lambda: here.log.next_serial() > 2)
        await until(lambda: not here.server.connections)
        here.stop()
        await here.start()
        here.server.resume()
        here.connect()
        await until(lambda: bool(here.server.connections))
        assert min(here.server.connections) > 1


@aio
async def test_half_a_large_frame_goes_on_in_the_next_server() -> None:
    async with house() as here:
        sock = here.connect()
        frame = request(1, "Create", os.urandom(400_000))
        await send(sock, frame[:300_000])
        await until(lambda: "spool.1" in here.keeper.held)
        here.stop()
        await here.start()
        here.server.resume()
        await send(sock, frame[300_000:])
        call = await here.call_arrived()
        assert frame.endswith(call.payload)
        assert len(call.payload) == 400_000
        assert "spool.1" not in here.keeper.held


@aio
async def test_a_spool_that_was_dealt_with_is_not_dealt_with_again() -> None:
    async with house() as here:
        sock = here.connect()
        frame = request(1, "Create", bytes(400_000))
        await send(sock, frame[:300_000])
        await until(lambda: "spool.1" in here.keeper.held)
        stale = [os.dup(fd) for fd in here.keeper.held["spool.1"]]
        await send(sock, frame[300_000:] + request(3, "Create"))
        for number in (1, 2):
            here.server.reply((await here.call_arrived(number)).key, ok())
            await receive(sock)
        here.stop()
        here.keeper.held["spool.1"] = stale  # the store was told to drop it, but was not read
        await here.start()
        here.server.resume()
        await send(sock, request(5, "State", b"s"))
        assert await receive(sock) == (5, (0, "", b"s"))
        assert not here.handlers.calls
        assert "spool.1" not in here.keeper.held


@aio
async def test_a_restart_within_an_oversized_frame_closes_that_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "State", bytes(MAX_DATA + 10))[:100_000])
        assert (await receive(sock))[1].code == 8
        here.stop()
        await here.start()
        here.server.resume()
        with pytest.raises(EOFError):
            await receive(sock)
        assert set(here.keeper.held) == {"listen.default"}
        assert "oversized" in caplog.text


@pytest.mark.skipif(not may_raise_buffers(), reason="needs CAP_NET_ADMIN")
@aio
async def test_replies_that_never_left_are_sent_by_the_next_server() -> None:
    async with house() as here:
        sock = here.connect()
        for n in range(1, 80, 2):
            await send(sock, request(n, "Wait"))
        await here.call_arrived(40)
        for call in list(here.handlers.calls):
            here.server.reply(call.key, ok(b"%d" % call.key.stream * 400_000))
        left = len(here.server.open_calls)
        assert 0 < left < 40
        here.stop()
        await here.start()
        here.server.resume()
        assert len(here.server.open_calls) == left
        assert not here.handlers.calls
        for n in range(1, 80, 2):
            assert await receive(sock) == (n, (0, "", b"%d" % n * 400_000))
        await until(lambda: not here.log.open_calls())


@aio
async def test_a_name_of_somebody_else_is_left_alone() -> None:
    async with house() as here:
        read, write = os.pipe()
        for name in ("stdin.x", "conn.x", "conn", "spool.", "listen"):
            assert not here.server.adopt(name, read)
        os.close(read)
        os.close(write)


@aio
async def test_a_reply_to_an_unknown_call_is_ignored() -> None:
    async with house() as here:
        call = here.connect()
        await send(call, request(1, "Create"))
        key = (await here.call_arrived()).key
        here.server.reply(key._replace(stream=77), ok())
        here.server.reply(key, Reply(0, "", b"x"))
        assert (await receive(call))[1].payload == b"x"


def test_a_spool_takes_no_byte_of_the_next_frame() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        frame = request(1, "Create", bytes(80_000))
        theirs.sendall(frame + b"next")
        spool = Spool.create(parse_header(frame))
        assert spool.advance(ours.fileno(), lambda point: None) is Progress.WHOLE
        assert spool.data() == frame[10:]
        assert ours.recv(100) == b"next"
        spool.finish()
        assert Spool.adopt(spool.fds) is None  # dealt with; its descriptors are closed


def test_an_incomplete_set_of_spool_descriptors_is_an_unused_one() -> None:
    frame = request(1, "Create", bytes(80_000))
    read, write, file = Spool.create(parse_header(frame)).fds
    os.close(write)
    assert Spool.adopt([file, read]) is None


@aio
async def test_connections_whose_log_is_unreadable_are_ended_by_the_next_server_that_resumes() -> (
    None
):
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create"))
        await here.call_arrived()
        here.stop()
        (here.directory / "calls").write_bytes(b"of quite another program\n")
        await here.start()
        here.stop()  # dies before it could do anything
        await here.start()
        here.server.resume()
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        assert "conn.1" not in here.keeper.held
        other = here.connect()
        await send(other, request(1, "Create"))
        await here.call_arrived()
        here.stop()
        await here.start()
        here.server.resume()
        here.server.reply((await here.call_arrived()).key, ok(b"x"))
        assert (await receive(other))[1].payload == b"x"


def damage(log: Path, payload: bytes, offset: int, size: int) -> None:
    """Turn bytes of the log, so far from where the payload of a call begins."""
    data = bytearray(log.read_bytes())
    at = data.index(payload) + offset
    data[at : at + size] = bytes(255 - byte for byte in data[at : at + size])
    log.write_bytes(data)


@aio
async def test_a_damaged_record_of_the_log_costs_its_call_or_the_connections_of_its_time() -> None:
    async with house() as here:
        log = here.directory / "calls"
        first, second = here.connect(), here.connect()
        for sock, payload in ((first, b"first one"), (second, b"second one")):
            await send(sock, request(1, "Create", payload))
            await here.call_arrived()
        here.stop()
        damage(log, b"first one", 0, 4)
        await here.start()
        here.server.resume()
        assert (await receive(first))[1].code == 13
        assert (await here.call_arrived()).payload == b"second one"
        await send(first, request(3, "Create", b"first two"))
        assert (await here.call_arrived(2)).payload == b"first two"
        here.stop()
        damage(log, b"second one", -100, 104)
        await here.start()
        here.server.resume()
        for sock in (first, second):
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        late = here.connect()
        await send(late, request(1, "Create", b"late"))
        await here.call_arrived(2)
        assert [call.payload for call in here.handlers.calls] == [b"first two", b"late"]
        assert not {"conn.1", "conn.2"} & set(here.keeper.held)
