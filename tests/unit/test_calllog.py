"""The call log: what it remembers, over torn writes, compaction and a full disk."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import ResourceExhausted
from sdshim.host import reserve
from sdshim.host.calllog import AHEAD, STRANGE, CallLog
from sdshim.host.callrecords import MAGIC
from tests.unit.calllog_kit import TOKEN, again, receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture
def log(path: Path) -> Iterator[CallLog]:
    log = CallLog(path)
    yield log
    log.close()


def test_a_call_is_remembered_with_all_that_it_needs(log: CallLog, path: Path) -> None:
    log.opened(1, "ns")
    receive(log, 1, 5, b"\0\xff", deadline=99.25)
    log = again(log, path)
    (call,) = log.open_calls()
    assert call.key == (1, 5)
    assert (call.service, call.method, call.namespace) == ("s", "m", "ns")
    assert (call.payload, call.token, call.peer_pid) == (b"\0\xff", TOKEN, 7)
    assert call.metadata == {"k": ("a", "b"), "l": ("c",)}
    assert (call.received, call.deadline) == (1.5, 99.25)
    assert (call.expired, call.reply, call.note) == (False, None, b"")
    assert log.last_stream(1) == 5
    assert log.connections() == [1]
    log.close()


def test_a_call_is_open_until_it_is_sent(log: CallLog, path: Path) -> None:
    log.opened(1, "ns")
    for stream in (1, 3, 5):
        receive(log, 1, stream)
    log.done((1, 1), (5, "no", b""), b"note")
    log.done((1, 3), (0, "", b"yes"))
    log.sent((1, 3))
    log.expired((1, 5))
    receive(log, 1, 7)
    log.begun((1, 7))
    log = again(log, path)
    assert log.compact()
    assert [(c.key, c.reply, c.note, c.expired, c.begun) for c in log.open_calls()] == [
        ((1, 1), (5, "no", b""), b"note", False, False),
        ((1, 5), None, b"", True, False),
        ((1, 7), None, b"", False, True),
    ]
    log.close()


def test_a_closed_connection_keeps_its_open_calls(log: CallLog, path: Path) -> None:
    log.opened(1, "ns")
    receive(log, 1, 1)
    log.closed(1)
    assert log.connections() == []
    log = again(log, path)
    assert [call.key for call in log.open_calls()] == [(1, 1)]
    log.close()


def test_serials_only_grow_even_when_nothing_else_is_left(log: CallLog, path: Path) -> None:
    serial = log.next_serial()
    log.opened(serial, "ns")
    log.opened(40, "ns")  # adopted, of an earlier life
    log.closed(40)
    log.closed(serial)
    for _ in range(3):
        log = again(log, path)
    assert log.next_serial() == 41
    log.close()


def test_records_about_unknown_calls_are_not_kept(log: CallLog, path: Path) -> None:
    log.done((9, 9), (0, "", b""))
    log.expired((9, 9))
    log.sent((9, 9))
    log.closed(9)
    assert not log.open_calls()
    assert path.stat().st_size < 200


def test_a_log_cut_anywhere_holds_all_records_before_the_cut(log: CallLog, path: Path) -> None:
    sizes = [path.stat().st_size]
    log.opened(1, "ns")
    for stream in range(1, 9, 2):
        receive(log, 1, stream, bytes(stream))
        sizes.append(path.stat().st_size)
    log.close()
    whole = path.read_bytes()
    for cut in range(sizes[0], len(whole)):
        path.write_bytes(whole[:cut])
        log = CallLog(path)
        expected = sum(size <= cut for size in sizes[1:])
        assert len(log.open_calls()) == expected
        receive(log, 1, 99)
        log = again(log, path)
        assert [call.key[1] for call in log.open_calls()][-1] == 99
        assert len(log.open_calls()) == expected + 1
        log.close()


def test_an_unknown_format_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"something else entirely, and long")
    log = CallLog(path)
    receive(log, 1, 1)
    log = again(log, path)
    assert len(log.open_calls()) == 1
    assert path.with_name("calls.unreadable").read_bytes().startswith(b"something")
    assert "unknown format" in caplog.text
    log.close()


def test_a_log_torn_within_its_first_line_is_a_new_one(path: Path) -> None:
    for cut in range(len(MAGIC)):
        path.write_bytes(MAGIC[:cut])
        CallLog(path).close()
        assert path.read_bytes().startswith(MAGIC)
    assert not path.with_name("calls.unreadable").exists()


def test_a_log_that_grew_is_compacted_to_what_is_open(path: Path) -> None:
    log = CallLog(path, limit=4096)
    log.opened(1, "one")
    log.opened(2, "two")
    receive(log, 1, 1, b"stays")
    log.done((1, 1), (0, "", b"answer"), b"note")
    for stream in range(1, 2001, 2):
        receive(log, 2, stream, bytes(50))
        log.done((2, stream), (0, "", b""))
        log.sent((2, stream))
    assert path.stat().st_size < 3 * 4096
    log = again(log, path)
    (call,) = log.open_calls()
    assert (call.payload, call.reply, call.note) == (b"stays", (0, "", b"answer"), b"note")
    assert (log.last_stream(1), log.last_stream(2)) == (1, 1999)
    assert log.next_serial() == 3
    log.close()


def test_what_is_open_beyond_the_limit_is_not_copied_over_and_over(path: Path) -> None:
    written = 0

    def counted(fd: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        return os.write(fd, data)

    log = CallLog(path, limit=1000, write=counted)
    receive(log, 1, 1, bytes(100_000))
    for stream in range(3, 2003, 2):
        receive(log, 1, stream)
        log.sent((1, stream))
    assert written < 10 * 100_000
    log.close()


@pytest.mark.parametrize("leftover", [b"", MAGIC + b"half"])
def test_a_death_within_compaction_leaves_the_old_log(path: Path, leftover: bytes) -> None:
    log = CallLog(path)
    receive(log, 1, 1)
    path.with_name("calls.spare").write_bytes(leftover)
    log = again(log, path)
    assert len(log.open_calls()) == 1
    log.close()


class Disk:
    """A disk with so many bytes left for what has no room of its own; a write beyond takes what
    fits, as tmpfs does."""

    def __init__(self, room: int) -> None:
        self.room = room

    @property
    def hooks(self) -> dict[str, Any]:
        return {"write": self.write, "set_aside": self.set_aside}

    def set_aside(self, fd: int, offset: int, size: int) -> None:
        if size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= size
        reserve.ahead(fd, offset, size)

    def write(self, fd: int, data: bytes) -> int:
        facts = os.fstat(fd)
        free = max(0, facts.st_blocks * 512 - facts.st_size)
        if not free and self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = min(free + self.room, len(data))
        self.room -= max(0, fits - free)
        return os.write(fd, data[:fits])


def _lives(log: CallLog, count: int) -> int:
    """Calls that are taken, answered and over, one after the other; how many before a refusal."""
    for number in range(count):
        try:
            receive(log, 1, log.last_stream(1) + 2)
        except ResourceExhausted:
            return number
        log.done((1, log.last_stream(1)), (0, "", b"x"))
        log.sent((1, log.last_stream(1)))
    return count


def test_on_a_full_disk_calls_go_on_for_ever_in_the_room_that_was_set_aside(path: Path) -> None:
    disk = Disk(1 << 20)
    log = CallLog(path, **disk.hooks)
    log.opened(1, "ns")
    receive(log, 1, 1)
    disk.room = 0
    for _ in range(5):
        assert _lives(log, 100) == 100
        disk.room = AHEAD  # what the old file gave up goes into the next spare file
        log.compact()
        disk.room = 0
    assert [call.key for call in log.open_calls()] == [(1, 1)]
    log = again(log, path)
    assert [call.key for call in log.open_calls()] == [(1, 1)]
    log.close()


def test_when_nothing_is_left_new_calls_are_refused_and_the_open_ones_end(path: Path) -> None:
    disk = Disk(1 << 20)
    log = CallLog(path, **disk.hooks)
    log.opened(1, "ns")
    for stream in range(1, 101, 2):
        receive(log, 1, stream)
    disk.room = 0
    taken = 101
    with pytest.raises(ResourceExhausted, match="No space left"):
        for _ in range(10_000):
            receive(log, 1, taken)
            taken += 2
    assert log.last_stream(1) == taken - 2
    for stream in range(1, taken, 2):
        log.done((1, stream), (0, "", b"x" * 50))
        log.sent((1, stream))
    log = again(log, path)
    assert not log.open_calls()
    log.close()


def test_a_large_request_finds_no_room_and_leaves_what_there_is(path: Path) -> None:
    disk = Disk(1 << 20)
    log = CallLog(path, **disk.hooks)
    log.opened(1, "ns")
    disk.room = 1000
    with pytest.raises(ResourceExhausted, match="No space left"):
        receive(log, 1, 1, bytes(AHEAD))
    assert log.last_stream(1) == 0
    receive(log, 1, 1)
    disk.room = 1 << 20
    receive(log, 1, 3, bytes(AHEAD))
    log = again(log, path)
    assert [call.key for call in log.open_calls()] == [(1, 1), (1, 3)]
    log.close()


def test_a_record_that_cannot_be_written_at_all_stops_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = CallLog(path)
    receive(log, 1, 1)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    log._write = full
    log.done((1, 1), (0, "", b"x"))
    assert [call.reply for call in log.open_calls()] == [None]
    log.sent((1, 1))
    log.closed(1)
    assert "record lost" in caplog.text
    log.close()


def test_another_fault_of_the_file_is_not_hidden(path: Path) -> None:
    log = CallLog(path)
    receive(log, 1, 1)

    def broken(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "broken")

    log._write = broken
    with pytest.raises(ResourceExhausted, match="broken"):
        receive(log, 1, 3)
    log.close()


# --- logs of other versions


def written_by_another(path: Path, kind: int, conn: int, stream: int, rest: bytes = b"") -> bytes:
    """Append a record as another version would; returns it."""
    body = struct.pack("<BQI", kind, conn, stream) + rest
    record = struct.pack("<II", len(body), zlib.crc32(body)) + body
    with path.open("ab") as file:
        file.write(record)
    return record


def renumber(path: Path, header: bytes) -> None:
    path.write_bytes(header + path.read_bytes().removeprefix(MAGIC))


@pytest.mark.parametrize("version", [b"2", b"1.1", b"12.4 beta"])
def test_a_log_of_another_version_number_loses_no_call(
    log: CallLog, path: Path, version: bytes
) -> None:
    log.settled()
    log.opened(1, "ns")
    receive(log, 1, 1)
    log.close()
    renumber(path, b"sdshim call log " + version + b"\n")
    log = CallLog(path)
    assert [call.key for call in log.open_calls()] == [(1, 1)]
    assert (log.connections(), log.lost) == ([1], False)
    assert path.read_bytes().startswith(MAGIC)
    log.close()


def test_a_record_of_an_unknown_kind_stays_until_its_call_is_over(log: CallLog, path: Path) -> None:
    log.opened(1, "ns")
    receive(log, 1, 1)
    log.close()
    record = written_by_another(path, 99, 1, 1, b"novelty")
    for _ in range(3):
        log = CallLog(path)
        (call,) = log.open_calls()
        assert (call.key, call.reply) == ((1, 1), None)
        assert path.read_bytes().count(record) == 1
        log.close()
    log = CallLog(path)
    log.sent((1, 1))
    log.compact()
    assert record not in path.read_bytes()
    log.close()
    late = written_by_another(path, 99, 1, 1, b"of a call that is over")
    CallLog(path).close()
    assert late not in path.read_bytes()


def test_unknown_kinds_that_name_no_call_stay_with_their_connection_and_few_for_ever(
    log: CallLog, path: Path
) -> None:
    log.opened(1, "ns")
    log.close()
    records = [written_by_another(path, 99, 0, 0, bytes([n])) for n in range(STRANGE)]
    records.append(written_by_another(path, 99, 1, 0, b"of the connection"))
    for _ in range(2):
        log = again(log, path)
        log.compact()
        data = path.read_bytes()
        assert [record for record in records if record not in data] == records[:1]
    log.closed(1)
    log.compact()
    assert records[-1] not in path.read_bytes()
    assert records[-2] in path.read_bytes()
    log.close()


def test_further_fields_of_an_answer_are_kept_and_do_not_disturb(log: CallLog, path: Path) -> None:
    log.opened(1, "ns")
    receive(log, 1, 1)
    log.close()
    texts = b"".join(struct.pack("<I", len(t)) + t for t in (b"no", b"data", b"note", b"novelty"))
    record = written_by_another(path, 3, 1, 1, struct.pack("<i", 5) + texts)
    log = CallLog(path)
    (call,) = log.open_calls()
    assert (call.reply, call.note) == ((5, "no", b"data"), b"note")
    assert record in path.read_bytes()
    log.close()


@pytest.mark.parametrize("kind", [2, 3])
def test_a_call_whose_records_say_too_little_comes_with_an_error_to_answer(
    log: CallLog, path: Path, kind: int
) -> None:
    log.opened(1, "ns")
    receive(log, 1, 1)
    log.close()
    written_by_another(path, kind, 1, 1, b"x")
    log = CallLog(path)
    (call,) = log.open_calls()
    assert call.key == (1, 1)
    assert call.reply is not None
    assert call.reply[0] == 13
    log.sent(call.key)
    assert not log.open_calls()
    log.close()


@pytest.mark.parametrize("header", [b"sdshim call log 2\n", b"something else\n"])
def test_a_log_that_cannot_be_read_says_that_calls_are_lost(path: Path, header: bytes) -> None:
    path.write_bytes(header + b"{not a record of any kind that is known here}")
    log = CallLog(path)
    assert log.lost
    assert path.with_name("calls.unreadable").read_bytes().startswith(header)
    log = again(log, path)
    assert log.lost  # the process before may have died before it did something about it
    log.settled()
    for _ in range(2):
        log = again(log, path)
        assert not log.lost
    log.close()
