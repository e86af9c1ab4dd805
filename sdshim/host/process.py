"""Processes of somebody else by pidfd: told when they end, signalled without a race on the pid."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = {
    "Max open files": "LimitNOFILE",
    "Max processes": "LimitNPROC",
    "Max core file size": "LimitCORE",
}
INFINITY = 2**64 - 1
PF_EXITING = 0x4
"""In /proc/PID/stat: set before the process's descriptors are closed (linux/sched.h)."""


class Watched:
    """A pidfd in the event loop: `ended` is called once when the process has ended.

    The pidfd also carries signals. close() is idempotent.
    """

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        """Raises ProcessLookupError when the process is gone already."""
        self.pid = pid
        if pid <= 0:
            raise ProcessLookupError(f"pid {pid}")
        self._fd = os.pidfd_open(pid)
        self._ended = ended
        asyncio.get_running_loop().add_reader(self._fd, self._fire)

    def _fire(self) -> None:
        self.close()
        self._ended()

    def kill(self, number: int) -> None:
        """Send a signal. Raises NotFound when the process has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except (ProcessLookupError, OSError) as error:
            if isinstance(error, ProcessLookupError) or self._fd < 0:
                raise NotFound("process already finished: not found") from error
            raise

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


async def end_of(pid: int) -> None:
    """Return when the process has ended."""
    over = asyncio.Event()
    try:
        watched = Watched(pid, over.set)
    except ProcessLookupError:
        return
    try:
        await over.wait()
    finally:
        watched.close()


def is_ending(pid: int) -> bool:
    """Whether a process has ended or is about to; its descriptors may be closed already."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return words[0] in "ZX" or bool(int(words[6]) & PF_EXITING)


def limits_of(pid: int, nofile: str = "") -> tuple[tuple[str, int], ...]:
    """Resource limits of a process's children as unit properties (`LimitNOFILE`,
    `LimitNOFILESoft`, …).

    A container whose spec names no rlimits has those of containerd under the stock shim; systemd's
    defaults (1024 files) would surprise it. `nofile`: the soft limit of open files that a child has
    seen, a number or `unlimited`: a Go program raises its own and gives its children the first one.
    """
    try:
        text = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return ()
    found: dict[str, int] = {}
    for line in text.splitlines():
        name = line[:26].strip()
        values = line[26:].split()
        if name in LIMITS and len(values) >= 2:
            found[LIMITS[name]] = _limit(values[1])
            found[f"{LIMITS[name]}Soft"] = _limit(values[0])
    if nofile and "LimitNOFILE" in found:
        found["LimitNOFILESoft"] = min(_limit(nofile), found["LimitNOFILE"])
    return tuple(found.items())


def _limit(word: str) -> int:
    return int(word) if re.fullmatch("[0-9]{1,19}", word) else INFINITY
