"""An Events service of the tests' own: what a shim tells the containerd that asked it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, NamedTuple

from sdshim.pb import events_pb2, ttrpc_events_pb2
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

EVENT_TYPES = {
    f"containerd.events.{name}": getattr(events_pb2, name)
    for name in (
        "TaskCreate",
        "TaskStart",
        "TaskExecAdded",
        "TaskExecStarted",
        "TaskPaused",
        "TaskResumed",
        "TaskExit",
        "TaskDelete",
    )
}


class Event(NamedTuple):
    """One event as the containerd at the Events address got it."""

    namespace: str
    topic: str
    body: Any


class EventServer:
    """containerd's Events service, as much as a shim sees of it; lives in the loop of a Rig."""

    def __init__(self, path: str) -> None:
        self.seen: list[Event] = []
        self._news = threading.Condition()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(path)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=self._sock)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                header = parse_header(await reader.readexactly(HEADER))
                request = decode_request(await reader.readexactly(header.length))
                self._take(request)
                writer.write(
                    encode_frame(header.stream, FrameType.RESPONSE, encode_response(Response()))
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _take(self, request: Request) -> None:
        envelope = ttrpc_events_pb2.ForwardRequest.FromString(request.payload).envelope
        body = EVENT_TYPES[envelope.event.type_url].FromString(envelope.event.value)
        with self._news:
            self.seen.append(Event(envelope.namespace, envelope.topic, body))
            self._news.notify_all()

    def of(self, task: str) -> list[str]:
        """Topics of one task so far, without `/tasks/`."""
        seen = [event for event in self.seen if event.body.container_id == task]
        return [event.topic.removeprefix("/tasks/") for event in seen]

    def until(self, task: str, topic: str, timeout: float = 10) -> Event:
        """Wait for an event of a task, and return it."""
        with self._news:
            arrived = self._news.wait_for(lambda: topic in self.of(task), timeout)
        assert arrived, f"no {topic} of {task} within {timeout} s; came: {self.of(task)}"
        return next(
            event
            for event in self.seen
            if event.body.container_id == task and event.topic == f"/tasks/{topic}"
        )
