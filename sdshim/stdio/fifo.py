"""FIFO streams: the container inherits the FIFOs from its unit, nothing is copied (design 7).

What we hold is only what keeps a FIFO alive, in systemd's fd store, so that it depends on nobody:
the *read* end of stdout and stderr (no SIGPIPE when the client leaves) and the *write* end of
stdin (no EOF until CloseIO). While the unit starts, stdin is also held O_RDWR, so that the unit's
blocking open returns at once even if the client never opens its end. Held ends are never read and
never polled: a byte read here would be stolen from the client.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.model import Stdio

STDIN, STDOUT, STDERR = "in", "out", "err"
OPENING = "opening"
"""stdin O_RDWR, until the unit has opened its own end: from then on EOF is possible again."""


def check(stdio: Stdio) -> None:
    """Refuse what cannot be a FIFO or a file. Raises InvalidArgument."""
    for name in ("stdin", "stdout", "stderr"):
        path: str = getattr(stdio, name)
        if not path:
            continue
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument(f"{name}: {path!r} is not an absolute path")
        try:
            mode = Path(path).stat().st_mode
        except FileNotFoundError:
            raise InvalidArgument(f"{name}: {path} does not exist") from None
        except OSError as error:
            raise InvalidArgument(f"{name}: {path[:256]}", cause=error.strerror or "") from error
        if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            raise InvalidArgument(f"{name}: {path} is neither a FIFO nor a file")


@dataclass(slots=True)
class Held:
    """The ends held for one process; each is closed once."""

    ends: dict[str, int] = field(default_factory=dict)

    def close(self, stream: str) -> bool:
        """Close one end; False when it is not held."""
        fd = self.ends.pop(stream, -1)
        if fd >= 0:
            os.close(fd)
        return fd >= 0

    def close_all(self) -> list[str]:
        """Close every end; returns the names that were held."""
        names = list(self.ends)
        for name in names:
            self.close(name)
        return names


def hold(held: Held, stdio: Stdio) -> list[str]:
    """Open our ends, each unless it is held already; the names of the new ones.

    Raises InvalidArgument when a path cannot be opened; nothing new is held then.
    """
    # In this order: the write end of a FIFO can be opened once it has a reader.
    wanted = [(OPENING, stdio.stdin, os.O_RDWR), (STDIN, stdio.stdin, os.O_WRONLY)]
    wanted += [(STDOUT, stdio.stdout, os.O_RDONLY), (STDERR, stdio.stderr, os.O_RDONLY)]
    try:
        return open_ends(held, [end for end in wanted if _is_fifo(end[1])])
    except OSError as error:
        raise InvalidArgument(
            f"cannot open a stream: {error.filename}", cause=str(error)
        ) from error


def open_ends(held: Held, wanted: Sequence[tuple[str, str, int]]) -> list[str]:
    """Open each (name, path, mode) unless it is held already, without blocking; the names of the
    new ones. Raises OSError; nothing new is held then."""
    fresh: list[str] = []
    try:
        for name, path, mode in wanted:
            if name not in held.ends:
                held.ends[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
                fresh.append(name)
    except OSError:
        for name in fresh:
            held.close(name)
        raise
    return fresh


def _is_fifo(path: str) -> bool:
    try:
        return bool(path) and stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False
