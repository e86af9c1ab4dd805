"""Damage in the middle of the call log: what it costs, and whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sdshim.host.calllog import GAP, CallLog
from tests.unit.calllog_kit import again, receive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls"


class Written:
    """A log of two connections with open calls, and where each of its records lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: list[tuple[int, int]] = []
        self._log = CallLog(path)
        self._log.settled()
        self._log.opened(1, "ns")
        self._log.opened(2, "ns")
        self.note(lambda log: receive(log, 1, 1))  # 0
        self.note(lambda log: receive(log, 2, 1))  # 1
        self.note(lambda log: log.begun((1, 1)))  # 2
        self.note(lambda log: log.done((2, 1), (0, "", b"yes")))  # 3
        self.note(lambda log: log.sent((2, 1)))  # 4
        self.note(lambda log: receive(log, 1, 3))  # 5
        self.note(lambda log: log.opened(3, "ns"))  # 6
        self.note(lambda log: receive(log, 3, 1))  # 7
        self._log.close()

    def note(self, write: Callable[[CallLog], object]) -> None:
        before = self._path.stat().st_size
        write(self._log)
        self._places.append((before, self._path.stat().st_size))

    def damage(self, record: int, offset: int, size: int = 1) -> None:
        """Turn all bits of bytes of a record; a negative offset counts from its end."""
        begin, end = self._places[record]
        at = (end if offset < 0 else begin) + offset
        data = bytearray(self._path.read_bytes())
        data[at : at + size] = bytes(255 - byte for byte in data[at : at + size])
        self._path.write_bytes(data)


LENGTH, KIND, CONN, STREAM = 0, 8, 9, 17
"""Where these stand in a record."""


def calls_of(log: CallLog) -> dict[tuple[int, int], bool]:
    """The open calls, and whether nothing is known of them."""
    return {call.key: bool(call.reply and call.reply[0] == 13) for call in log.open_calls()}


@pytest.mark.parametrize(
    ("record", "offset", "expected"),
    [
        (0, -1, {(1, 1): True, (1, 3): False, (3, 1): False}),
        (1, -1, {(1, 1): False, (1, 3): False, (3, 1): False}),  # its `sent` is there
        (2, KIND, {(1, 1): True, (1, 3): False, (3, 1): False}),
        (3, -1, {(1, 1): False, (1, 3): False, (3, 1): False}),
        (4, KIND, {(1, 1): False, (2, 1): True, (1, 3): False, (3, 1): False}),
        (5, -1, {(1, 1): False, (1, 3): True, (3, 1): False}),
        (6, -1, {(1, 1): False, (1, 3): False, (3, 1): False}),
        (7, -1, {(1, 1): False, (1, 3): False, (3, 1): True}),  # the last one too
    ],
)
def test_a_damaged_record_costs_its_own_call(
    path: Path, record: int, offset: int, expected: dict[tuple[int, int], bool]
) -> None:
    Written(path).damage(record, offset)
    for _ in range(3):  # a process may die before it has answered
        log = CallLog(path)
        assert calls_of(log) == expected
        assert not any(map(log.is_lost, (1, 2, 3)))
        assert log.next_serial() > 3
        log.close()
    assert path.with_name("calls.unreadable").exists()


@pytest.mark.parametrize(
    ("record", "offset", "size"), [(1, LENGTH, 4), (1, CONN, 8), (1, STREAM, 1), (1, 30, 80)]
)
def test_where_nothing_can_be_told_those_connected_then_are_ended(
    path: Path, record: int, offset: int, size: int
) -> None:
    Written(path).damage(record, offset, size)
    for _ in range(3):
        log = CallLog(path)
        assert set(calls_of(log)) == {(1, 3), (3, 1)}
        assert [log.is_lost(conn) for conn in (1, 2, 3)] == [True, True, False]
        log.close()
    log = CallLog(path)
    log.closed(1)
    log.settled()
    log = again(log, path)
    assert not any(map(log.is_lost, (1, 2, 3)))
    assert log.next_serial() > 3
    log.close()


def test_a_connection_whose_beginning_cannot_be_told_is_ended_too(path: Path) -> None:
    written = Written(path)
    written.damage(5, LENGTH, 4)
    written.damage(6, LENGTH, 4)
    for _ in range(2):
        log = CallLog(path)
        assert [log.is_lost(conn) for conn in (1, 2, 3)] == [True, True, True]
        assert set(calls_of(log)) == {(3, 1)}
        log.opened(3, "ns")  # it is in the store
        log.close()
    log = CallLog(path)
    assert log.is_lost(3)
    log.close()


def test_after_a_large_gap_nothing_is_believed(path: Path) -> None:
    log = CallLog(path)
    log.settled()
    log.opened(1, "ns")
    receive(log, 1, 1, b"x" * GAP)
    receive(log, 1, 3)
    log.close()
    data = path.read_bytes()
    at = data.index(b"xxxx")
    path.write_bytes(data[: at - 100] + bytes(100) + data[at:])
    log = CallLog(path)
    assert log.lost
    assert log.is_lost(99)
    log.close()
