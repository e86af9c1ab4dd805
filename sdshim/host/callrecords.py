"""The records of the call log as bytes (calllog.py): pure.

Each is length, CRC-32, kind, connection, stream, fields. This much never changes, whatever the
version: what is read here may have been written by another one (docs/recovery.md, Upgrades).
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from sdshim.core.errors import Code

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAGIC = b"sdshim call log 1\n"
FRAME = struct.Struct("<II")  # length of the body, its CRC-32
KEY = struct.Struct("<BQI")  # kind, connection, stream
FACTS = struct.Struct("<ddI16s")  # received, deadline (NaN: none), peer's pid, token
_SIZE = struct.Struct("<I")
CODE = struct.Struct("<i")
OPENED, RECEIVED, DONE, EXPIRED, SENT, CLOSED, BEGUN, LOST = range(1, 9)
HEADER = re.compile(rb"sdshim call log \d[^\n]{0,32}\n")
_NO_TOKEN = bytes(16)
SERIALS = 1 << 62

Key = tuple[int, int]


class OpenCall(NamedTuple):
    """An open call as it stands in the log."""

    key: Key
    service: str
    method: str
    payload: bytes
    metadata: Mapping[str, tuple[str, ...]]
    namespace: str
    peer_pid: int
    token: bytes
    received: float
    deadline: float | None
    expired: bool = False
    begun: bool = False
    reply: tuple[int, str, bytes] | None = None
    note: bytes = b""


def record(body: bytes) -> bytes:
    """A body (kind, connection, stream, fields) with its frame."""
    return FRAME.pack(len(body), zlib.crc32(body)) + body


def split(data: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Each whole record and where it ends; stops at the first that is not."""
    while at + FRAME.size <= len(data):
        size, crc = FRAME.unpack_from(data, at)
        end = at + FRAME.size + size
        body = data[at + FRAME.size : end]
        if size < KEY.size or end > len(data) or zlib.crc32(body) != crc:
            return
        yield body, end
        at = end


def opened(conn: int, stream: int, namespace: str) -> bytes:
    """The body that notes a connection, with its last stream."""
    return KEY.pack(OPENED, conn, stream) + namespace.encode()


def closed(conn: int) -> bytes:
    """The body that notes the end of a connection."""
    return KEY.pack(CLOSED, conn, 0)


def lost(settled: bool) -> bytes:
    """The body that notes that an earlier log is lost; `settled`: and that nobody waits for it."""
    return KEY.pack(LOST, 0, settled)


def sized(data: bytes) -> bytes:
    """A field of any length."""
    return _SIZE.pack(len(data)) + data


def _texts(body: bytes, at: int) -> Iterable[bytes]:
    while at < len(body):
        (size,) = _SIZE.unpack_from(body, at)
        at += _SIZE.size + size
        yield body[at - size : at]


def decode(bodies: list[bytes]) -> OpenCall:
    """The call that its records tell of, `received` first. Fields beyond those known here and
    unknown kinds are passed over. Raises ValueError, struct.error when they say too little."""
    call = _decode_received(bodies[0])
    for body in bodies[1:]:
        if body[0] == EXPIRED:
            call = call._replace(expired=True)
        elif body[0] == BEGUN:
            call = call._replace(begun=True)
        elif body[0] == DONE:
            (code,) = CODE.unpack_from(body, KEY.size)
            message, payload, note, *_ = _texts(body, KEY.size + CODE.size)
            call = call._replace(reply=(code, message.decode(), payload), note=note)
    return call


def _decode_received(body: bytes) -> OpenCall:
    _, conn, stream = KEY.unpack_from(body)
    received, deadline, peer_pid, token = FACTS.unpack_from(body, KEY.size)
    service, method, namespace, payload, *pairs = _texts(body, KEY.size + FACTS.size)
    metadata: dict[str, list[str]] = {}
    for name, value in zip(pairs[::2], pairs[1::2], strict=False):
        metadata.setdefault(name.decode(), []).append(value.decode())
    return OpenCall(
        key=(conn, stream),
        service=service.decode(),
        method=method.decode(),
        payload=payload,
        metadata={name: tuple(values) for name, values in metadata.items()},
        namespace=namespace.decode(),
        peer_pid=peer_pid,
        token=token if token != _NO_TOKEN else b"",
        received=received,
        deadline=None if deadline != deadline else deadline,
    )


def unreadable(key: Key) -> OpenCall:
    """In place of a call whose records say too little: nothing is done for it but an answer."""
    reply = (int(Code.INTERNAL), "the call was lost: its entry in the call log is unreadable", b"")
    return OpenCall(key, "", "", b"", {}, "", 0, b"", 0.0, None, reply=reply)
