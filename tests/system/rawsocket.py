"""ttrpc by hand, frame by frame: for what no client of ours would send."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from sdshim.ttrpc.frames import (
    HEADER,
    FrameType,
    Request,
    Response,
    decode_response,
    encode_frame,
    encode_request,
    parse_header,
)
from tests.system.taskclient import V2

if TYPE_CHECKING:
    from tests.host import Host


class RawSocket:
    """A socket to a namespace, for what no client of ours would send."""

    def __init__(self, host: Host, namespace: str = "default") -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(host.path(f"/run/sdshim/s/{namespace}")))

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def request(
        self, stream: int, method: str, payload: bytes = b"", *, service: str = V2, nano: int = 0
    ) -> None:
        """Send one request frame."""
        data = encode_request(Request(service, method, payload, nano))
        self.sock.sendall(encode_frame(stream, FrameType.REQUEST, data))

    def header(self, length: int, stream: int, kind: int = FrameType.REQUEST) -> None:
        """Send a frame's first ten bytes only."""
        self.sock.sendall(struct.pack(">IIBB", length, stream, kind, 0))

    def response(self) -> tuple[int, Response]:
        """The next response: stream and contents."""
        header = parse_header(self._exactly(HEADER))
        assert header.type == FrameType.RESPONSE
        return header.stream, decode_response(self._exactly(header.length))

    def ended(self) -> bool:
        """Whether the other side has closed; fails when bytes come instead."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            assert part, f"the connection ended after {len(data)} of {size} bytes"
            data += part
        return data
