"""A bus and a systemd of a few lines, for the tests of the systemd room, with their own check.

Speaks D-Bus on a unix socket through dbus-next's codec, so that faults can be played which no real
bus can be asked for: an answer that never comes, one that cannot be decoded, a lost connection in
the midst of a call, a signal before the reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

from dbus_next import Message, MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller

from sdshim.systemd.bus import Bus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = f"{SYSTEMD}.Manager"


class FakeError(Exception):
    """An error reply: name, text."""


class Silence(Exception):
    """No reply at all."""


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        head, self._data = self._data[:size], self._data[size:]
        return head


class FakeBus:
    """The bus and everybody on it; `answers` maps a member to a function of the body."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answers: dict[str, Callable[..., tuple[str, list[Any]]]] = {}
        self.calls: list[tuple[str, list[Any]]] = []
        self.rules: list[str] = []
        self.connections = 0
        self.held: Counter[str] = Counter()
        """References on units; a connection's end takes them along."""
        self.greeting = b"OK 0123\r\nAGREE_UNIX_FD\r\n"
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._serials = itertools.count(1)

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Go away, connections included."""
        if self._server is not None:
            self._server.close()
        self.cut()
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def cut(self) -> None:
        """Drop every connection; the socket stays."""
        self.held.clear()
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.transport.abort()

    def members(self) -> list[str]:
        return [member for member, _ in self.calls]

    def signal(
        self,
        member: str,
        signature: str,
        *body: object,
        interface: str = MANAGER,
        path: str = "/org/freedesktop/systemd1",
    ) -> None:
        message = Message(
            message_type=MessageType.SIGNAL,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            sender=":1.0",
        )
        self._send(message)

    def owner(self, new: str) -> None:
        bus = "org.freedesktop.DBus"
        path = "/org/freedesktop/DBus"
        self.signal("NameOwnerChanged", "sss", SYSTEMD, "", new, interface=bus, path=path)

    def raw(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)

    def _send(self, message: Any) -> None:
        message.serial = next(self._serials)
        self.raw(message._marshall())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"BEGIN\r\n")
            writer.write(self.greeting)
            while True:
                head = await reader.readexactly(16)
                size, _, fields = struct.unpack("<III", head[4:])
                rest = await reader.readexactly(-(-fields // 8) * 8 + size)
                self._answer(Unmarshaller(_Stream(head + rest)).unmarshall(), writer)
        writer.transport.abort()
        self._tasks.discard(task)

    def _answer(self, call: Any, writer: asyncio.StreamWriter) -> None:
        self.calls.append((call.member, call.body))
        try:
            if call.member in self.answers:
                signature, body = self.answers[call.member](*call.body)
            else:
                signature, body = getattr(self, f"_do_{call.member}", lambda *_: ("", []))(
                    *call.body
                )
            reply = Message.new_method_return(call, signature, body)
        except FakeError as error:
            reply = Message.new_error(call, *error.args)
        except Silence:
            return
        reply.destination = ":1.1"
        reply.serial = next(self._serials)
        if not writer.transport.is_closing():
            writer.write(reply._marshall())

    def _do_Hello(self) -> tuple[str, list[Any]]:
        return "s", [f":1.{self.connections}"]

    def _do_RefUnit(self, unit: str) -> tuple[str, list[Any]]:
        self.held[unit] += 1
        return "", []

    def _do_UnrefUnit(self, unit: str) -> tuple[str, list[Any]]:
        if not self.held[unit]:
            raise FakeError(f"{SYSTEMD}.NotReferenced", "not held")
        self.held[unit] -= 1
        return "", []

    def _do_AddMatch(self, rule: str) -> tuple[str, list[Any]]:
        self.rules.append(rule)
        return "", []

    def _do_RemoveMatch(self, rule: str) -> tuple[str, list[Any]]:
        self.rules.remove(rule)
        return "", []


@contextlib.asynccontextmanager
async def fake_bus(folder: Path, **options: Any) -> AsyncIterator[tuple[FakeBus, Bus]]:
    """A fake that listens and a `Bus` connected to it."""
    fake = FakeBus(folder / "bus")
    await fake.listen()
    bus = Bus(f"unix:path={fake.path}", **options)
    await bus.connect()
    try:
        yield fake, bus
    finally:
        await bus.close()
        await fake.stop()


def got(signature: str, value: object) -> tuple[str, list[Any]]:
    """The answer of a property Get."""
    return "v", [Variant(signature, value)]


def test_the_fake_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            fake.answers["Echo"] = lambda *body: ("as", [list(body)])
            assert await bus.call("a.b", "/", "a.b", "Echo", "ss", ["x", "y"]) == [["x", "y"]]
            assert fake.members() == ["Hello", "Echo"]

    asyncio.run(main(), debug=True)
