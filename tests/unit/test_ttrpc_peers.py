"""Peers of the server that are slow, gone, strangers or many, over real AF_UNIX sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import subprocess
import sys

import pytest

from sdshim.core.errors import ResourceExhausted
from sdshim.ttrpc import peek, reader
from sdshim.ttrpc.accept import Acceptor
from sdshim.ttrpc.frames import HEADER
from tests.unit.ttrpc_kit import (
    SERVICE,
    aio,
    house,
    ok,
    receive,
    request,
    send,
    short_directory,
    until,
)


@aio
async def test_an_incomplete_frame_costs_nothing_while_it_waits() -> None:
    async with house() as here:
        sock = here.connect()
        whole = request(1, "State", b"x" * 50)
        await send(sock, whole[:20])
        await until(lambda: bool(here.server.connections))
        peeks = 0
        real = peek.look

        def counted(sock: socket.socket) -> object:
            nonlocal peeks
            peeks += 1
            return real(sock)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "look", counted)
            for _ in range(200):
                await asyncio.sleep(0)
            assert peeks <= 2
        await send(sock, whole[20:])
        assert (await receive(sock))[1].payload == b"x" * 50


@pytest.mark.parametrize("cut", [1, HEADER, 30, 70_000])
def test_a_peer_that_leaves_within_a_frame_is_forgotten(cut: int) -> None:
    @aio
    async def check() -> None:
        async with house() as here:
            sock = here.connect()
            await send(sock, request(1, "State", bytes(80_000 if cut > 100 else 100))[:cut])
            await until(lambda: bool(here.server.connections))
            sock.close()
            await until(lambda: not here.server.connections)
            assert set(here.keeper.held) == {"listen.default"}
            assert here.log.connections() == []

    check()


@aio
async def test_garbage_harms_nobody_else() -> None:
    rng = random.Random(7)
    async with house() as here, await here.client() as client:
        for round_ in range(60):
            sock = here.connect()
            data = rng.randbytes(rng.choice((3, 10, 40, 3000)))
            if round_ % 2:  # plausible lengths get further
                data = b"\0\0" + data + request(1, "State")
            await send(sock, data)
            assert await client.call(SERVICE, "State", b"%d" % round_) == b"%d" % round_
            sock.close()
        await until(lambda: len(here.server.connections) == 1)
        await until(lambda: set(here.keeper.held) == {"listen.default", "conn.1"})


@aio
async def test_when_the_peer_leaves_its_operations_go_on_and_replies_are_dropped() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create"))
        call = await here.call_arrived()
        assert not call.peer_gone()
        sock.close()
        await until(lambda: not here.server.connections)
        assert "conn.1" not in here.keeper.held
        assert here.log.connections() == []
        assert call.peer_gone()
        assert [entry.key for entry in here.log.open_calls()] == [(1, 1)]
        here.server.reply(call.key, ok())
        assert not here.log.open_calls()
        assert not here.server.open_calls


@aio
async def test_a_peer_that_left_is_seen_behind_its_queued_frames() -> None:
    async with house() as here:
        sock = here.connect()
        gone = []
        here.handlers.answer = lambda call: gone.append(call.peer_gone())
        await send(sock, request(1, "Create") + request(3, "Delete"))
        sock.close()
        await here.call_arrived(2)
        assert gone == [True, True]


@aio
async def test_nothing_is_read_before_the_store_has_the_connection() -> None:
    async with house() as here:
        here.keeper.gated = True
        sock = here.connect()
        await send(sock, request(1, "State", b"x"))
        await until(lambda: "conn.1" in here.keeper.held)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not here.handlers.inlined
        here.keeper.open_gate()
        assert (await receive(sock))[1].payload == b"x"


@aio
async def test_replies_wait_for_a_peer_that_does_not_read() -> None:
    async with house() as here:
        sock = here.connect()
        for n in range(1, 400, 2):
            await send(sock, request(n, "Wait"))
        await here.call_arrived(200)
        for call in list(here.handlers.calls):
            here.server.reply(call.key, ok(b"%d" % call.key.stream * 30_000))
        assert here.server.open_calls  # more than the kernel takes
        for n in range(1, 400, 2):
            assert await receive(sock) == (n, (0, "", b"%d" % n * 30_000))
        await until(lambda: not here.server.open_calls)
        assert not here.log.open_calls()


@aio
async def test_a_peer_that_never_reads_is_dropped_in_the_end() -> None:
    async with house(queue_limit=1 << 20) as here:
        sock = here.connect()
        for n in range(1, 100, 2):
            await send(sock, request(n, "Wait"))
        await here.call_arrived(50)
        for call in list(here.handlers.calls):
            here.server.reply(call.key, ok(bytes(1 << 20)))
        assert not here.server.connections
        assert not here.log.open_calls()
        assert set(here.keeper.held) == {"listen.default"}


@aio
async def test_inline_calls_of_a_peer_that_does_not_read_stay_in_its_socket() -> None:
    async with house() as here:
        sock = here.connect()
        here.handlers.state = lambda call: bytes(1 << 20)
        await send(sock, b"".join(request(n, "State") for n in range(1, 100, 2)))
        await until(lambda: bool(here.handlers.inlined))
        (conn,) = here.server.connections.values()
        await until(lambda: conn.held)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(here.handlers.inlined) < 20
        assert conn.queue.size < 2 << 20
        assert [(await receive(sock))[0] for _ in range(50)] == list(range(1, 100, 2))


@aio
async def test_quiesce_stops_reading_and_accepting_but_replies_still_leave() -> None:
    async with house() as here:
        sock = here.connect()
        await send(sock, request(1, "Create"))
        call = await here.call_arrived()
        here.keeper.gated = True
        here.connect()
        await until(lambda: "conn.2" in here.keeper.held)
        quiesce = asyncio.ensure_future(here.server.quiesce())
        await asyncio.sleep(0)
        assert not quiesce.done()  # what is accepted must be in the store
        here.keeper.open_gate()
        await quiesce
        here.connect()
        await send(sock, request(3, "Create"))
        here.server.reply(call.key, ok(b"bye"))
        assert await receive(sock) == (1, (0, "", b"bye"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(here.handlers.calls) == 1
        assert len(here.server.connections) == 2


@aio
async def test_a_full_log_refuses_new_work_only() -> None:
    async with house() as here, await here.client() as client:
        work = asyncio.ensure_future(client.call(SERVICE, "Create", b"a"))
        call = await here.call_arrived()
        real = os.write

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        here.log._write = full
        with pytest.raises(ResourceExhausted, match="call log"):
            await client.call(SERVICE, "Create", b"b")
        assert await client.call(SERVICE, "State", b"c") == b"c"
        here.server.reply(call.key, ok(b"a"))
        assert await work == b"a"
        here.log._write = real
        here.handlers.answer = lambda call: ok(b"d")
        assert await client.call(SERVICE, "Create", b"d") == b"d"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's id")
@pytest.mark.parametrize(("user", "group"), [(65534, 0), (0, 65534)])
def test_another_user_or_group_is_refused_before_the_store(
    user: int, group: int, caplog: pytest.LogCaptureFixture
) -> None:
    @aio
    async def check() -> None:
        async with house() as here:
            here.open_to_all()
            script = (
                "import socket,sys; s=socket.socket(1); s.connect(sys.argv[1]); print(s.recv(1))"
            )
            command = ("setpriv", "--reuid", str(user), "--regid", str(group), "--clear-groups")
            child = await asyncio.create_subprocess_exec(
                *command, sys.executable, "-c", script, here.path, stdout=subprocess.PIPE
            )
            out, _ = await child.communicate()
            assert out == b"b''\n"
            assert set(here.keeper.held) == {"listen.default"}
            assert "refused" in caplog.text

    check()


class _Starved(socket.socket):
    """A listener that finds no descriptors a few times."""

    refusals = 2
    attempts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.attempts += 1
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@aio
async def test_without_descriptors_accepting_pauses_until_one_is_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    with short_directory() as directory:
        path = str(directory / "x")
        starved = _Starved(socket.AF_UNIX, socket.SOCK_STREAM)
        starved.bind(path)
        starved.listen()
        taken: list[socket.socket] = []
        acceptor = Acceptor(asyncio.get_running_loop(), taken.append)
        acceptor.add("x", starved)
        acceptor.start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            await until(lambda: starved.attempts == 1)
            for _ in range(50):
                await asyncio.sleep(0)
            assert starved.attempts == 1  # no spinning
            acceptor.connection_closed()
            await until(lambda: starved.attempts == 2)
            acceptor.connection_closed()
            await until(lambda: bool(taken))
            taken[0].close()
        acceptor.close()


@aio
async def test_a_thousand_connections_are_served() -> None:
    async with house() as here:
        socks = [here.connect() for _ in range(1000)]
        for n, sock in enumerate(socks):
            await send(sock, request(1, "State", b"%d" % n))
        for n, sock in enumerate(socks):
            assert (await receive(sock))[1].payload == b"%d" % n
        assert len(here.server.connections) == 1000


@aio
async def test_five_hundred_waits_hold_up_nothing_on_their_connection() -> None:
    async with house() as here, await here.client() as client:
        waits = [asyncio.ensure_future(client.call(SERVICE, "Wait", b"")) for _ in range(500)]
        await here.call_arrived(500)
        assert await client.call(SERVICE, "State", b"x") == b"x"
        for call in list(here.handlers.calls):
            here.server.reply(call.key, ok(b"%d" % call.key.stream))
        assert await asyncio.gather(*waits) == [b"%d" % n for n in range(1, 1001, 2)]
        assert not here.log.open_calls()
