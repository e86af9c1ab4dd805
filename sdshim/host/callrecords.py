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
SMALLEST = FRAME.size + KEY.size
"""The length of the shortest record."""
LEAST = KEY.size + FACTS.size + 4 * _SIZE.size
"""The length of the shortest body that begins a call."""
_LIKELY = re.compile(rb"(?s)(?=(?!\0{3}).{3}\0.{10}\0{3})")
"""A record may begin here: its body is shorter than 16 MiB, its connection's serial than 2^40."""

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


class Piece(NamedTuple):
    """A stretch of a log: a whole record, or a damaged one whose length is right (`body`: what it
    says), or one in which no record can be told from the next (no body)."""

    at: int
    end: int
    body: bytes
    whole: bool


def pieces(data: bytes, at: int) -> Iterator[Piece]:
    """What a log holds from `at` on, up to what a death may have torn off at its end."""
    while at + FRAME.size <= len(data):
        end = _end(data, at)
        whole = _is_whole(data, at, end)
        known = whole or end == len(data) or _is_whole(data, end, _end(data, end))
        if not known:
            end = _next(data, at + 1)
        if not end:
            return
        yield Piece(at, end, data[at + FRAME.size : end] if known else b"", whole)
        at = end


def _end(data: bytes, at: int) -> int:
    """Where a record ends by its own word; 0 when that cannot be."""
    if at + FRAME.size > len(data):
        return 0
    size, _ = FRAME.unpack_from(data, at)
    end: int = at + FRAME.size + size
    return end if size >= KEY.size and end <= len(data) else 0


def _is_whole(data: bytes, at: int, end: int) -> bool:
    return bool(end) and zlib.crc32(data[at + FRAME.size : end]) == FRAME.unpack_from(data, at)[1]


def _next(data: bytes, at: int) -> int:
    """Where the next whole record begins; 0 when there is none."""
    starts = (found.start() for found in _LIKELY.finditer(data, at))
    return next((start for start in starts if _is_whole(data, start, _end(data, start))), 0)


def opened(conn: int, stream: int, namespace: str) -> bytes:
    """The body that notes a connection, with its last stream."""
    return KEY.pack(OPENED, conn, stream) + namespace.encode()


def closed(conn: int) -> bytes:
    """The body that notes the end of a connection."""
    return KEY.pack(CLOSED, conn, 0)


def lost(conn: int = 0) -> bytes:
    """The body that notes that calls of a connection, or of all (0), cannot be told any more."""
    return KEY.pack(LOST, conn, 0)


def settled() -> bytes:
    """The body that notes that nobody waits any more for what is lost."""
    return KEY.pack(LOST, 0, 1)


def unknown(key: Key) -> bytes:
    """The body that notes a call of which nothing is known but that it is open."""
    return KEY.pack(RECEIVED, *key)


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
    if bodies[0][:1] != bytes([RECEIVED]):
        raise ValueError("the record that began it is damaged")
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
