"""Output on its way to the journal: watched here, carried by the pump (launcher/pump.py).

As long as a process says nothing there is no pump: the read ends of its FIFOs are watched. What has
something is given to the pump, a unit that is started for it, and ends when nothing has come for a
while; then they are watched again. Who has looked and sent consumes afterwards, so any of the two
may be killed: what was not consumed is still in the FIFO, whose ends are in systemd's fd store. The
name of the pump's unit sees to it that there is one: the next daemon's waits for the end of the one
before, which comes with the end of its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import logs
from sdshim.core.errors import FailedPrecondition, ShimError, UnknownError
from sdshim.core.lifecycle import Phase
from sdshim.core.unitspec import pump_properties
from sdshim.daemon import streams
from sdshim.stdio import journal
from sdshim.stdio.fifo import STDERR, STDOUT
from sdshim.systemd.errors import UnitExists
from sdshim.systemd.journal import SOCKET, encode

if TYPE_CHECKING:
    from sdshim.core.model import Identity, Log
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

log = logging.getLogger(__name__)

UNIT = "sdshim.pump.service"
IDLE_S = 5
"""How long nothing must have come before the pump ends."""
DRAIN_S = 10.0
"""What Delete waits for a journal that takes nothing, as stock for its copies (protocol 6.2)."""
START_S = 10.0
OLD_S = 5.0
"""What the pump of an earlier daemon may take to end before it is killed, which loses nothing."""
PAUSES_S = (0.02, 0.1, 0.5, 2.0)
"""Before a pump that has failed is started again."""
LIVED_S = 5.0
"""One that lived as long has not failed at its start."""


@dataclass(slots=True, eq=False)
class Stream:
    """One stream of a process."""

    process: Process
    name: str
    serial: int
    given: bool = False
    """To the pump, or it will be."""
    words: bytes = b""
    """What the pump is told of it; empty until that is known."""
    finishing: bool = False
    own: dict[str, int] = field(default_factory=dict)
    """Copies of its ends, when the process is deleted before the journal has all."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


def socket_of(wanted: Log) -> str:
    """journald's socket of a log namespace."""
    folder = "journal." + wanted.namespace if wanted.namespace else "journal"
    return SOCKET.replace("/journal/", f"/{folder}/")


def check(wanted: Log) -> None:
    """Raises FailedPrecondition when there is no journald for the log namespace."""
    if wanted.piped and wanted.namespace and not Path(socket_of(wanted)).exists():
        unit = f"systemd-journald@{wanted.namespace}.socket"
        raise FailedPrecondition(
            f"log namespace {wanted.namespace!r}: {unit} is not active",
            hint=f"systemctl add-wants sdshim.target {unit} && systemctl start {unit}",
        )


class Output:
    """The streams of all processes that go to the journal, and the pump while there is one."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._streams: dict[int, Stream] = {}
        self._watched: dict[int, Stream] = {}
        self._serial = 0
        self._epoll: select.epoll | None = None
        self._pump: asyncio.Task[None] | None = None
        self._control: socket.socket | None = None
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._sent = 0
        self._idle = False
        self._left = asyncio.Event()

    # --- what operations ask for

    def attach(self, process: Process) -> None:
        """Watch the streams of a process that has opened them, each once."""
        if not process.identity.log.piped:
            return
        mine = {stream.name for stream in self._of(process)}
        for name in (STDOUT, STDERR):
            if name in process.held.ends and name not in mine:
                self._serial += 1
                stream = self._streams[self._serial] = Stream(process, name, self._serial)
                self._watch(stream)

    def ended(self, process: Process) -> None:
        """The process has ended. Where its output goes nowhere, its client sees the end now."""
        if process.identity.log.mode == logs.NULL:
            for name in journal.CLIENT.values():
                streams.let_go(self._node, process, name)

    async def drained(self, process: Process) -> None:
        """Wait until all that is in the FIFOs now is with journald: nothing more will come, or
        nobody wants it. What journald has not taken in time stays with the pump."""
        self.attach(process)
        mine = self._of(process)
        for stream in mine:
            stream.finishing = True
            self._finish(stream)
        try:
            async with asyncio.timeout(DRAIN_S):
                for stream in mine:
                    await stream.over.wait()
        except TimeoutError:
            log.error("%s: the journal takes nothing; its last lines come later, or never", process)
            for stream in mine:
                self._keep(stream)

    def close(self) -> None:
        """Let go of everything; the pump ends."""
        if self._epoll:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._disconnect()

    def _of(self, process: Process) -> list[Stream]:
        return [stream for stream in self._streams.values() if stream.process is process]

    def _finish(self, stream: Stream) -> None:
        if not stream.given:
            has_more, _ = journal.look(self._fd(stream))
            if has_more:
                self._give(stream)
            else:
                self._over(stream)
        elif stream.words and self._control:
            self._send(b"finish %d" % stream.serial)

    def _keep(self, stream: Stream) -> None:
        """Delete does not wait any longer: keep what the pump is still to have."""
        ends = stream.process.held.ends
        names = (stream.name, journal.CLIENT[stream.name])
        if not stream.over.is_set():
            stream.own = {name: os.dup(ends[name]) for name in names if name in ends}

    def _fd(self, stream: Stream) -> int:
        return (stream.own or stream.process.held.ends)[stream.name]

    # --- watched

    def _watch(self, stream: Stream) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._woken)
        stream.given, stream.words = False, b""
        self._watched[self._fd(stream)] = stream
        self._epoll.register(self._fd(stream), select.EPOLLIN | select.EPOLLET)

    def _unwatch(self, stream: Stream) -> None:
        fd = self._fd(stream)
        if self._watched.pop(fd, None) and self._epoll:
            self._epoll.unregister(fd)

    def _woken(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            if stream := self._watched.get(fd):
                has_more, hung_up = journal.look(fd)
                if has_more:
                    self._give(stream)
                elif hung_up:
                    self._over(stream)

    def _over(self, stream: Stream) -> None:
        """All of it is with journald: the client sees the end of file."""
        self._streams.pop(stream.serial, None)
        if stream.own:
            _close(list(stream.own.values()))
            stream.own.clear()
        elif stream.name in stream.process.held.ends:
            self._unwatch(stream)
            streams.let_go(self._node, stream.process, stream.name)
        streams.let_go(self._node, stream.process, journal.CLIENT[stream.name])
        stream.over.set()

    # --- given to the pump

    def _give(self, stream: Stream) -> None:
        self._unwatch(stream)
        stream.given = True
        self._node.spawn(self._introduce(stream), f"output of {stream.process}")
        if self._pump is None:
            self._pump = self._node.spawn(self._serve_pump(), "the pump")

    async def _introduce(self, stream: Stream) -> None:
        stream.words = await describe(self._node, stream)
        if self._control:
            self._add(stream)

    def _add(self, stream: Stream) -> None:
        fds = [self._fd(stream)]
        client = (stream.own or stream.process.held.ends).get(journal.CLIENT[stream.name], -1)
        if client >= 0 and stream.process.identity.log.mode == logs.BOTH:
            fds.append(client)
        self._send(stream.words, *(os.dup(fd) for fd in fds))
        if stream.finishing:
            self._send(b"finish %d" % stream.serial)

    def _send(self, data: bytes, *fds: int) -> None:
        """Send a message, in order; the descriptors are closed."""
        self._sent += 1
        self._queue.append((data, list(fds)))
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._control:
            data, fds = self._queue[0]
            try:
                socket.send_fds(self._control, [data], fds)
            except BlockingIOError:
                loop.add_writer(self._control.fileno(), self._flush)
                return
            except OSError:  # its end is heard of by reading
                return
            self._queue.popleft()
            _close(fds)
        if self._control:
            loop.remove_writer(self._control.fileno())

    def _heard(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        word, _, number = data.partition(b" ")
        if word == b"end":
            if stream := self._streams.get(int(number)):
                self._over(stream)
        elif word == b"idle":
            self._idle = int(number) == self._sent and not self._queue
            if self._idle:
                self._left.set()
        else:
            self._left.set()

    # --- the pump's life

    async def _serve_pump(self) -> None:
        """Run a pump, and the next one, as long as there is something for it."""
        failed = 0
        try:
            while any(stream.given for stream in self._streams.values()):
                begun = time.monotonic()
                try:
                    await self._one_pump()
                except (ShimError, OSError) as error:
                    log.error("the pump of containers' output cannot run: %s", error)
                if self._idle:
                    self._idle = False
                    continue
                failed = 0 if time.monotonic() - begun > LIVED_S else failed + 1
                await asyncio.sleep(PAUSES_S[min(failed, len(PAUSES_S) - 1)])
        finally:
            self._pump = None

    async def _one_pump(self) -> None:
        path = self._node.run_dir / "pump.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            sock.bind(str(path))
            path.chmod(0o600)
            sock.listen(1)
            await self._start_unit(str(path))
            try:
                control = await self._connected(sock)
            finally:
                path.unlink(missing_ok=True)
        await self._talk(control)

    async def _connected(self, listener: socket.socket) -> socket.socket:
        """The pump's end of the socket. Raises UnknownError when it ends before, or hangs."""
        loop = asyncio.get_running_loop()
        came = loop.create_task(loop.sock_accept(listener))
        gone = loop.create_task(self._node.manager.when_removed(UNIT))
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait((came, gone), timeout=START_S, return_when=first)
            if came.done():
                return came.result()[0]
            raise UnknownError(f"{UNIT} does not connect", hint=f"journalctl -u {UNIT}")
        finally:
            for one in (came, gone):
                one.cancel()
            await asyncio.gather(came, gone, return_exceptions=True)

    async def _start_unit(self, path: str) -> None:
        properties = pump_properties(path, IDLE_S, self._node.facts)
        manager, killed = self._node.manager, False
        while True:
            try:
                job = await manager.start_transient(UNIT, properties)
                break
            except UnitExists:
                if killed:
                    raise
                try:
                    async with asyncio.timeout(OLD_S):
                        await manager.when_removed(UNIT)
                except TimeoutError:
                    killed = True
                    await manager.kill(UNIT, "all", 9)
                    await manager.when_removed(UNIT)
        if (result := await job.wait()) != "done":
            raise UnknownError(f"unit {UNIT}: start job {result}")

    async def _talk(self, control: socket.socket) -> None:
        """Give it what there is; until it, or the need for it, has ended."""
        self._control, self._sent = control, 0
        self._left.clear()
        asyncio.get_running_loop().add_reader(control.fileno(), self._heard)
        for stream in list(self._streams.values()):
            if stream.words:
                self._add(stream)
        try:
            await self._left.wait()
        finally:
            self._disconnect()
        if self._idle:
            for stream in list(self._streams.values()):
                if stream.given:
                    self._watch(stream)
        else:
            log.warning("the pump of containers' output has ended; another one goes on")

    def _disconnect(self) -> None:
        if self._control:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._control.fileno())
            loop.remove_writer(self._control.fileno())
            self._control.close()
            self._control = None
        for _, fds in self._queue:
            _close(fds)
        self._queue.clear()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def describe(node: Node, stream: Stream) -> bytes:
    """What gives a stream to the pump: what its lines are to carry, drop-ins included."""
    me = stream.process.identity
    found = {"DropInPaths": [], "LogExtraFields": [], **_SETTINGS}
    with contextlib.suppress(ShimError):
        found["DropInPaths"] = await node.manager.get_unit_property(me.unit, "Unit", "DropInPaths")
        if found["DropInPaths"] or me.runtime.unit_properties:
            names = [*_SETTINGS, "LogExtraFields"]
            got = (node.manager.get_unit_property(me.unit, "Service", name) for name in names)
            found.update(zip(names, await asyncio.gather(*got), strict=True))
    level = found["SyslogLevel"] if found["SyslogLevel"] != 6 else me.log.stdout_priority
    priority = me.log.stderr_priority if stream.name == STDERR else level
    head = (
        f"add {stream.serial} {priority} {int(bool(found['SyslogLevelPrefix']))}"
        f" {found['LogRateLimitIntervalUSec']} {found['LogRateLimitBurst']}"
        f" {me.unit} {socket_of(me.log)}\n"
    )
    return head.encode() + encode(_fields(me, found))


_SETTINGS: dict[str, object] = {
    "SyslogLevel": 6,
    "SyslogLevelPrefix": True,
    "LogRateLimitIntervalUSec": 0,
    "LogRateLimitBurst": 0,
    "SyslogIdentifier": "",
}
"""What of the unit concerns its lines, with the values that mean nothing was set."""


def _fields(me: Identity, found: dict[str, object]) -> dict[str, object]:
    fields: dict[str, object] = dict(logs.fields(me))
    extra = found["LogExtraFields"]
    for raw in extra if isinstance(extra, list) else []:
        name, _, value = bytes(raw).partition(b"=")
        fields[name.decode(errors="replace")] = value
    fields["SYSLOG_IDENTIFIER"] = found["SyslogIdentifier"] or logs.name(me)
    fields["OBJECT_SYSTEMD_UNIT"] = me.unit
    return fields


async def adopt(node: Node, process: Process) -> None:
    """Go on after a restart of the daemon. Ends that systemd has not kept (a stop of the daemon
    before systemd 254) are opened again as long as somebody writes."""
    me = process.identity
    if me.log.piped and process.phase is not Phase.EXITED and STDOUT not in process.held.ends:
        with contextlib.suppress(ShimError):
            for end in await streams.hold(node, process):
                await end
            streams.opened(node, process)
    node.output.attach(process)
