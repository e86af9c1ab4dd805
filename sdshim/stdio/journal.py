"""Output that goes to the journal: FIFOs in the state folder between a process and the pump.

What we hold, in systemd's fd store: the *read* ends of `out` and `err`, which are handed to the
pump (daemon/output.py), and an end of each of the client's FIFOs, so that the client sees the end
of file when the output is over, whether it gets a part of it or not. Ours are never read here: what
is in them is the journal's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import loguri
from sdshim.core.errors import InvalidArgument, ResourceExhausted
from sdshim.stdio.fifo import STDERR, STDOUT, open_ends

if TYPE_CHECKING:
    from sdshim.core.model import Stdio
    from sdshim.stdio.fifo import Held

CLIENT = {STDOUT: "client-out", STDERR: "client-err"}
"""Names of the ends of the client's FIFOs."""

_FIFOS = {STDOUT: loguri.OUT, STDERR: loguri.ERR}
_ROOM = 1 << 20
"""Of the client's FIFOs: what a reader may be behind before something is dropped for it."""


def hold(held: Held, stdio: Stdio, folder: Path) -> list[str]:
    """Make the FIFOs and open our ends, each unless it is there already; the names of the new ones.
    Raises InvalidArgument when a path cannot be opened, ResourceExhausted when there is no room."""
    fresh = hold_client(held, stdio)
    wanted = []
    for stream in (STDOUT,) if stdio.terminal else (STDOUT, STDERR):
        path = str(folder / _FIFOS[stream])
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass  # an earlier daemon's
        except OSError as error:
            raise ResourceExhausted(f"cannot make {path}", cause=str(error)) from error
        wanted.append((stream, path, os.O_RDONLY))
    return fresh + _open(held, wanted)


def hold_client(held: Held, stdio: Stdio) -> list[str]:
    """Open an end of each FIFO of the client's, so that it is not at its end yet."""
    given = {STDOUT: stdio.stdout, STDERR: "" if stdio.terminal else stdio.stderr}
    wanted = [(CLIENT[s], path, _mode(path)) for s, path in given.items() if path]
    fresh = _open(held, wanted)
    for name in fresh:
        with contextlib.suppress(OSError):  # no FIFO; or as many pages as root may have
            fcntl.fcntl(held.ends[name], fcntl.F_SETPIPE_SZ, _ROOM)
    return fresh


def _mode(path: str) -> int:
    """A FIFO is opened for both: a reader that leaves is neither an error nor an end."""
    try:
        if not stat.S_ISFIFO(Path(path).stat().st_mode):
            return os.O_WRONLY | os.O_APPEND | os.O_NOCTTY
    except OSError as error:
        raise InvalidArgument(f"cannot open a stream: {path}", cause=str(error)) from error
    return os.O_RDWR


def _open(held: Held, wanted: list[tuple[str, str, int]]) -> list[str]:
    try:
        return open_ends(held, wanted)
    except OSError as error:
        text = f"cannot open a stream: {error.filename}"
        raise InvalidArgument(text, cause=str(error)) from error


def look(fd: int) -> tuple[bool, bool]:
    """(whether something is in a FIFO, whether nobody can write to it any more)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    events = next((event for _, event in poll.poll(0)), 0)
    return bool(events & select.POLLIN), bool(events & select.POLLHUP)
