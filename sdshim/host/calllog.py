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

A log of another version is read whatever its number (docs/recovery.md, Upgrades): the frame and the
key of a record never change, fields are only added at its end, and records of an unknown kind are
kept as they are until the call or the connection they name is over (at most STRANGE of those that
name none that is open).

A damaged record costs the call that it names, as long as its frame and key can be told: that one is
answered with an error. Where they cannot, any connection that was open may have lost a call, and
`is_lost` says so of each.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from typing import TYPE_CHECKING

from sdshim.core.errors import ResourceExhausted
from sdshim.host import callrecords as records
from sdshim.host import reserve
from sdshim.host.callrecords import MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sdshim.host.callrecords import Key, OpenCall, Piece

STRANGE = 64
"""Records of an unknown kind that are kept though they name no open call; the newest stay."""
LIMIT = 4 << 20
AHEAD = 64 << 10
"""Bytes of room reserved at a time, and in the spare file: some 200 calls from begin to end."""
UNKNOWN = (0, 0)
"""In place of the record that began a call, when it is damaged."""
GAP = 64 << 10
"""Bytes without a record that can be told, after which nothing of the log is believed."""
SKIPPED = 1 << 24
"""Serials that are not given any more after a damage: they may have been."""
_ENDING = 4 << 10
_ENDING_EACH = 128
"""Bytes kept for the records that end work: for errors' texts, and for each open call."""

_LOG = logging.getLogger(__name__)


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
        self._strange: list[tuple[Key, tuple[int, int]]] = []  # of unknown kinds, no open call's
        self.lost = False
        """Calls were open that cannot be told any more: the log that knew them was unreadable.
        Stands in the log until `settled`."""
        self._doomed: set[int] = set()  # the same of single connections
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
        self._append(records.opened(conn, 0, namespace))
        if conn in self._doomed:
            self._append(records.lost(conn))
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
                records.KEY.pack(records.RECEIVED, *key),
                records.FACTS.pack(
                    received, float("nan") if deadline is None else deadline, peer_pid, token
                ),
                *(records.sized(text.encode()) for text in (service, method, namespace)),
                records.sized(payload),
                *(records.sized(text.encode()) for text in pairs),
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
                records.KEY.pack(records.DONE, *key),
                records.CODE.pack(code),
                *map(records.sized, (message.encode("utf-8", "backslashreplace"), payload, note)),
            )
        )
        self._about(key, body)

    def begun(self, key: Key) -> None:
        """Note that what may not be done twice is about to be done."""
        self._about(key, records.KEY.pack(records.BEGUN, *key))

    def expired(self, key: Key) -> None:
        """The caller has been told that its deadline passed; the call stays open."""
        self._about(key, records.KEY.pack(records.EXPIRED, *key))

    def sent(self, key: Key) -> None:
        """The call is over."""
        if self._open.pop(key, None) is not None:
            self._append(records.KEY.pack(records.SENT, *key))
            self._compact_if_due()

    def closed(self, conn: int) -> None:
        """The connection is over; its open calls are not."""
        if self._last.pop(conn, None) is not None:
            self._names.pop(conn, None)
            self._append(records.KEY.pack(records.CLOSED, conn, 0))
            self._forget_strange(conn)
            self._compact_if_due()

    def settled(self) -> None:
        """Nobody waits any more for a call that is lost."""
        if self.lost or self._doomed:
            self.lost = False
            self._doomed.clear()
            self._append(records.settled())

    def is_lost(self, conn: int) -> bool:
        """Whether a call of that connection may be lost: whoever waits on it would for ever."""
        return self.lost or conn in self._doomed

    def last_stream(self, conn: int) -> int:
        """The last stream received on a connection, 0 if none."""
        return self._last.get(conn, 0)

    def connections(self) -> list[int]:
        """The connections noted and not closed."""
        return list(self._last)

    def open_calls(self) -> list[OpenCall]:
        """All open calls, in the order in which they were received.

        One whose records cannot be read comes with an error as its reply: its caller must not wait.
        """
        found = []
        for key, places in self._open.items():
            try:
                found.append(self._read_call(places))
            except (ValueError, struct.error) as error:
                _LOG.error("call log: call %d/%d cannot be read: %r", *key, error)
                found.append(records.unreadable(key))
        return found

    def close(self) -> None:
        """Let the file go; nothing is written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def compact(self) -> bool:
        """Rewrite the log with what is still of use; False when there is no room to do so."""
        blob, moved, strange = self._live()
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
        self._fd, self._size, self._open, self._strange = fd, len(blob), moved, strange
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

    def _live(
        self,
    ) -> tuple[bytes, dict[Key, list[tuple[int, int]]], list[tuple[Key, tuple[int, int]]]]:
        """The contents of a compacted log, and where the open calls' records lie in it, and those
        of unknown kinds."""
        parts = [
            MAGIC,
            records.record(records.opened(self._serial, 0, "")),
            records.record(records.closed(self._serial)),
        ]
        if self.lost:
            parts.append(records.record(records.lost()))
        size = sum(map(len, parts))
        moved: dict[Key, list[tuple[int, int]]] = {}
        for key, places in self._open.items():
            moved[key] = []
            for offset, length in places:
                part = os.pread(self._fd, length, offset)
                parts.append(part or records.record(records.unknown(key)))
                moved[key].append((size, len(parts[-1])))
                size += len(parts[-1])
        notes = [records.opened(c, last, self._names.get(c, "")) for c, last in self._last.items()]
        for note in (*notes, *map(records.lost, self._doomed)):
            parts.append(records.record(note))
            size += len(parts[-1])
        strange = []
        for key, (offset, length) in self._strange:
            parts.append(os.pread(self._fd, length, offset))
            strange.append((key, (size, length)))
            size += length
        return b"".join(parts), moved, strange

    def _load(self) -> int:
        """Read the file, cut a torn end off, and return its length."""
        data = self._path.read_bytes()
        header = records.HEADER.match(data)
        if header is None:
            return self._begin_anew(data)
        at = header.end()
        whole = []
        for piece in records.pieces(data, at):
            at = piece.end
            whole.append(piece.whole)
            if piece.whole:
                self._replay(piece.body, piece.at, at - piece.at)
            elif not self._replay_damaged(piece.body):
                self._skip(piece)
        if not any(whole) and header.end() < len(data):
            return self._begin_anew(data)
        if header[0] != MAGIC:
            said = header[0].decode(errors="replace").strip()
            _LOG.warning("call log: of another version, read as far as known: %s", said)
        if not all(whole):
            self._serial += SKIPPED
            self._keep_copy(data)
            _LOG.error("call log: %d of its records are damaged", whole.count(False))
        if at < len(data):
            _LOG.warning("call log: %d bytes of a torn record dropped", len(data) - at)
            os.ftruncate(self._fd, at)
        return at

    def _begin_anew(self, data: bytes) -> int:
        """In place of an unreadable log, or of none: whoever is connected may have had calls."""
        self.lost = True
        if data and not MAGIC.startswith(data):
            _LOG.error("call log: unknown format")
            self._keep_copy(data)
        os.ftruncate(self._fd, 0)
        return os.write(self._fd, MAGIC + records.record(records.lost()))

    def _keep_copy(self, data: bytes) -> None:
        """For people, of a log that is not understood."""
        aside = self._path.with_name(self._path.name + ".unreadable")
        try:
            aside.write_bytes(data)
            _LOG.error("call log: a copy is kept in %s", aside)
        except OSError as error:
            _LOG.error("call log: no copy is kept: %s", error)

    def _replay(self, body: bytes, offset: int, length: int) -> None:
        kind, conn, stream = records.KEY.unpack_from(body)
        if conn >= records.SERIALS:  # no serial of ours, and none could follow it
            _LOG.error("call log: a record of connection %d is not ours", conn)
            return
        key = (conn, stream)
        highest, self._serial = self._serial, max(self._serial, conn)
        if kind == records.OPENED:
            self._doomed.discard(conn)
            self._note_open(conn, stream, body[records.KEY.size :].decode(errors="replace"))
        elif kind == records.RECEIVED:
            self._open[key] = [(offset, length)]
            self._last[conn] = stream
        elif kind in (records.DONE, records.EXPIRED, records.BEGUN):
            if key in self._open:
                self._open[key].append((offset, length))
        elif kind == records.SENT:
            self._open.pop(key, None)
        elif kind == records.CLOSED:
            self._last.pop(conn, None)
            self._names.pop(conn, None)
            self._doomed.discard(conn)
            self._forget_strange(conn)
        elif kind == records.LOST:
            self._replay_lost(conn, settled=bool(stream))
        elif key in self._open:
            self._open[key].append((offset, length))
        elif not self._is_over(conn, stream, highest):
            self._strange = [*self._strange[1 - STRANGE :], (key, (offset, length))]

    def _replay_lost(self, conn: int, *, settled: bool) -> None:
        if conn:
            self._doomed.add(conn)
            return
        self.lost = not settled
        if settled:
            self._doomed.clear()

    def _replay_damaged(self, body: bytes) -> bool:
        """Take a damaged record for what it says, if that is likely: then it costs one call, which
        is answered with an error, or none."""
        if not body:
            return False
        kind, conn, stream = records.KEY.unpack_from(body)
        key = (conn, stream)
        if key in self._open and kind != records.RECEIVED:
            if kind != records.DONE:  # whether it was answered is unknown: it is not done again
                self._open[key] = [UNKNOWN]
            return True
        if len(body) < records.LEAST:
            return True  # a mark on a call or a connection, perhaps the end of one that is over
        if kind == records.RECEIVED and stream % 2 and stream > self._last.get(conn, stream):
            self._open[key] = [UNKNOWN]
            return True
        return False

    def _skip(self, piece: Piece) -> None:
        """Nobody can tell what was here: calls, or the ends of calls, of all that were connected;
        among those may be some whose beginning was here too."""
        size = piece.end - piece.at
        self._open.clear()
        if size > GAP:
            self.lost = True
            return
        new = range(self._serial + 1, self._serial + 1 + size // records.SMALLEST)
        self._doomed |= {*self._last, *new}

    def _is_over(self, conn: int, stream: int, highest: int) -> bool:
        """Whether a call or connection that is not open was, by the highest serial before."""
        if conn in self._last:
            return 0 < stream <= self._last[conn]
        return 0 < conn <= highest

    def _forget_strange(self, conn: int) -> None:
        if self._strange:
            self._strange = [entry for entry in self._strange if entry[0][0] != conn]

    def _note_open(self, conn: int, stream: int, namespace: str) -> None:
        self._serial = max(self._serial, conn)
        self._last[conn] = stream
        self._names[conn] = namespace

    def _read_call(self, found: list[tuple[int, int]]) -> OpenCall:
        return records.decode(
            [os.pread(self._fd, size, at)[records.FRAME.size :] for at, size in found]
        )

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
        record = records.record(body)
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
