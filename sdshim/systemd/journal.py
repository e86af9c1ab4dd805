"""The daemon's own log: one structured entry per line, in systemd's journal.

`JournalHandler` sends a `logging` record with journal fields of its own (`extra={"fields": {…}}`:
keys become upper-case fields, CONTAINER_ID, CONTAINER_NAMESPACE, UNIT, TRACE_ID, SDSHIM_OPERATION,
DURATION_MS). It writes the journal's native protocol to journald's datagram socket itself, because
sending must never hold up the event loop: systemd-python's `journal.send` is sd_journal_sendv(3),
whose socket is a blocking one, so a journald that stands still would stand the daemon still. Here a
full socket drops the line and counts it; the next line that goes out says how many were lost in
SDSHIM_DROPPED. Without journald (a container build, a laptop) lines go to stderr with the
``<priority>`` prefix of sd-daemon(3).

systemd-python (imported here and nowhere else, only when used) is for reading: `read` is the way to
the entries of a container, blocking, for the command line and for tests.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import socket
import sys
from typing import TYPE_CHECKING

from sdshim.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TextIO

SOCKET = "/run/systemd/journal/socket"
MAX_VALUE = 32 << 10
"""Of one field, in bytes: a datagram holds about 200 KB, and nobody reads more of a line."""

_LEVELS = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]")


def priority(level: int) -> int:
    """syslog's number for a level of `logging`."""
    return next((number for least, number in _LEVELS if level >= least), 7)


@functools.lru_cache(256)
def field_name(key: str) -> str:
    """A legal journal field: upper case, digits, underscores, beginning with a letter."""
    name = _NOT_IN_NAMES.sub("_", key.upper()).lstrip("_0123456789")[:64]
    return name or "FIELD"


def encode(fields: Mapping[str, object]) -> bytes:
    """The native protocol's datagram: ``NAME=value`` lines, or name, length, value."""
    out = bytearray()
    for name, value in fields.items():
        data = _bytes(value)
        if b"\n" in data:
            out += b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
        else:
            out += b"%s=%s\n" % (name.encode(), data)
    return bytes(out)


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, float):
        data = f"{value:.3f}".encode()
    else:
        data = str(value).encode(errors="surrogateescape")
    if len(data) > MAX_VALUE:
        more = len(data) - MAX_VALUE
        data = data[:MAX_VALUE] + f"… ({more} bytes more)".encode()
    return data


class JournalHandler(logging.Handler):
    """Sends records to journald, never waiting for it; owns the socket until `close`."""

    def __init__(
        self, identifier: str = "sdshim", *, path: str = SOCKET, fallback: TextIO | None = None
    ) -> None:
        super().__init__()
        self._identifier = identifier
        self._path = path
        self._fallback = fallback or sys.stderr
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; a line that journald has no room for is counted and forgotten."""
        try:
            fields = self.fields(record)
            if self.dropped:
                fields["SDSHIM_DROPPED"] = self.dropped
            try:
                # not connected: journald may be restarted at any time
                self._socket.sendto(encode(fields), self._path)
                self.dropped = 0
            except (BlockingIOError, InterruptedError):
                self.dropped += 1
            except OSError:
                self._print(record, fields)
        except Exception:
            self.handleError(record)

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """The journal fields of a record; those of the entry itself cannot be overridden."""
        message = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            formatter = self.formatter or logging.Formatter()
            message += "\n" + formatter.formatException(record.exc_info)
        given: Mapping[str, object] = getattr(record, "fields", None) or {}
        named = {field_name(key): value for key, value in given.items() if value is not None}
        return {
            **named,
            "MESSAGE": message,
            "PRIORITY": priority(record.levelno),
            "SYSLOG_IDENTIFIER": self._identifier,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
        }

    def close(self) -> None:
        """Close the socket; later records go to stderr."""
        self._socket.close()
        super().close()

    def _print(self, record: logging.LogRecord, fields: Mapping[str, object]) -> None:
        number = priority(record.levelno)
        given = list(fields)[: list(fields).index("MESSAGE")]
        words = "".join(
            f" {name}={_bytes(fields[name]).decode(errors='replace')}" for name in given
        )
        for line in f"{fields['MESSAGE']}{words}".splitlines():
            self._fallback.write(f"<{number}>{line}\n")
        self._fallback.flush()


def install(level: int = logging.INFO, identifier: str = "sdshim") -> JournalHandler:
    """Make the journal the one destination of the root logger."""
    handler = JournalHandler(identifier)
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
        other.close()
    root.addHandler(handler)
    root.setLevel(level)
    return handler


def read(matches: Mapping[str, str], *, directory: str | None = None) -> Iterator[dict[str, Any]]:
    """Entries whose fields are as in `matches`, oldest first. Blocks: not for the event loop."""
    try:
        journal: Any = importlib.import_module("systemd.journal")
    except ImportError as error:
        hint = "install systemd-python (Debian: python3-systemd)"
        raise Unavailable("the journal cannot be read", cause=str(error), hint=hint) from error
    with journal.Reader(path=directory) if directory else journal.Reader() as reader:
        for name, value in matches.items():
            reader.add_match(f"{name}={value}")
        for entry in reader:
            yield dict(entry)
