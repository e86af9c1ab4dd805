"""The D-Bus connection: with `wire`, its pure half, the one importer of dbus-next.

Owns one connection to the system bus, its match rules, the calls in flight, and the task that dials
again when the bus goes away. Nothing here knows systemd; `manager` does.

dbus-next gives the wire format (`Message`, `Variant`, its unmarshaller) and nothing more. Its
`MessageBus` (0.2.3, the last release) is not used, for three faults a daemon cannot live with:
end of file during authentication spins for ever inside the event loop (`_auth_readline`); a full
socket buffer between two messages ends the connection with BlockingIOError (`write_callback`);
one message that cannot be decoded ends it too, and its socket is never closed. Here an asyncio
transport carries the bytes, frames are cut before they are decoded, and calls have futures of ours.

Lifetimes: `Bus.connect()` to `Bus.close()`. A lost connection fails every call in flight with
`Uncertain` (it may have been carried out: look, then decide). A call made during an outage waits a
bounded time for the next connection, then fails with `NotDelivered` (safe to send again). After a
new connection the match rules are in place before any call goes out, then the `on_reconnect`
callbacks run in a task of their own; a further loss cancels them and starts them anew.

Limits of dbus-daemon kept in mind: 128 open calls (a semaphore holds ours to 100) and 512 match
rules per connection. File descriptors are passed with calls, never taken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from array import array
from typing import TYPE_CHECKING, Any

from dbus_next import Message, MessageFlag, MessageType

from sdshim.core.points import nowhere
from sdshim.systemd.errors import (
    DBUS,
    DISCONNECTED,
    NO_SERVER,
    BadProperty,
    BusError,
    NotDelivered,
    Uncertain,
    error_from,
)
from sdshim.systemd.wire import (
    Rule,
    Signal,
    decode,
    frame_length,
    headers_only,
    label,
    listed,
    plain,
    socket_paths,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

DBUS_PATH = "/org/freedesktop/DBus"
DEFAULT_ADDRESS = "unix:path=/run/dbus/system_bus_socket"
CALL_TIMEOUT = 25.0
MAX_OPEN_CALLS = 100
DIAL_TIMEOUT = 5.0
OUTAGE_WAIT = 10.0
BACKOFF_FIRST = 0.02
BACKOFF_MAX = 0.25


class _Link(asyncio.Protocol):
    """One connection, from dialling to its loss; never used again after it."""

    def __init__(self, bus: Bus, sock: socket.socket) -> None:
        self._bus = bus
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._buffer = bytearray()
        self._greeted = False
        self._serial = 0
        self._pending: dict[int, tuple[asyncio.Future[Any], Any]] = {}

    @property
    def alive(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(0)  # pause_writing as soon as anything has to wait
        uid = str(os.getuid()).encode().hex()
        # All at once, without waiting for OK, as sd-bus does: no round trips after an outage
        transport.write(f"\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n".encode())

    def pause_writing(self) -> None:
        self._flushed.clear()

    def resume_writing(self) -> None:
        self._flushed.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self._greeted or self._read_greeting():
                self._read_frames()
        except ValueError as error:
            log.error("D-Bus connection dropped: %s", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        pending, self._pending = self._pending, {}
        reason = f"the bus connection was lost ({exc or 'end of file'})"
        for future, call in pending.values():
            if not future.done():
                future.set_exception(Uncertain(DISCONNECTED, reason, label(call)))
        self._transport = None
        self._flushed.set()
        self._bus._lost(self)

    def _read_greeting(self) -> bool:
        line, newline, rest = self._buffer.partition(b"\r\n")
        if newline and not line.startswith(b"OK "):
            raise ValueError(f"authentication failed: {bytes(line)!r}")
        line, newline, rest = rest.partition(b"\r\n")
        if not newline:
            return False
        if line != b"AGREE_UNIX_FD":
            raise ValueError(f"the bus passes no descriptors: {bytes(line)!r}")
        self._greeted = True
        self._buffer = rest
        return True

    def _read_frames(self) -> None:
        offset, end = 0, len(self._buffer)
        while end - offset >= 16:
            length = frame_length(self._buffer[offset : offset + 16])
            if end - offset < length:
                break
            self._receive(bytes(self._buffer[offset : offset + length]))
            offset += length
        if offset:
            del self._buffer[:offset]

    def _receive(self, frame: bytes) -> None:
        fault = None
        try:
            message = decode(frame)
        except Exception as error:  # whatever the library makes of it: one message, not the bus
            fault = f"the reply cannot be decoded: {error!r}"
            try:
                message = decode(headers_only(frame))
            except Exception:
                log.exception("D-Bus message of %d bytes cannot be decoded", len(frame))
                return
        kind = message.message_type
        if kind in (MessageType.METHOD_RETURN, MessageType.ERROR):
            self._reply(message, fault)
        elif fault:
            log.error("D-Bus %s from %s: %s", message.member, message.sender, fault)
        elif kind is MessageType.SIGNAL:
            self._bus._dispatch(
                Signal(message.path, message.interface, message.member, plain(message.body))
            )
        elif not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            text = "this program offers no methods"
            name = f"{DBUS}.Error.UnknownMethod"
            self._send(Message.new_error(message, name, text))

    def _reply(self, message: Any, fault: str | None) -> None:
        future, call = self._pending.pop(message.reply_serial, (None, None))
        if future is None or future.done():  # the caller has gone (timeout, cancelled)
            return
        if message.message_type is MessageType.ERROR:
            text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
            future.set_exception(error_from(message.error_name, text, label(call)))
        elif fault:
            name = f"{DBUS}.Error.InconsistentMessage"
            future.set_exception(Uncertain(name, fault, label(call)))
        else:
            future.set_result(plain(message.body))

    def _send(self, message: Any) -> int:
        data = self._marshalled(message)
        assert self._transport is not None
        self._transport.write(data)
        return self._serial

    async def _send_with_descriptors(self, message: Any) -> int:
        """They go with the first byte, so nothing of ours may wait in front of it."""
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", message.unix_fds))]
        while True:
            await self._flushed.wait()
            data = self._marshalled(message)
            try:
                sent = self._sock.sendmsg([data], extra)
                break
            except BlockingIOError:  # the bus reads nothing; the transport has nothing to write
                await _writable(self._sock)
            except OSError as error:
                raise NotDelivered(NO_SERVER, str(error), label(message)) from error
        assert self._transport is not None
        self._transport.write(data[sent:])
        return self._serial

    def _marshalled(self, message: Any) -> bytes:
        """The message with the next serial number."""
        if self._transport is None or self._transport.is_closing():
            raise NotDelivered(NO_SERVER, "the bus connection is lost", label(message))
        self._serial = self._serial % 0xFFFFFFFF + 1
        message.serial = self._serial
        try:
            data: bytes = message._marshall(negotiate_unix_fd=bool(message.unix_fds))
        except ValueError as error:  # a value that its signature does not allow
            name = f"{DBUS}.Error.InvalidArgs"
            raise BadProperty(name, str(error), label(message)) from error
        return data

    async def call(self, message: Any, timeout: float) -> list[Any]:  # noqa: ASYNC109
        """Send a method call and wait for its answer; a cancelled wait leaves nothing behind."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        serial = 0
        try:
            async with asyncio.timeout(timeout):
                if message.unix_fds:
                    serial = await self._send_with_descriptors(message)
                else:
                    serial = self._send(message)
                self._bus.crash(f"{message.member}.sent")
                self._pending[serial] = (future, message)
                return await future
        except TimeoutError:
            text = f"no answer within {timeout:g} s"
            raise Uncertain(f"{DBUS}.Error.Timeout", text, label(message)) from None
        finally:
            self._pending.pop(serial, None)

    def close(self) -> None:
        """Drop the connection; `connection_lost` follows in the next turn of the loop."""
        if self._transport is not None:
            self._transport.abort()


class Bus:
    """The system bus, dialled again whenever it goes away."""

    def __init__(self, address: str | None = None, *, outage_wait: float = OUTAGE_WAIT) -> None:
        self.crash: Callable[[str], None] = nowhere
        address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or DEFAULT_ADDRESS
        self._paths = socket_paths(address)
        self._outage_wait = outage_wait
        self._slots = asyncio.Semaphore(MAX_OPEN_CALLS)
        self._rules: dict[str, Rule] = {}
        self._callbacks: list[Callable[[], Awaitable[None]]] = []
        self._link: _Link | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._after: asyncio.Task[None] | None = None
        self.unique_name = ""
        self.connections = 0
        self.losses = 0
        """How often a connection was lost."""

    async def connect(self) -> None:
        """Dial once; raises `NotDelivered` when the bus cannot be reached now."""
        try:
            await self._dial()
        except (OSError, TimeoutError, BusError) as error:
            raise NotDelivered(NO_SERVER, str(error), "cannot reach the bus") from error
        self._keeper = asyncio.create_task(self._keep(), name="bus")

    async def close(self) -> None:
        """End the connection and every task of ours; calls in flight fail with `Uncertain`."""
        tasks = [task for task in (self._keeper, self._after) if task is not None]
        self._keeper = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._link is not None:
            self._link.close()
            await self._down.wait()

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Run `callback` after each further connection (not after the first)."""
        self._callbacks.append(callback)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        fds: Sequence[int] = (),
        timeout: float = CALL_TIMEOUT,  # noqa: ASYNC109 (per call, not per wait for the bus)
    ) -> list[Any]:
        """Call a method; the answer's body with variants unwrapped. Errors are `BusError`s. A value
        of type ``h`` in the body is an index into `fds`, whose copies go along."""
        try:
            message = Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=listed(body),
                unix_fds=list(fds),
            )
        except (TypeError, ValueError) as error:  # dbus-next's checks of names and signatures
            raise BadProperty(f"{DBUS}.Error.InvalidArgs", str(error), member) from error
        while True:
            if self._link is None:
                await self._wait_for_link()  # without a slot: so it is bounded for everyone
            async with self._slots:
                if self._link is not None:
                    return await self._link.call(message, timeout)

    async def add_match(self, rule: str, handler: Callable[[Signal], None]) -> None:
        """Hand every signal that `rule` matches to `handler` until `remove_match`."""
        known = self._rules.get(rule)
        if known is None:
            known = self._rules[rule] = Rule.parse(rule)
            known.handlers.append(handler)
            try:
                await self.call(DBUS, DBUS_PATH, DBUS, "AddMatch", "s", [rule])
            except BaseException as error:
                if isinstance(error, Uncertain) and error.name == DISCONNECTED:
                    return  # the next connection begins with it
                self._rules.pop(rule, None)
                raise
        else:
            known.handlers.append(handler)

    async def remove_match(self, rule: str, handler: Callable[[Signal], None]) -> None:
        """Undo one `add_match`; the bus forgets the rule with its last handler."""
        known = self._rules[rule]
        known.handlers.remove(handler)
        if not known.handlers:
            del self._rules[rule]
            try:
                await self.call(DBUS, DBUS_PATH, DBUS, "RemoveMatch", "s", [rule])
            except (Uncertain, NotDelivered):
                log.debug("match rule gone with its connection: %s", rule)

    async def _wait_for_link(self) -> None:
        try:
            async with asyncio.timeout(self._outage_wait):
                while self._link is None:
                    await self._up.wait()
        except TimeoutError:
            text = f"no connection to the bus for {self._outage_wait:g} s"
            raise NotDelivered(NO_SERVER, text) from None

    async def _dial(self) -> None:
        """Connect, say Hello and put the match rules in place; only then is the link used."""
        errors: list[OSError] = []
        for path in self._paths:
            try:
                async with asyncio.timeout(DIAL_TIMEOUT):
                    link = await self._connect(path)
                break
            except OSError as error:  # TimeoutError is one
                errors.append(error)
        else:
            raise errors[-1]
        try:
            self.unique_name = (await link.call(_to_bus("Hello"), DIAL_TIMEOUT))[0]
            rules = list(self._rules)
            await asyncio.gather(
                *(link.call(_to_bus("AddMatch", "s", [rule]), DIAL_TIMEOUT) for rule in rules)
            )
            if not link.alive:
                raise Uncertain(DISCONNECTED, "lost at once")
        except BaseException:
            link.close()
            raise
        self._link = link
        self.connections += 1
        self._down.clear()
        self._up.set()

    async def _connect(self, path: str) -> _Link:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        loop = asyncio.get_running_loop()
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, path)
            _, link = await loop.create_unix_connection(lambda: _Link(self, sock), sock=sock)
        except BaseException:
            sock.close()
            raise
        return link

    async def _keep(self) -> None:
        """Dial again after each loss, until cancelled."""
        while True:
            await self._down.wait()
            pause = BACKOFF_FIRST
            while self._link is None:
                try:
                    await self._dial()
                except (OSError, BusError) as error:
                    level = logging.DEBUG if pause < BACKOFF_MAX else logging.WARNING
                    log.log(level, "no bus, next try in %.0f ms: %s", pause * 1000, error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, BACKOFF_MAX)
            log.info("connected to the bus again as %s", self.unique_name)
            if self._after is not None:
                self._after.cancel()
                await asyncio.gather(self._after, return_exceptions=True)
            self._after = asyncio.create_task(self._run_callbacks(), name="bus-reconnected")

    async def _run_callbacks(self) -> None:
        for callback in self._callbacks:
            try:
                await callback()
            except BusError as error:
                log.warning("after a new bus connection: %s", error)
            except Exception:
                log.exception("after a new bus connection")

    def _lost(self, link: _Link) -> None:
        if self._link is link:
            if self._keeper is not None:  # not our own close()
                log.warning("the bus connection %s is lost", self.unique_name)
            self._link = None
            self.losses += 1
            self._up.clear()
            self._down.set()

    def _dispatch(self, signal: Signal) -> None:
        for rule in list(self._rules.values()):
            if rule.matches(signal):
                for handler in list(rule.handlers):
                    try:
                        handler(signal)
                    except Exception:  # a handler's fault must not end the reading
                        log.exception("handler of signal %s", signal.member)


def _to_bus(member: str, signature: str = "", body: Sequence[object] = ()) -> Any:
    return Message(
        destination=DBUS,
        path=DBUS_PATH,
        interface=DBUS,
        member=member,
        signature=signature,
        body=list(body),
    )


async def _writable(sock: socket.socket) -> None:
    """Wait until the socket takes something."""
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    copy = os.dup(sock.fileno())  # the loop knows the socket as its transport's
    loop.add_writer(copy, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(copy)
        os.close(copy)
