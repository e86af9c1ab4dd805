"""The journal's native protocol, and what happens when journald is slow, absent, or restarted."""

from __future__ import annotations

import io
import logging
import socket
import sys
import types
from typing import TYPE_CHECKING, Any, Self

import pytest

from sdshim.core.errors import Unavailable
from sdshim.systemd import journal
from sdshim.systemd.journal import MAX_VALUE, JournalHandler, encode, field_name, priority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.settimeout(5)
        yield server


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[JournalHandler]:
    made = JournalHandler("me", path=str(tmp_path / "socket"), fallback=io.StringIO())
    yield made
    made.close()


def logger(handler: JournalHandler) -> logging.Logger:
    made = logging.Logger("sdshim.test")
    made.addHandler(handler)
    return made


def decode(data: bytes) -> dict[str, bytes]:
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        fields[name.decode()] = value
    return fields


def test_names_and_priorities() -> None:
    assert field_name("container_id") == "CONTAINER_ID"
    assert field_name("_x.y-Z") == "X_Y_Z"
    assert field_name("9lives") == "LIVES"
    assert field_name("é") == "FIELD"
    levels = (10, 20, 25, 30, 40, 50, 5)
    assert [priority(level) for level in levels] == [7, 6, 6, 4, 3, 2, 7]


def test_encoding() -> None:
    fields = {"A": "x=y", "B": "two\nlines", "C": b"\xff\0", "D": 1.23456, "E": 7, "F": ""}
    assert decode(encode(fields)) == {
        "A": b"x=y",
        "B": b"two\nlines",
        "C": b"\xff\0",
        "D": b"1.235",
        "E": b"7",
        "F": b"",
    }
    long = decode(encode({"A": "x" * (MAX_VALUE + 10)}))["A"]
    assert long == b"x" * MAX_VALUE + "… (10 bytes more)".encode()


def test_a_record_becomes_an_entry(journald: socket.socket, handler: JournalHandler) -> None:
    fields = {
        "container_id": "c1",
        "unit": "u.service",
        "duration_ms": 1.5,
        "message": "no",
        "x": None,
    }
    logger(handler).info("created %s", "c1", extra={"fields": fields})
    entry = decode(journald.recv(65536))
    assert entry["MESSAGE"] == b"created c1"
    assert entry["CONTAINER_ID"] == b"c1" and entry["UNIT"] == b"u.service"
    assert entry["DURATION_MS"] == b"1.500" and entry["PRIORITY"] == b"6"
    assert entry["SYSLOG_IDENTIFIER"] == b"me" and entry["LOGGER"] == b"sdshim.test"
    assert entry["CODE_FUNC"] == b"test_a_record_becomes_an_entry"
    assert entry["CODE_FILE"].endswith(b"test_systemd_journal.py") and "X" not in entry


def test_an_exception_comes_with_its_trace(
    journald: socket.socket, handler: JournalHandler
) -> None:
    try:
        raise RuntimeError("cause")
    except RuntimeError:
        logger(handler).exception("failed")
    message = decode(journald.recv(65536))["MESSAGE"]
    assert message.startswith(b"failed\nTraceback") and message.endswith(b"RuntimeError: cause")


def test_a_journald_that_stands_still_costs_lines_not_time(
    journald: socket.socket, handler: JournalHandler
) -> None:
    log = logger(handler)
    lines = 0
    while not handler.dropped:
        log.info("line %d", lines)
        lines += 1
    log.info("another")
    assert handler.dropped == 2
    for _ in range(lines - 1):
        assert "SDSHIM_DROPPED" not in decode(journald.recv(65536))
    log.info("room again")
    assert decode(journald.recv(65536))["SDSHIM_DROPPED"] == b"2"
    assert handler.dropped == 0


def test_without_journald_lines_go_to_stderr(tmp_path: Path, handler: JournalHandler) -> None:
    output = handler._fallback
    assert isinstance(output, io.StringIO)
    logger(handler).error("bad\nnews", extra={"fields": {"container_id": "c1"}})
    assert output.getvalue() == "<3>bad\n<3>news CONTAINER_ID=c1\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:  # it comes up later
        server.bind(str(tmp_path / "socket"))
        logger(handler).info("hello")
        assert decode(server.recv(65536))["MESSAGE"] == b"hello"
    handler.close()
    logger(handler).info("late")
    assert output.getvalue().endswith("<6>late\n")


def test_a_faulty_call_is_reported_not_raised(
    handler: JournalHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    logger(handler).info("%d", "no number")
    assert "Logging error" in capsys.readouterr().err


def test_install_replaces_what_was_there() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        root.handlers = [logging.NullHandler()]
        made = journal.install(logging.WARNING)
        assert root.handlers == [made] and root.level == logging.WARNING
        made.close()
    finally:
        root.handlers, root.level = before, level


class _Reader:
    def __init__(self, path: str | None = None) -> None:
        self.path, self.matches = path, list[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_match(self, match: str) -> None:
        self.matches.append(match)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"MESSAGE": f"{self.path} {self.matches}"}


def test_reading_is_done_by_systemd_python(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("systemd.journal")
    module.Reader = _Reader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "systemd", types.ModuleType("systemd"))
    monkeypatch.setitem(sys.modules, "systemd.journal", module)
    (entry,) = journal.read({"CONTAINER_ID": "c1"}, directory="/j")
    assert entry == {"MESSAGE": "/j ['CONTAINER_ID=c1']"}
    monkeypatch.setitem(sys.modules, "systemd.journal", None)
    with pytest.raises(Unavailable, match="python3-systemd"):
        next(journal.read({}))
