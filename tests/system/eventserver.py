"""An Events service of the tests' own: what a shim tells the containerd that asked it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from sdshim.core.errors import Code
from sdshim.pb import ttrpc_events_pb2
from sdshim.ttrpc.frames import (
    HEADER,
    FrameType,
    Response,
    decode_request,
    encode_frame,
    encode_response,
    parse_header,
)
from tests.tools.events import Mailbox

REUSED = "StreamID cannot be re-used and must increment"
"""ttrpc's word (protocol 2.4)."""


def _bound(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(path)
    return made


class EventServer(Mailbox):
    """containerd's Events service, as much as a shim sees of it; lives in the loop of a Rig.

    It refuses a stream id that was used before, as containerd 1.7 and newer do.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._sock = _bound(path)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening = asyncio.Event()
        self._listening.set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=self._sock)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def come_back(self) -> None:
        """After `stop`, which leaves a socket with nobody behind it, as a SIGKILL does: be there
        again, at the same place and with new connections."""
        self._sock = _bound(self._path)
        await self.start()

    async def hold(self) -> None:
        """From now on nothing is taken, until `release`."""
        self._listening.clear()

    async def release(self) -> None:
        """Take what has come, and what will."""
        self._listening.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        last = 0
        try:
            while True:
                header = parse_header(await reader.readexactly(HEADER))
                request = decode_request(await reader.readexactly(header.length))
                await self._listening.wait()
                answer = Response()
                if header.stream <= last:
                    answer = Response(int(Code.INVALID_ARGUMENT), REUSED)
                else:
                    asked = ttrpc_events_pb2.ForwardRequest.FromString(request.payload)
                    self.take(asked.envelope)
                last = max(last, header.stream)
                frame = encode_frame(header.stream, FrameType.RESPONSE, encode_response(answer))
                writer.write(frame)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()
