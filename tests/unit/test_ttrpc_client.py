"""The client: calls, acknowledgements, connections older than itself."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sdshim.core.errors import Code, DeadlineExceeded, NotFound, ShimError, Unavailable
from sdshim.ttrpc.calls import error_for
from sdshim.ttrpc.frames import (
    HEADER,
    FrameType,
    Request,
    Response,
    decode_request,
    encode_frame,
    encode_response,
    parse_header,
)
from tests.unit.ttrpc_kit import Client, aio, exactly, listener, send, short_directory, until


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def arrived(sock: socket.socket) -> tuple[int, Request]:
    header = parse_header(await exactly(sock, HEADER))
    assert (header.type, header.flags) == (FrameType.REQUEST, 0)
    return header.stream, decode_request(await exactly(sock, header.length))


def response(stream: int, payload: bytes = b"", code: int = 0, text: str = "") -> bytes:
    data = encode_response(Response(code, text, payload))
    return encode_frame(stream, FrameType.RESPONSE, data)


@aio
async def test_a_call_is_a_request_frame_with_an_odd_growing_id() -> None:
    ours, theirs = pair()
    async with Client(ours, next_stream=7) as client:
        with theirs:
            calls = [
                asyncio.ensure_future(
                    client.call("s", "m", b"p", metadata=[("k", "a"), ("k", "b")], timeout=n)
                )
                for n in (None, 5.0)
            ]
            assert await arrived(theirs) == (7, Request("s", "m", b"p", 0, {"k": ("a", "b")}))
            stream, request = await arrived(theirs)
            assert (stream, request.timeout_nano) == (9, 5_000_000_000)
            await send(theirs, response(9, b"nine") + response(7, b"seven"))
            assert await asyncio.gather(*calls) == [b"seven", b"nine"]


@aio
async def test_an_error_becomes_the_class_of_its_code() -> None:
    ours, theirs = pair()
    async with Client(ours) as client:
        with theirs:
            call = asyncio.ensure_future(client.call("s", "m", b""))
            await arrived(theirs)
            await send(theirs, response(1, code=5, text="x: not found"))
            with pytest.raises(NotFound, match=r"^x: not found$"):
                await call


@pytest.mark.parametrize("code", list(Code)[1:])
def test_each_code_comes_back_as_itself(code: Code) -> None:
    error = error_for(code, "text")
    assert error.code == code
    assert str(error) == "text"


def test_a_code_nobody_knows_is_unknown() -> None:
    assert error_for(77, "text").code == Code.UNKNOWN
    assert ShimError.code == Code.UNKNOWN


@aio
async def test_a_reply_is_acknowledged_before_it_is_taken() -> None:
    ours, theirs = pair()
    seen: list[tuple[int, Response, int]] = []

    def on_ack(stream: int, answer: Response) -> None:
        seen.append((stream, answer, len(ours.recv(1000, socket.MSG_PEEK))))

    async with Client(ours, on_ack=on_ack) as client:
        with theirs:
            call = asyncio.ensure_future(client.call("s", "m", b""))
            await arrived(theirs)
            frame = response(1, b"x")
            await send(theirs, frame)
            assert await call == b"x"
            assert seen == [(1, Response(0, "", b"x"), len(frame))]
            with pytest.raises(BlockingIOError):
                ours.recv(1)


@aio
async def test_a_client_killed_at_the_acknowledgement_sees_it_again() -> None:
    ours, theirs = pair()
    copy = ours.dup()

    def die(stream: int, answer: Response) -> None:
        raise OSError("dead")

    first = Client(ours, on_ack=die)
    with theirs:
        call = asyncio.ensure_future(first.call("s", "m", b""))
        await arrived(theirs)
        await send(theirs, response(1, b"x"))
        with pytest.raises(Unavailable):
            await call
        acks: list[int] = []
        async with Client(copy, next_stream=3, on_ack=lambda n, _: acks.append(n)) as second:
            assert await second.expect(1) == b"x"
            assert acks == [1]
            assert second.next_stream == 3


@aio
async def test_a_reply_for_an_earlier_process_waits_until_it_is_expected() -> None:
    ours, theirs = pair()
    acks: list[int] = []
    async with Client(ours, next_stream=5, on_ack=lambda n, _: acks.append(n)) as client:
        with theirs:
            await send(theirs, response(3, b"early"))
            await until(lambda: acks == [3])
            assert await client.expect(3) == b"early"
            with pytest.raises(DeadlineExceeded):
                await client.expect(1, 0.01)
            again = asyncio.ensure_future(client.call("s", "m", b"p", stream=1))
            assert (await arrived(theirs))[0] == 1
            await send(theirs, response(1, code=3, text="cannot be re-used"))
            with pytest.raises(ShimError, match="re-used"):
                await again
            assert client.next_stream == 5


@aio
async def test_a_reply_that_comes_too_late_is_dropped() -> None:
    ours, theirs = pair()
    acks: list[int] = []
    async with Client(ours, on_ack=lambda n, _: acks.append(n)) as client:
        with theirs:
            with pytest.raises(DeadlineExceeded, match="context deadline exceeded"):
                await client.call("s", "m", b"", timeout=0.01)
            await send(theirs, response(1) + response(77) + encode_frame(1, 9, b"?"))
            call = asyncio.ensure_future(client.call("s", "m", b""))
            await arrived(theirs)
            await arrived(theirs)
            await send(theirs, response(3, b"y"))
            assert await call == b"y"
            assert acks == [1, 77, 3]


@aio
async def test_a_lost_connection_fails_all_calls() -> None:
    ours, theirs = pair()
    client = Client(ours)
    calls = [asyncio.ensure_future(client.call("s", "m", b"")) for _ in range(3)]
    await arrived(theirs)
    theirs.close()
    for call in calls:
        with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
            await call
    assert client.closed
    for work in (client.call("s", "m", b""), client.expect(1)):
        with pytest.raises(Unavailable):
            await work
    client.close()


@aio
async def test_a_reply_that_is_no_message_is_an_internal_error() -> None:
    ours, theirs = pair()
    async with Client(ours) as client:
        with theirs:
            call = asyncio.ensure_future(client.call("s", "m", b""))
            await arrived(theirs)
            await send(theirs, encode_frame(1, FrameType.RESPONSE, b"\x0a\x05x"))
            with pytest.raises(ShimError, match="unmarshal response") as caught:
                await call
            assert caught.value.code == Code.INTERNAL


@aio
async def test_large_requests_and_replies_pass() -> None:
    ours, theirs = pair()
    async with Client(ours) as client:
        with theirs:
            call = asyncio.ensure_future(client.call("s", "m", bytes(3 << 20)))
            assert len((await arrived(theirs))[1].payload) == 3 << 20
            await send(theirs, response(1, bytes(3 << 20)))
            assert len(await call) == 3 << 20
            call = asyncio.ensure_future(client.call("s", "m", b"next"))
            await arrived(theirs)
            await send(theirs, response(3, b"n"))
            assert await call == b"n"


@aio
async def test_a_path_that_nobody_listens_on_is_unavailable() -> None:
    with short_directory() as directory, pytest.raises(Unavailable, match="cannot connect"):
        await Client.connect(str(directory / "none"))


@aio
async def test_connecting_waits_for_room_in_the_backlog_and_not_for_ever() -> None:
    with short_directory() as directory:
        path = str(directory / "x")
        with listener(path) as server:
            server.listen(0)
            first = await Client.connect(path)
            with pytest.raises(Unavailable, match="cannot connect"):
                await Client.connect(path, 0.03)
            waiting = asyncio.ensure_future(Client.connect(path, 5))
            await asyncio.sleep(0)
            server.accept()[0].close()
            (await waiting).close()
            first.close()
