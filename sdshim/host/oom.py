"""The kernel's count of OOM kills in a cgroup: reading it, and being told when to read it.

cgroup v2 counts in memory.events, also the kills in cgroups below; the file can be polled, and is
held open for that. What wakes there is any of its counters, in a container at its limit up to a
hundred times a second. v1 counts in memory.oom_control, for each cgroup alone, and says so by an
eventfd that is given to cgroup.event_control: also for the want of memory in a cgroup above, and
*before* the kernel has chosen whom to kill (6 to 14 ms before the victim's end; protocol 7.3). So
on neither a wake-up is an OOM kill: the counter is the truth, and it is looked at again after a
wake-up that it does not explain, while no other wake-up is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.host.cgroup import CGROUP_ROOT, unified
from sdshim.host.statfile import pairs

if TYPE_CHECKING:
    from collections.abc import Callable

V2_FILE, V1_FILE = "memory.events", "memory.oom_control"
LOOK_AGAIN_S = (0.02, 0.1, 0.5)
"""Pauses between the looks after a wake-up that has not shown its reason yet."""


def kills_in(text: str) -> int:
    """The count in the text of memory.events or memory.oom_control."""
    return pairs(text).get("oom_kill", 0)


def kills(cgroup: str, root: Path = CGROUP_ROOT) -> int | None:
    """The OOM kills in a cgroup and below it; None when it is gone or nobody counts there."""
    if unified(root):
        return _read(root / cgroup.lstrip("/") / V2_FILE)
    top, found = root / "memory" / cgroup.lstrip("/"), None
    with contextlib.suppress(OSError):
        if top.stat().st_nlink == 2:  # nothing below it, as nearly always
            return _read(top / V1_FILE)
    for folder, _, names in os.walk(top):
        if V1_FILE in names and (count := _read(Path(folder) / V1_FILE)) is not None:
            found = (found or 0) + count
    return found


def _read(file: Path) -> int | None:
    try:
        return kills_in(file.read_text())
    except OSError:
        return None


class Watch:
    """Calls `look` in the event loop when the count may have grown, until close().

    `look` tells whether it has found a growth; if not it is called again (LOOK_AGAIN_S), and None,
    the cgroup is gone, ends it all (v1 wakes for that, v2 does not). close() is idempotent.
    """

    def __init__(
        self, cgroup: str, look: Callable[[], bool | None], root: Path = CGROUP_ROOT
    ) -> None:
        """Raises OSError when the cgroup is gone or nobody counts there."""
        self._look = look
        self._timer: asyncio.TimerHandle | None = None
        self._source: _Poll | _Event | None = None
        if unified(root):
            self._source = _Poll(root / cgroup.lstrip("/") / V2_FILE)
        else:
            self._source = _Event(root / "memory" / cgroup.lstrip("/"))
        self._arm(self._source)

    def _arm(self, source: _Poll | _Event) -> None:
        asyncio.get_running_loop().add_reader(source.fd, self._wake, source)

    def _wake(self, source: _Poll | _Event) -> None:
        asyncio.get_running_loop().remove_reader(source.fd)
        source.taken()
        self._try(source, LOOK_AGAIN_S)

    def _try(self, source: _Poll | _Event, pauses: tuple[float, ...]) -> None:
        self._timer = None
        found = self._look()
        if found is None:
            self.close()
        elif self._source is None:
            return  # closed by whoever was told
        elif found or not pauses:
            self._arm(source)
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(pauses[0], self._try, source, pauses[1:])

    def close(self) -> None:
        """Stop watching."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._source:
            asyncio.get_running_loop().remove_reader(self._source.fd)
            self._source.close()
            self._source = None


class _Poll:
    """cgroup v2: an epoll that is readable while the held file has changed since it was read."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        try:
            self.taken()
            self._epoll.register(self._file, select.EPOLLPRI)
        except OSError:
            self.close()
            raise

    def taken(self) -> None:
        """What comes after this wakes again."""
        with contextlib.suppress(OSError):  # ENODEV: the cgroup is gone
            os.pread(self._file, 4096, 0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._file)


class _Event:
    """cgroup v1: an eventfd that the kernel counts up; it forgets it when it is closed."""

    def __init__(self, folder: Path) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(folder / V1_FILE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                (folder / "cgroup.event_control").write_text(f"{self.fd} {control}")
            finally:
                os.close(control)
        except OSError:
            self.close()
            raise

    def taken(self) -> None:
        """What comes after this wakes again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        os.close(self.fd)
