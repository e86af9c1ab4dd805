"""Events to containerd: one outbox, one connection and one event in flight per containerd.

What is on disk: each event in its task's record until acknowledged, and per containerd a small
file /run/sdshim/e/<hash>.json {address, acked, sending, stream}. Before an event is written to the
connection the file says `sending`; its ack is written to the file before it is consumed from the
socket. The connection is in the fd store. So a daemon that takes over knows which event is in
doubt, finds its ack in the socket or waits 0.5 s for it, and else sends again with the same
stream id: containerd 1.7 and newer refuse that if it had arrived (design 6).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
from typing import TYPE_CHECKING

from sdshim.core import spans
from sdshim.core.errors import Code, DeadlineExceeded, ShimError, Unavailable
from sdshim.core.outbox import Letter, Outbox
from sdshim.core.points import nowhere
from sdshim.core.record import DAMAGE
from sdshim.pb import ttrpc_events_pb2 as pb
from sdshim.ttrpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sdshim.core.model import Event
    from sdshim.core.points import Crash
    from sdshim.core.spans import Tracer
    from sdshim.daemon.node import Keeper
    from sdshim.daemon.process import Process
    from sdshim.host.reserve import Reserve
    from sdshim.ttrpc.frames import Response

log = logging.getLogger(__name__)

SERVICE = "containerd.services.events.ttrpc.v1.Events"
FORWARD_TIMEOUT = 5.0
DOUBT_TIMEOUT = 0.5
REDIAL_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between attempts to reach a containerd that is away."""
FD_PREFIX = "event."


class Mailbox:
    """The events of one containerd, named by its ttrpc address."""

    def __init__(
        self,
        address: str,
        folder: Path,
        keeper: Keeper,
        tracer: Tracer,
        reserve: Reserve,
        crash: Crash = nowhere,
    ) -> None:
        self.address = address
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        self.fd_name = FD_PREFIX + digest
        self.acked = 0
        self.outbox = Outbox()
        self.on_ack: Callable[[Letter], None] = lambda _letter: None
        self._path = folder / f"{digest}.json"
        self._keeper = keeper
        self._tracer = tracer
        self._reserve = reserve
        self._crash = crash
        self._client: Client | None = None
        self._wake = asyncio.Event()
        self._doubt: tuple[int, int] | None = None
        self._sending: tuple[int, int] = (0, 0)
        self._unknown: dict[str, object] = {}  # fields of another version, kept as they were

    def load(self) -> None:
        """Take over what an earlier daemon wrote."""
        try:
            document = json.loads(self._path.read_bytes())
            self.acked = int(document["acked"])
            if document["sending"] > self.acked:
                self._doubt = (int(document["sending"]), int(document["stream"]))
            self._sending = (int(document["sending"]), int(document["stream"]))
            self._unknown = {k: v for k, v in document.items() if k not in self._document()}
        except FileNotFoundError:
            return
        except DAMAGE as error:
            _set_aside(self._path, error)

    @property
    def last_sent(self) -> int:
        """Sequence number of the last event that was written to a connection."""
        return self._sending[0]

    def adopt(self, fd: int) -> None:
        """Go on with the connection of an earlier daemon."""
        sock = socket.socket(fileno=fd)
        self._client = self._make_client(sock, self._sending[1] + 2 if self._sending[1] else 1)

    def add(self, letter: Letter) -> None:
        """Queue an event."""
        self.outbox.add(letter)
        self._wake.set()

    async def run(self) -> None:
        """Send what waits, oldest first, for the life of the daemon."""
        while True:
            letter = self.outbox.next()
            if letter is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._deliver(letter)

    async def _deliver(self, letter: Letter) -> None:
        event = letter.event
        with self._tracer.span(
            "event.forward",
            {
                spans.NAMESPACE: letter.task.namespace,
                spans.CONTAINER_ID: letter.task.id,
                "messaging.destination.name": event.topic,
            },
            parent=event.traceparent,
            kind="client",
        ) as span:
            try:
                await self._send(letter)
            except Unavailable as error:
                span.fail(error)
                self.outbox.failed()
                await self._lost()
            except DeadlineExceeded as error:
                # Perhaps it has arrived: its ack is looked for before it is sent again.
                span.fail(error)
                self._doubt = self._sending
                self.outbox.failed()
            except ShimError as error:
                # containerd has read it and will never take it: sending again changes nothing.
                again = self._doubt is not None and "re-used" in str(error)
                if not again:
                    span.fail(error)
                    log.error("containerd refuses %s of %s: %s", event.topic, letter.task, error)
                self._acknowledge(event.seq)

    async def _send(self, letter: Letter) -> None:
        client = self._client
        if client is None or client.closed:
            client = await self._dial()
        event = letter.event
        self.outbox.sending(event.seq)
        stream: int | None = None
        if self._doubt and self._doubt[0] == event.seq:
            stream = self._doubt[1]
            try:
                await client.expect(stream, DOUBT_TIMEOUT)
                self._doubt = None
                return
            except DeadlineExceeded:
                log.info("event %d is in doubt and sent again as stream %d", event.seq, stream)
        stream = client.next_stream if stream is None else stream
        self._write(sending=event.seq, stream=stream)
        self._crash("event.noted")
        await client.call(
            SERVICE,
            "Forward",
            _forward(letter).SerializeToString(),
            metadata=[("containerd-namespace-ttrpc", letter.task.namespace)],
            timeout=FORWARD_TIMEOUT,
            stream=stream,
        )
        self._doubt = None

    def _ack(self, stream: int, response: Response) -> None:
        """Called by the client when the reply is peeked and before it is consumed."""
        if stream == self._sending[1] and response.code == Code.OK:
            self._acknowledge(self._sending[0])

    def _acknowledge(self, seq: int) -> None:
        self.acked = max(self.acked, seq)
        self._write(sending=seq, stream=self._sending[1])
        self._crash("event.acked")
        letter = self.outbox.acknowledged(seq)
        self._doubt = None
        if letter:
            self.on_ack(letter)

    def _write(self, *, sending: int, stream: int) -> None:
        self._sending = (sending, stream)
        document = self._unknown | self._document()
        try:
            self._reserve.replace(self._path, json.dumps(document).encode())
        except ShimError as error:
            log.error("outbox: %s", error)

    def _document(self) -> dict[str, object]:
        """What this version knows of the file."""
        sending, stream = self._sending
        return {
            "version": 1,
            "address": self.address,
            "acked": self.acked,
            "sending": sending,
            "stream": stream,
        }

    async def _dial(self) -> Client:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                await asyncio.get_running_loop().sock_connect(sock, _path(self.address))
            except OSError:
                sock.close()
                raise
        except OSError as error:
            raise Unavailable(f"containerd at {self.address}", cause=str(error)) from error
        self._keeper.remove(self.fd_name)
        await self._keeper.keep(self.fd_name, sock.fileno())
        self._client = self._make_client(sock, 1)
        if self._doubt:
            # The connection that carried it is gone, and with it all hope of an ack.
            log.warning("event %d may reach containerd twice", self._doubt[0])
            self._doubt = None
        return self._client

    def _make_client(self, sock: socket.socket, next_stream: int) -> Client:
        return Client(sock, next_stream=next_stream, on_ack=self._ack, crash=self._crash)

    async def _lost(self) -> None:
        """Close the connection and wait until a new one has a chance."""
        if self._client:
            self._client.close()
            self._client = None
            self._keeper.remove(self.fd_name)
        for pause in REDIAL_S:
            try:
                await self._dial()
                return
            except Unavailable:
                await asyncio.sleep(pause)

    def close(self) -> None:
        """Let go of the connection; systemd keeps it."""
        if self._client:
            self._client.close()


def _forward(letter: Letter) -> pb.ForwardRequest:
    event = letter.event
    request = pb.ForwardRequest()
    envelope = request.envelope
    envelope.timestamp.FromNanoseconds(event.time_ns)
    envelope.namespace = letter.task.namespace
    envelope.topic = event.topic
    envelope.event.type_url = event.type
    envelope.event.value = event.payload
    return request


def _set_aside(path: Path, error: Exception) -> None:
    """An outbox file that is none, or of a version too far away: not overwritten."""
    aside = path.with_name(path.name + ".unreadable")
    log.error("outbox file %s cannot be read, moved to %s: %r", path, aside, error)
    try:
        path.replace(aside)
    except OSError as failed:
        log.error("outbox file %s cannot be moved: %s", path, failed)


def _path(address: str) -> str:
    """Socket path of an address as containerd gives it (plain, or with `unix://`)."""
    return address.removeprefix("unix://")


class Publisher:
    """The mailboxes of this node, and the sequence numbers of its events."""

    def __init__(
        self,
        folder: Path,
        keeper: Keeper,
        tracer: Tracer,
        reserve: Reserve,
        crash: Crash = nowhere,
    ) -> None:
        self._folder = folder
        self._crash = crash
        self._keeper = keeper
        self._tracer = tracer
        self._reserve = reserve
        self._boxes: dict[str, Mailbox] = {}
        self._tasks: dict[str, Process] = {}
        self._seq = 0
        self.start_box: Callable[[Mailbox], None] = lambda _box: None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def next_seq(self) -> int:
        """The next sequence number; they only grow, also over restarts."""
        self._seq += 1
        return self._seq

    def seen_seq(self, seq: int) -> None:
        """A number that an earlier daemon has used."""
        self._seq = max(self._seq, seq)

    def load(self, kept: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Take over every mailbox on disk, with its connection where systemd kept one; returns the
        descriptors that are no connection of a mailbox."""
        fds = dict(kept)
        for path in sorted(self._folder.glob("*.json")):
            try:
                address = str(json.loads(path.read_bytes())["address"])
            except OSError as error:
                log.error("outbox file %s cannot be read: %r", path, error)
                continue
            except DAMAGE as error:
                _set_aside(path, error)
                continue
            box = self._box(address)
            if box.fd_name in fds:
                box.adopt(fds.pop(box.fd_name))
        return [(name, fd) for name, fd in kept if name in fds]

    def publish(self, task: Process, event: Event) -> None:
        """Queue an event that stands in the task's record."""
        box = self._box(task.identity.containerd)
        self.seen_seq(event.seq)
        if event.seq <= box.acked:
            task.acknowledged(event.seq)
            return
        self._tasks[task.identity.token] = task
        box.add(Letter(task.key, task.identity.token, event))

    def drop(self, task: Process) -> None:
        """Forget what waits for a task; what is in flight stays."""
        box = self._box(task.identity.containerd)
        for seq, letter in list(box.outbox.waiting.items()):
            if letter.token == task.identity.token and seq != box.outbox.in_flight:
                del box.outbox.waiting[seq]

    def close(self) -> None:
        """Let go of the connections."""
        for box in self._boxes.values():
            box.close()

    def _box(self, address: str) -> Mailbox:
        box = self._boxes.get(address)
        if box is None:
            box = Mailbox(
                address, self._folder, self._keeper, self._tracer, self._reserve, self._crash
            )
            box.on_ack = self._acknowledged
            box.load()
            self.seen_seq(box.acked)
            self.seen_seq(box.last_sent)
            self._boxes[address] = box
            self.start_box(box)
        return box

    def _acknowledged(self, letter: Letter) -> None:
        task = self._tasks.get(letter.token)
        if task is None:
            return
        task.acknowledged(letter.event.seq)
        if not task.record.events:
            del self._tasks[letter.token]
