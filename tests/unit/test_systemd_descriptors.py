"""Descriptors that go along with a call: the bus hands them over with the first of its bytes."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from dbus_next import Message

from sdshim.systemd.bus import Bus
from sdshim.systemd.errors import Uncertain
from sdshim.systemd.wire import decode, descriptors, frame_length, typed
from tests.unit.test_systemd_fake import fake_bus

if TYPE_CHECKING:
    from pathlib import Path

BIG = "x" * 300_000


class SlowBus:
    """A bus that keeps what it is passed, and reads nothing before it is told to."""

    def __init__(self, path: Path) -> None:
        self.read = threading.Event()
        self.got: list[tuple[str, list[Any], list[int]]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self.read.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            greeting = b""
            while not greeting.endswith(b"BEGIN\r\n"):  # and nothing of the first call
                greeting += peer.recv(1)
            peer.send(b"OK 0123\r\nAGREE_UNIX_FD\r\n")
            data, fds = b"", list[int]()
            while True:
                more, got, _, _ = socket.recv_fds(peer, 1 << 16, 10)
                if not more:
                    return
                data, fds = data + more, fds + got
                while len(data) >= 16 and len(data) >= (length := frame_length(data[:16])):
                    message = decode(data[:length])
                    data = data[length:]
                    count = message.signature.count("h")
                    self._answer(peer, message, fds[:count])
                    del fds[:count]

    def _answer(self, peer: socket.socket, call: Any, passed: list[int]) -> None:
        self.got.append((call.member, call.body, passed))
        reply = Message.new_method_return(call, "s", [":1.1"])
        reply.serial = len(self.got)
        peer.send(reply._marshall())
        if call.member == "Hello":
            self.read.wait()


def test_properties_count_the_descriptors_among_them() -> None:
    properties = [("A", "s", "x"), ("B", "h", 17), ("C", "t", 5), ("D", "h", 4)]
    packed: Any = typed(properties)
    assert [(name, value.signature, value.value) for name, value in packed] == [
        ("A", "s", "x"),
        ("B", "h", 0),
        ("C", "t", 5),
        ("D", "h", 1),
    ]
    assert descriptors(properties) == [17, 4]


@pytest.mark.parametrize("crowd", [0, 20], ids=["alone", "behind what waits to be sent"])
def test_descriptors_arrive_with_their_call(tmp_path: Path, crowd: int) -> None:
    slow = SlowBus(tmp_path / "bus")
    read, write = os.pipe()

    async def main() -> None:
        bus = Bus(f"unix:path={tmp_path / 'bus'}")
        await bus.connect()

        def call(member: str, *fds: int) -> asyncio.Task[list[Any]]:
            signature, body = ("h", [0]) if fds else ("s", [BIG])
            return asyncio.create_task(
                bus.call("a.b", "/", "a.b", member, signature, body, fds=fds)
            )

        calls = [call("Big") for _ in range(crowd)]
        calls.append(call("Pass", write))
        calls += [call("Big") for _ in range(crowd)]
        await asyncio.sleep(0)
        slow.read.set()
        await asyncio.gather(*calls)
        await bus.close()

    try:
        asyncio.run(asyncio.wait_for(main(), 15), debug=True)
    finally:
        slow.close()
    passed = [(member, fds) for member, _, fds in slow.got if fds]
    assert [(member, len(fds)) for member, fds in passed] == [("Pass", 1)]
    os.close(write)
    os.write(passed[0][1][0], b"through")
    os.close(passed[0][1][0])
    assert os.read(read, 100) == b"through"
    os.close(read)


def test_a_call_with_descriptors_ends_with_its_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):

            def cut(*_: object) -> Any:
                fake.cut()
                return "", []

            fake.answers["Pass"] = cut
            with pytest.raises(Uncertain):
                await bus.call("a.b", "/", "a.b", "Pass", "h", [0], fds=[0])

    asyncio.run(asyncio.wait_for(main(), 15))
