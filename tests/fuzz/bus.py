"""D-Bus: what comes after the greeting, in torn pieces, on the real connection and Manager.

The first byte is the size of the pieces. A call of ours is open, and a job of ours is queued, when
the bytes arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, cast

from dbus_next import Message, MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from hypothesis import strategies as st

from sdshim.core.errors import Internal, ShimError
from sdshim.systemd import signals
from sdshim.systemd.bus import Bus, _Link
from sdshim.systemd.manager import Manager
from tests.fuzz.kit import Fault, HurriedLoop, Target, no_surprise, pieces

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SYSTEMD, PATH, MANAGER = (
    "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
)  # fmt: skip
UNIT = "sdshim-a-b.service"
JOB = f"{PATH}/job/7"
_OURS = ("Hello", "AddMatch", "Subscribe", "StartTransientUnit")


class _Transport(asyncio.Transport):
    """The other end: answers the calls that make the beginning, and no others."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self.closed = False

    def write(self, data: Any) -> None:
        if self.closed or bytes(data[:1]) not in (b"l", b"B"):
            return
        call = Unmarshaller(_stream(bytes(data))).unmarshall()
        if call.member in _OURS:
            signature, body = {
                "Hello": ("s", [":1.5"]),
                "StartTransientUnit": ("o", [JOB]),
            }.get(call.member, ("", []))
            reply = Message.new_method_return(call, signature, body)
            reply.serial = 1
            asyncio.get_running_loop().call_soon(self._give, reply._marshall())

    def _give(self, data: bytes) -> None:
        if not self.closed:
            self._link.data_received(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._link.connection_lost, None)


class _stream:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        head, self._data = self._data[:size], self._data[size:]
        return head


@functools.cache
def _loop() -> HurriedLoop:
    return HurriedLoop()


def close() -> None:
    """The loop is no longer needed."""
    _loop().close()
    _loop.cache_clear()


async def _hear(data: bytes) -> None:
    bus = Bus("unix:path=/nowhere", outage_wait=0.1)
    link = _Link(bus, cast("Any", None))
    transport = _Transport(link)
    link.connection_made(transport)
    link.data_received(b"OK 0123\r\nAGREE_UNIX_FD\r\n")
    bus._link = link
    manager = Manager(bus)
    await manager.start()
    job = await manager.start_transient(UNIT, [("Type", "s", "exec")])
    gone = manager.removal("sdshim-a-c.service")
    asked = asyncio.ensure_future(link.call(_ping(), 5.0))
    await asyncio.sleep(0)
    serial = link._serial
    for piece in pieces(data[1:], 1 + data[0]):
        if transport.closed:
            break
        link.data_received(piece)
        await asyncio.sleep(0)
    alive = link.alive and not link._buffer
    if alive:  # whatever was heard, what is right is heard next
        link.data_received(_answer(serial))
        link.data_received(encode("JobRemoved", "uoss", [7, JOB, UNIT, "done"]))
    for _ in range(20):
        await asyncio.sleep(0)
    if alive and not (asked.done() and job.result.done()):
        raise Fault("deaf after what was heard")
    transport.abort()
    await asyncio.sleep(0)
    with contextlib.suppress(ShimError):
        await asked
    gone.cancel()
    await manager.close()
    with contextlib.suppress(asyncio.CancelledError, ShimError):
        if job.result.done():
            job.result.result()
    if len(link._buffer) > 1 << 20:
        raise Fault(f"{len(link._buffer)} bytes are kept of a dead connection")


def _ping() -> Any:
    return Message(
        destination=SYSTEMD, path=PATH, interface="org.freedesktop.DBus.Peer", member="Ping"
    )


def _answer(serial: int) -> bytes:
    reply = Message(message_type=MessageType.METHOD_RETURN, reply_serial=serial, sender=":1.0")
    reply.serial = 9
    return bytes(reply._marshall())


def encode(
    member: str,
    signature: str,
    body: list[Any],
    kind: MessageType = MessageType.SIGNAL,
    serial: int = 0,
    interface: str = MANAGER,
    path: str = PATH,
) -> bytes:
    """One message as bytes."""
    message = Message(
        message_type=kind,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=body,
        sender=":1.0",
        reply_serial=serial,
        error_name="a.b" if kind is MessageType.ERROR else None,
    )
    message.serial = 5
    return bytes(message._marshall())


def check(data: bytes) -> None:
    """The reader never raises; it drops the connection, or hears what is right afterwards."""
    if not data:
        return
    with no_surprise("cannot be decoded"):
        _loop().do(_hear(data), 100.0)
    words = data.decode(errors="replace").split("\0")
    with contextlib.suppress(Internal):
        signals.decode("JobRemoved", cast("Any", words))


def _values() -> SearchStrategy[tuple[str, Any]]:
    texts = st.one_of(
        st.sampled_from([UNIT, "done", "failed", "sdshim-a-c.service", ""]),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9),
    )
    paths = st.sampled_from([JOB, PATH, "/"])
    simple = st.one_of(
        st.tuples(st.just("s"), texts),
        st.tuples(st.just("o"), paths),
        st.tuples(st.just("u"), st.sampled_from([7, 0, 2**32 - 1])),
        st.tuples(st.just("b"), st.booleans()),
        st.tuples(st.just("t"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("ay"), st.binary(max_size=9)),
        st.tuples(st.just("as"), st.lists(texts, max_size=3)),
    )
    return st.one_of(
        simple,
        simple.map(lambda pair: ("v", _nested(pair, 1))),
        simple.map(lambda p: ("v", _nested(p, 60))),
    )


def _nested(pair: tuple[str, Any], depth: int) -> Any:
    made = Variant(*pair)
    for _ in range(depth - 1):
        made = Variant("v", made)
    return made


def _messages() -> SearchStrategy[bytes]:
    members = st.sampled_from(
        ["JobRemoved", "JobNew", "UnitNew", "UnitRemoved", "Reloading", "NameOwnerChanged", "Else"]
    )
    right = st.sampled_from(
        [
            ("JobRemoved", "uoss", [7, JOB, UNIT, "failed"]),
            ("JobRemoved", "uoss", [8, f"{PATH}/job/8", UNIT, "done"]),
            ("UnitRemoved", "so", ["sdshim-a-c.service", PATH]),
            ("Reloading", "b", [True]),
            ("Reloading", "b", [False]),
        ]
    ).map(lambda parts: encode(parts[0], parts[1], list(cast("Any", parts[2]))))
    wrong = st.builds(
        lambda member, parts, kind, serial, interface: encode(
            member, "".join(s for s, _ in parts), [v for _, v in parts], kind, serial, interface
        ),
        members,
        st.lists(_values(), max_size=4),
        st.sampled_from(
            [MessageType.SIGNAL, MessageType.SIGNAL, MessageType.METHOD_RETURN, MessageType.ERROR,
             MessageType.METHOD_CALL]
        ),
        st.integers(1, 12),
        st.sampled_from([MANAGER, MANAGER, "org.freedesktop.DBus", "a.b"]),
    )  # fmt: skip
    return st.one_of(right, wrong, wrong)


def _torn(message: bytes, at: int, byte: int) -> bytes:
    at %= len(message)
    return message[:at] + bytes([byte]) + message[at + 1 :]


def shapes() -> SearchStrategy[bytes]:
    """Messages with odd bodies, some with a wrong byte, in pieces."""
    broken = st.builds(_torn, _messages(), st.integers(0, 300), st.integers(0, 255))
    head = st.builds(
        lambda body, fields: b"l\4\0\1" + body + b"\1\0\0\0" + fields,
        st.sampled_from([bytes(4), b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\4"]),
        st.sampled_from([bytes(4), b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\1\0\0\0"]),
    )
    stream = st.lists(st.one_of(_messages(), _messages(), broken, head), max_size=6).map(b"".join)
    return st.tuples(st.binary(min_size=1, max_size=1), stream).map(b"".join)


TARGET = Target(
    "bus",
    check,
    shapes,
    (
        b"\xff" + encode("JobRemoved", "uoss", [7, JOB, UNIT, "done"]),
        b"\x0f" + encode("Reloading", "b", [True]) + encode("UnitRemoved", "so", [UNIT, PATH]),
        b"\xff" + encode("Properties", "sa{sv}as", ["x", {"a": Variant("s", "b")}, []]),
        b"\xff" + encode("x", "s", ["why"], MessageType.ERROR, 7),
    ),
    close,
)
