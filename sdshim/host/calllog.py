"""The call log: one append-only file that remembers, across any death of the process, which calls
were taken from which connection, how far each has come, and which serials were given.

Each record is one write() on an O_APPEND descriptor: length, CRC-32, kind, fields. What a death
tears off can only be the last record; it is cut away at the next open. The file lives on tmpfs, so
nothing is synced: it must outlive the process, not the machine.

A call is open from `received` to `sent`. When the file has grown past its limit, the records of
open calls and connections are copied to a new file which is renamed over the old one: at each
instant one complete log stands under the name. In memory there is an index only: where the records
of open calls lie, and the last stream of each connection.

A full disk stops nothing at once: records go where room was reserved before, behind the end of the
file, and when that is used up compaction goes into a spare file which has as much. So calls are
taken and answered as ever (what they want to make will find no room). Only when not even that helps
does `received` raise ResourceExhausted: what is left is for the records that end work.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from sdshim.core.errors import ResourceExhausted
from sdshim.host import reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

MAGIC = b"sdshim call log 1\n"
LIMIT = 4 << 20
AHEAD = 64 << 10
"""Bytes of room reserved at a time, and in the spare file: some 200 calls from begin to end."""
_ENDING = 4 << 10
_ENDING_EACH = 128
"""Bytes kept for the records that end work: for errors' texts, and for each open call."""

_FRAME = struct.Struct("<II")  # length of the body, its CRC-32
_KEY = struct.Struct("<BQI")  # kind, connection, stream
_FACTS = struct.Struct("<ddI16s")  # received, deadline (NaN: none), peer's pid, token
_SIZE = struct.Struct("<I")
_CODE = struct.Struct("<i")
_OPENED, _RECEIVED, _DONE, _EXPIRED, _SENT, _CLOSED, _BEGUN = range(1, 8)
_NO_TOKEN = bytes(16)
_SERIALS = 1 << 62
_LOG = logging.getLogger(__name__)

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


class CallLog:
    """The log in one file; see the module's text. One process at a time may hold it."""

    def __init__(
        self,
        path: Path,
        *,
        limit: int = LIMIT,
        ahead: int = AHEAD,
        write: Callable[[int, bytes], int] = os.write,
        set_aside: Callable[[int, int, int], None] = reserve.ahead,
    ) -> None:
        self._path = path
        self._spare_path = path.with_name(path.name + ".spare")
        self._limit = limit
        self._ahead = ahead
        self._write = write
        self._set_aside = set_aside
        self._serial = 0
        self._last: dict[int, int] = {}  # open connection → last stream received
        self._names: dict[int, str] = {}  # open connection → namespace
        self._open: dict[Key, list[tuple[int, int]]] = {}  # → its records: offset and length
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = self._load()
        self._room = _room(self._fd)  # the offset up to which nothing can fail
        self._compact_at = max(limit, self._size)
        self._base = 0  # size after the last compaction
        self.compact()

    def next_serial(self) -> int:
        """A serial greater than all that were noted or handed out so far."""
        self._serial += 1
        return self._serial

    def opened(self, conn: int, namespace: str) -> None:
        """Note a connection; the log knows its serial from now on, even when it has closed."""
        if conn in self._last:
            return
        self._append(_opened(conn, 0, namespace))
        self._note_open(conn, 0, namespace)

    def received(
        self,
        key: Key,
        *,
        service: str,
        method: str,
        payload: bytes,
        metadata: Mapping[str, tuple[str, ...]],
        namespace: str,
        peer_pid: int,
        token: bytes,
        received: float,
        deadline: float | None,
    ) -> None:
        """Write a call down with all that is needed to begin it again."""
        pairs = [text for name, values in metadata.items() for v in values for text in (name, v)]
        body = b"".join(
            (
                _KEY.pack(_RECEIVED, *key),
                _FACTS.pack(
                    received, float("nan") if deadline is None else deadline, peer_pid, token
                ),
                *(_sized(text.encode()) for text in (service, method, namespace)),
                _sized(payload),
                *(_sized(text.encode()) for text in pairs),
            )
        )
        try:
            where = self._append(body, essential=False)
        except OSError as error:
            raise ResourceExhausted("the call log cannot grow", cause=str(error)) from error
        self._open[key] = [where]
        self._last[key[0]] = key[1]

    def done(self, key: Key, reply: tuple[int, str, bytes], note: bytes = b"") -> None:
        """Write a call's answer down; its effect will not be asked for again."""
        code, message, payload = reply
        body = b"".join(
            (
                _KEY.pack(_DONE, *key),
                _CODE.pack(code),
                *map(_sized, (message.encode("utf-8", "backslashreplace"), payload, note)),
            )
        )
        self._about(key, body)

    def begun(self, key: Key) -> None:
        """Note that what may not be done twice is about to be done."""
        self._about(key, _KEY.pack(_BEGUN, *key))

    def expired(self, key: Key) -> None:
        """The caller has been told that its deadline passed; the call stays open."""
        self._about(key, _KEY.pack(_EXPIRED, *key))

    def sent(self, key: Key) -> None:
        """The call is over."""
        if self._open.pop(key, None) is not None:
            self._append(_KEY.pack(_SENT, *key))
            self._compact_if_due()

    def closed(self, conn: int) -> None:
        """The connection is over; its open calls are not."""
        if self._last.pop(conn, None) is not None:
            self._names.pop(conn, None)
            self._append(_KEY.pack(_CLOSED, conn, 0))
            self._compact_if_due()

    def last_stream(self, conn: int) -> int:
        """The last stream received on a connection, 0 if none."""
        return self._last.get(conn, 0)

    def connections(self) -> list[int]:
        """The connections noted and not closed."""
        return list(self._last)

    def open_calls(self) -> list[OpenCall]:
        """All open calls, in the order in which they were received.

        One whose records cannot be read is given up, with a line in the journal.
        """
        found = []
        for key, records in list(self._open.items()):
            try:
                found.append(self._read_call(records))
            except (ValueError, struct.error) as error:
                _LOG.error("call log: call %d/%d cannot be read: %r", *key, error)
                del self._open[key]
        return found

    def close(self) -> None:
        """Let the file go; nothing is written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def compact(self) -> bool:
        """Rewrite the log with what is still of use; False when there is no room to do so."""
        blob, moved = self._live()
        fd = self._open_spare()
        try:
            if fd < 0 or self._write(fd, blob) != len(blob):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._spare_path.rename(self._path)
        except OSError as error:
            _LOG.warning("call log: not compacted: %s", error)
            if fd >= 0:
                os.close(fd)
            self._compact_at = self._size + self._limit
            return False
        os.close(self._fd)
        self._fd, self._size, self._open = fd, len(blob), moved
        self._room = _room(fd)
        self._base = len(blob)
        self._compact_at = max(self._limit, 2 * len(blob))
        spare = self._open_spare()
        if spare >= 0:
            os.close(spare)
        return True

    def _open_spare(self) -> int:
        """The spare file, empty, with room reserved if there is any; -1 when there is none."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(self._spare_path, flags, 0o600)
        except OSError:
            return -1
        if os.fstat(fd).st_size:  # of a compaction that was cut
            os.ftruncate(fd, 0)
        with contextlib.suppress(OSError):
            if _room(fd) < self._ahead:
                self._set_aside(fd, 0, self._ahead)
        return fd

    def _live(self) -> tuple[bytes, dict[Key, list[tuple[int, int]]]]:
        """The contents of a compacted log, and where the open calls' records lie in it."""
        parts = [MAGIC, _record(_opened(self._serial, 0, "")), _record(_closed(self._serial))]
        size = sum(map(len, parts))
        moved: dict[Key, list[tuple[int, int]]] = {}
        for key, records in self._open.items():
            moved[key] = []
            for offset, length in records:
                parts.append(os.pread(self._fd, length, offset))
                moved[key].append((size, length))
                size += length
        for conn, last in self._last.items():
            parts.append(_record(_opened(conn, last, self._names.get(conn, ""))))
        return b"".join(parts), moved

    def _load(self) -> int:
        """Read the file, cut a torn end off, and return its length."""
        data = self._path.read_bytes()
        if not data.startswith(MAGIC):
            if data:
                if not MAGIC.startswith(data):
                    aside = self._path.with_name(self._path.name + ".unreadable")
                    aside.write_bytes(data)
                    _LOG.error("call log: unknown format, moved to %s", aside)
                os.ftruncate(self._fd, 0)
            os.write(self._fd, MAGIC)
            return len(MAGIC)
        at = len(MAGIC)
        for body, end in _records(data, at):
            self._replay(body, at, end - at)
            at = end
        if at < len(data):
            _LOG.warning("call log: %d bytes of a torn record dropped", len(data) - at)
            os.ftruncate(self._fd, at)
        return at

    def _replay(self, body: bytes, offset: int, length: int) -> None:
        kind, conn, stream = _KEY.unpack_from(body)
        if conn >= _SERIALS:  # no serial of ours, and none could follow it
            _LOG.error("call log: a record of connection %d is not ours", conn)
            return
        key = (conn, stream)
        self._serial = max(self._serial, conn)
        if kind == _OPENED:
            self._note_open(conn, stream, body[_KEY.size :].decode(errors="replace"))
        elif kind == _RECEIVED:
            self._open[key] = [(offset, length)]
            self._last[conn] = stream
        elif kind in (_DONE, _EXPIRED, _BEGUN):
            if key in self._open:
                self._open[key].append((offset, length))
        elif kind == _SENT:
            self._open.pop(key, None)
        elif kind == _CLOSED:
            self._last.pop(conn, None)
            self._names.pop(conn, None)

    def _note_open(self, conn: int, stream: int, namespace: str) -> None:
        self._serial = max(self._serial, conn)
        self._last[conn] = stream
        self._names[conn] = namespace

    def _read_call(self, records: list[tuple[int, int]]) -> OpenCall:
        bodies = [os.pread(self._fd, size, at)[_FRAME.size :] for at, size in records]
        call = _decode_received(bodies[0])
        for body in bodies[1:]:
            if body[0] == _EXPIRED:
                call = call._replace(expired=True)
            elif body[0] == _BEGUN:
                call = call._replace(begun=True)
            else:
                (code,) = _CODE.unpack_from(body, _KEY.size)
                message, payload, note = _texts(body, _KEY.size + _CODE.size)
                call = call._replace(reply=(code, message.decode(), payload), note=note)
        return call

    def _about(self, key: Key, body: bytes) -> None:
        """Append a record that belongs to an open call."""
        if key in self._open:
            where = self._append(body)
            if where[1]:
                self._open[key].append(where)

    def _append(self, body: bytes, *, essential: bool = True) -> tuple[int, int]:
        """Write one record, whole or not at all; return where it lies.

        Without room an essential record is lost with a line in the journal: the work itself must
        not stop for it.
        """
        record = _record(body)
        need = len(record)
        if not essential:
            need += _ENDING + _ENDING_EACH * len(self._open)
        if not self._has_room(need) and not essential:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            return self._put(record)
        except OSError as error:
            if not essential or error.errno not in reserve.FULL:
                raise
            _LOG.error("call log: record lost: %s", error)
            return self._size, 0

    def _has_room(self, need: int) -> bool:
        """Whether so many bytes can surely be written, if need be after a compaction."""
        if self._size + need <= self._room or self._extend(need):
            return True
        if self._size < self._base + self._ahead // 4 or not self.compact():
            return False
        return self._size + need <= self._room or self._extend(need)

    def _extend(self, need: int) -> bool:
        end = max(self._room, self._size)
        size = max(self._ahead, self._size + need - end)
        try:
            self._set_aside(self._fd, end, size)
        except OSError:
            return False
        self._room = end + size
        return True

    def _put(self, record: bytes) -> tuple[int, int]:
        written = self._write(self._fd, record)
        if written != len(record):
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        where = (self._size, written)
        self._size += written
        return where

    def _compact_if_due(self) -> None:
        if self._size > self._compact_at:
            self.compact()


def _room(fd: int) -> int:
    """Up to which offset a file has its room already."""
    facts = os.fstat(fd)
    return max(facts.st_size, facts.st_blocks * 512)


def _record(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _records(data: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Each whole record and where it ends; stops at the first that is not."""
    while at + _FRAME.size <= len(data):
        size, crc = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + size
        body = data[at + _FRAME.size : end]
        if size < _KEY.size or end > len(data) or zlib.crc32(body) != crc:
            return
        yield body, end
        at = end


def _opened(conn: int, stream: int, namespace: str) -> bytes:
    return _KEY.pack(_OPENED, conn, stream) + namespace.encode()


def _closed(conn: int) -> bytes:
    return _KEY.pack(_CLOSED, conn, 0)


def _sized(data: bytes) -> bytes:
    return _SIZE.pack(len(data)) + data


def _texts(body: bytes, at: int) -> Iterable[bytes]:
    while at < len(body):
        (size,) = _SIZE.unpack_from(body, at)
        at += _SIZE.size + size
        yield body[at - size : at]


def _decode_received(body: bytes) -> OpenCall:
    _, conn, stream = _KEY.unpack_from(body)
    received, deadline, peer_pid, token = _FACTS.unpack_from(body, _KEY.size)
    service, method, namespace, payload, *pairs = _texts(body, _KEY.size + _FACTS.size)
    metadata: dict[str, list[str]] = {}
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
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
