"""The bundle's log FIFO: containerd reads a shim's own log there and copies it into its log.

It is opened for each line, never waited for: a FIFO that is not there, has no reader (containerd is
away) or no room drops the line, which is in the journal anyway. Lines look like those of the stock
shim and fit PIPE_BUF, so that they are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import stat
import time

NAME = "log"
_OPEN = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class BundleHandler(logging.Handler):
    """Writes records that name a bundle (`extra={"bundle": FOLDER}`) to its FIFO as well."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, if there is room."""
        folder = getattr(record, "bundle", "")
        if folder:
            with contextlib.suppress(OSError, ValueError):  # NUL in a path that a client made up
                _write(f"{folder}/{NAME}", _line(record))


def _write(path: str, line: bytes) -> None:
    fd = os.open(path, _OPEN)
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.write(fd, line)
    finally:
        os.close(fd)


def _line(record: logging.LogRecord) -> bytes:
    """logrus' text form: what containerd's own log is made of."""
    begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    head = f'time="{begun}.{int(record.msecs):03d}Z" level={record.levelname.lower()} msg='
    message = json.dumps(record.getMessage())
    most = select.PIPE_BUF - len(head) - 16  # quotes, newline, the sign that something is left out
    if len(message) > most:
        message = json.dumps(record.getMessage()[: most // 6] + "…")
    return f"{head}{message}\n".encode()
