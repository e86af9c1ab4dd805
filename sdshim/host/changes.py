"""Files of the kernel's that tell when they change: one epoll in the event loop for all of them.

cgroup v2's files (cgroup.events, memory.events …) are held open and can be polled: EPOLLPRI until
they are read again. One descriptor a file; nothing is polled by time.
"""

from __future__ import annotations

import asyncio
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """One watched file. Its descriptor's number may be another file's when it has been closed."""

    fd: int
    changed: Callable[[], None]


class Changes:
    """Watched files, for as long as an event loop runs."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}

    def watch(self, file: Path, changed: Callable[[], None]) -> Watched:
        """Call `changed` after each change from now on, until `close`. Raises OSError when the
        file is not there, or cannot be polled."""
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.pread(fd, 4096, 0)  # what has been is no change
            self._poll().register(fd, select.EPOLLPRI)
        except OSError:
            os.close(fd)
            raise
        self._watched[fd] = watched = Watched(fd, changed)
        return watched

    def close(self, watched: Watched) -> None:
        """Stop watching; fine when it is not watched any more."""
        if self._watched.get(watched.fd) is watched:
            del self._watched[watched.fd]
            os.close(watched.fd)  # which takes it out of the epoll

    def close_all(self) -> None:
        """Stop watching every file."""
        for watched in list(self._watched.values()):
            self.close(watched)
        if self._epoll:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _poll(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._wake)
        return self._epoll

    def _wake(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            watched = self._watched.get(fd)
            if watched is None:
                continue
            try:
                os.pread(fd, 4096, 0)  # what comes after this wakes again
            except OSError:  # its cgroup is gone, of which it would tell for ever
                self.close(watched)
            watched.changed()
