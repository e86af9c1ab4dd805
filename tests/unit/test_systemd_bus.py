"""`Bus`: errors, time limits, outages, and bytes that no bus should send."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import pytest
from dbus_next import Message, MessageType

from sdshim.core.errors import Code, InvalidArgument
from sdshim.systemd import errors
from sdshim.systemd.bus import MAX_OPEN_CALLS, Bus
from sdshim.systemd.wire import socket_paths, typed
from tests.unit.test_systemd_fake import FakeBus, FakeError, Silence, fake_bus, got
from tests.unit.ttrpc_kit import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

RULE = "type='signal',interface='org.freedesktop.systemd1.Manager',member='Ping'"


def run(folder: Path, body: Callable[[FakeBus, Bus], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with fake_bus(folder, **options) as (fake, bus):
            await body(fake, bus)

    asyncio.run(asyncio.wait_for(main(), 15), debug=True)


async def call(bus: Bus, member: str, signature: str = "", *body: object, **options: Any) -> Any:
    return await bus.call("a.b", "/", "a.b", member, signature, body, **options)


def test_addresses() -> None:
    assert socket_paths("unix:path=/run/x,guid=7;unix:abstract=y") == ["/run/x", "\0y"]
    assert socket_paths("unix:path=/a%20b") == ["/a b"]
    for bad in ("tcp:host=x", "", "unix:dir=/tmp"):
        with pytest.raises(InvalidArgument):
            socket_paths(bad)


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("org.freedesktop.systemd1.NoSuchUnit", errors.NoSuchUnit, Code.NOT_FOUND),
        ("org.freedesktop.systemd1.UnitExists", errors.UnitExists, Code.ALREADY_EXISTS),
        (
            "org.freedesktop.systemd1.TransactionIsDestructive",
            errors.Destructive,
            Code.UNAVAILABLE,
        ),
        ("org.freedesktop.DBus.Error.NoReply", errors.Uncertain, Code.UNAVAILABLE),
        ("org.freedesktop.DBus.Error.ServiceUnknown", errors.NotDelivered, Code.UNAVAILABLE),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", errors.NotDelivered, Code.UNAVAILABLE),
        ("System.Error.ENXIO", errors.BadProperty, Code.INVALID_ARGUMENT),
        ("com.example.Other", errors.BusError, Code.UNKNOWN),
    ],
)
def test_error_replies(tmp_path: Path, name: str, kind: type[errors.BusError], code: Code) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        def fail(*_: object) -> Any:
            raise FakeError(name, "so it is")

        fake.answers["Do"] = fail
        with pytest.raises(errors.BusError) as caught:
            await call(bus, "Do", "sas", "unit", ["secret"])
        assert type(caught.value) is kind
        assert caught.value.code is code
        assert caught.value.name == name
        assert str(caught.value) == f"Do unit: so it is ({name})"

    run(tmp_path, body)


def test_values_come_plain_and_go_typed(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        def echo(packed: Any) -> tuple[str, list[Any]]:
            return "a(sv)", [packed]

        fake.answers["Echo"] = echo
        properties = [
            ("A", "a(sbbs)", [("x", True, False, "y")]),
            ("B", "aay", [b"k=v"]),
            ("C", "t", 2**64 - 1),
        ]
        reply = await call(bus, "Echo", "a(sv)", typed(properties))
        assert reply[0] == [["A", [["x", True, False, "y"]]], ["B", [b"k=v"]], ["C", 2**64 - 1]]
        fake.answers["Get"] = lambda *_: got("a{sv}", {})
        assert await call(bus, "Get") == [{}]
        with pytest.raises(errors.BadProperty, match="CPUWeight"):
            typed([("CPUWeight", "t", "many")])
        with pytest.raises(errors.BadProperty):
            await call(bus, "Echo", "u", "no number")
        with pytest.raises(errors.BadProperty):
            await call(bus, "not a member")
        assert await call(bus, "Get") == [{}]  # nothing of it went out, nothing is stuck

    run(tmp_path, body)


def test_no_answer_in_time_is_uncertain_and_a_late_one_is_ignored(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        def silent() -> Any:
            raise Silence

        fake.answers["Wait"] = silent
        with pytest.raises(errors.Uncertain, match=r"Wait: no answer within 0\.05 s"):
            await call(bus, "Wait", timeout=0.05)
        late = Message(
            message_type=MessageType.METHOD_RETURN, reply_serial=2, destination=":1.1", serial=9
        )
        fake.raw(late._marshall())
        assert await call(bus, "Ping") == []
        task = asyncio.create_task(call(bus, "Wait"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert bus._link is not None and bus._link._pending == {}

    run(tmp_path, body)


def test_open_calls_stay_below_the_limit_of_the_bus(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        def silent() -> Any:
            raise Silence

        fake.answers["Wait"] = silent
        calls = [
            asyncio.create_task(call(bus, "Wait", timeout=0.3)) for _ in range(MAX_OPEN_CALLS + 50)
        ]
        await asyncio.sleep(0.15)
        assert fake.members().count("Wait") == MAX_OPEN_CALLS
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, errors.Uncertain) for result in results)

    run(tmp_path, body)


def test_more_than_the_socket_takes_at_once(tmp_path: Path) -> None:
    """dbus-next's own writer loses the connection here."""

    async def body(fake: FakeBus, bus: Bus) -> None:
        text = "x" * 20_000
        fake.answers["Echo"] = lambda word: ("s", [word])
        replies = await asyncio.gather(*(call(bus, "Echo", "s", text) for _ in range(90)))
        assert replies == [[text]] * 90
        assert bus.connections == 1

    run(tmp_path, body)


def test_a_lost_connection_fails_what_is_in_flight_and_is_made_again(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        heard: list[Any] = []
        again = asyncio.Event()

        async def reconnected() -> None:
            await call(bus, "Again")
            again.set()

        def silent() -> Any:
            raise Silence

        fake.answers["Wait"] = silent
        bus.on_reconnect(reconnected)
        await bus.add_match(RULE, lambda signal: heard.append(signal.body))
        task = asyncio.create_task(call(bus, "Wait"))
        await asyncio.sleep(0.01)
        fake.rules.clear()
        fake.cut()
        with pytest.raises(errors.Uncertain) as caught:
            await task
        assert caught.value.name == errors.DISCONNECTED
        assert bus._link is None
        assert await call(bus, "Ping") == []  # waits for the next connection
        assert fake.rules == [RULE]
        assert fake.members().index("AddMatch") < fake.members().index("Ping")
        await again.wait()
        fake.signal("Ping", "s", "hello")
        await call(bus, "Ping")
        assert heard == [["hello"]]
        assert bus.connections == 2 and bus.unique_name == ":1.2"

    run(tmp_path, body)


def test_a_bus_that_stays_away(tmp_path: Path) -> None:
    """Who waits for it takes no slot, so those beyond the limit of open calls wait no longer."""

    async def body(fake: FakeBus, bus: Bus) -> None:
        def silent() -> Any:
            raise Silence

        def begin(member: str, number: int) -> list[asyncio.Task[Any]]:
            return [asyncio.create_task(call(bus, member)) for _ in range(number)]

        fake.answers["Wait"] = silent
        bus._slots = asyncio.Semaphore(3)
        open_calls = begin("Wait", 3)
        await until(lambda: fake.members().count("Wait") == 3)
        waits = begin("Ping", 5)
        await fake.stop()
        lost = await asyncio.gather(*open_calls, return_exceptions=True)
        assert all(isinstance(error, errors.Uncertain) for error in lost)
        await until(lambda: bus._slots._value == 3)
        waits += begin("Ping", 5)
        await fake.listen()
        assert await asyncio.gather(*waits) == [[]] * len(waits)
        bus._outage_wait = 0.1
        await fake.stop()
        await until(lambda: bus._link is None)
        late = await asyncio.gather(*begin("Ping", 5), return_exceptions=True)
        assert all(isinstance(error, errors.NotDelivered) for error in late)

    run(tmp_path, body, outage_wait=60)


def test_the_first_connection_must_come_about(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus(f"unix:path={tmp_path}/none")
        with pytest.raises(errors.NotDelivered, match="cannot reach the bus"):
            await bus.connect()
        await bus.close()
        fake = FakeBus(tmp_path / "bus")
        fake.greeting = b"REJECTED EXTERNAL\r\n"
        await fake.listen()
        bus = Bus(f"unix:path={fake.path}")
        with pytest.raises(errors.NotDelivered):
            await bus.connect()
        await bus.close()
        await fake.stop()

    asyncio.run(main(), debug=True)


def test_end_of_file_during_authentication_is_an_error_not_a_loop(tmp_path: Path) -> None:
    """dbus-next's own connect() never comes back from this, and nothing else runs."""

    async def main() -> None:
        async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        server = await asyncio.start_unix_server(slam, str(tmp_path / "bus"))
        bus = Bus(f"unix:path={tmp_path}/bus")
        with pytest.raises(errors.NotDelivered):
            await asyncio.wait_for(bus.connect(), 2)
        await bus.close()
        server.close()

    asyncio.run(main(), debug=True)


def _frame(kind: MessageType, **fields: Any) -> bytes:
    data: bytes = Message(message_type=kind, serial=7, **fields)._marshall()
    return data


def test_a_reply_that_cannot_be_decoded_costs_one_call(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        def broken(*_: object) -> Any:
            frame = bytearray(
                _frame(MessageType.METHOD_RETURN, reply_serial=2, signature="s", body=["abcd"])
            )
            frame[-9:-5] = struct.pack("<I", 4000)  # a string longer than the message
            fake.raw(bytes(frame))
            raise Silence

        fake.answers["Break"] = broken
        with pytest.raises(errors.Uncertain, match="cannot be decoded"):
            await call(bus, "Break")
        assert await call(bus, "Ping") == []
        assert bus.connections == 1

    run(tmp_path, body)


def test_bytes_that_are_no_message_end_the_connection_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        fake.raw(b"GET / HTTP/1.0\r\n\r\n")
        await asyncio.sleep(0.05)
        assert await call(bus, "Ping") == []
        assert bus.connections == 2

    run(tmp_path, body)
    assert "not a D-Bus message" in caplog.text


def test_frames_in_pieces_and_in_heaps(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        heard: list[int] = []
        await bus.add_match(RULE, lambda signal: heard.append(signal.body[0]))
        one = [
            _frame(
                MessageType.SIGNAL,
                path="/x",
                interface="org.freedesktop.systemd1.Manager",
                member="Ping",
                signature="u",
                body=[number],
            )
            for number in range(5)
        ]
        for byte in one[0]:
            fake.raw(bytes([byte]))
            await asyncio.sleep(0)
        fake.raw(b"".join(one[1:]))
        await call(bus, "Ping")
        assert heard == [0, 1, 2, 3, 4]

    run(tmp_path, body)


def test_signals_reach_the_handlers_of_matching_rules_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        heard: list[str] = []

        def faulty(_: object) -> None:
            heard.append("faulty")
            raise RuntimeError("a handler's fault")

        def first(_: object) -> None:
            heard.append("first")

        other = "member='Pong',arg0='x'"
        await bus.add_match(RULE, faulty)
        await bus.add_match(RULE, first)
        await bus.add_match(other, lambda _: heard.append("other"))
        assert fake.rules == [RULE, other]  # one rule, two handlers
        fake.signal("Ping", "s", "x")
        fake.signal("Pong", "s", "y")
        await call(bus, "Nop")
        assert heard == ["faulty", "first"]
        fake.signal("Pong", "s", "x")
        await bus.remove_match(RULE, faulty)
        assert fake.rules == [RULE, other]
        await bus.remove_match(RULE, first)
        assert fake.rules == [other]
        fake.signal("Ping", "s", "x")
        await call(bus, "Nop")
        assert heard == ["faulty", "first", "other"]

    run(tmp_path, body)
    assert "a handler's fault" in caplog.text


def test_others_who_call_us_get_an_answer(tmp_path: Path) -> None:
    async def body(fake: FakeBus, bus: Bus) -> None:
        fake.raw(_frame(MessageType.METHOD_CALL, path="/", member="Introspect", interface="a.b"))
        await call(bus, "Nop")
        await call(bus, "Nop")
        assert fake.calls[-2][0] is None or ("Introspect", []) not in fake.calls
        assert bus.connections == 1

    run(tmp_path, body)
