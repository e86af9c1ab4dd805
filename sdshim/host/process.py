"""Processes of somebody else by pidfd: told when they end, signalled without a race on the pid."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import os
import re
import select
import signal
import struct
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


_INFO = struct.Struct("Q52xi")  # struct pidfd_info: mask, …, exit_code (linux/pidfd.h)
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO for these 64 bytes
_INFO_EXIT = 1 << 3
TELLS_EXITS_SINCE = (6, 15)
"""Linux: from here on a pidfd tells how its process ended, and by POLLHUP that it was reaped."""
REAPED_S = 0.5
"""systemd reaps at once, unless it is just executing itself again."""


class Watched:
    """A pidfd in the event loop: `ended` is called once when the process has ended.

    The pidfd also carries signals, and then tells how it ended. close() is idempotent.
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
        asyncio.get_running_loop().remove_reader(self._fd)
        self._ended()

    async def wait_status(self) -> int | None:
        """How the process, which has ended, ended: what its parent got from waitpid(2), once that
        has got it. None when the kernel does not tell, or the parent takes its time."""
        if self._fd < 0 or not tells_exits():
            return None
        status = _wait_status(self._fd)
        if status is None and await self._reaped():
            status = _wait_status(self._fd)
        return status

    async def _reaped(self) -> bool:
        """Wait for the parent; False when it takes longer than it should, or a descriptor lacks."""
        loop = asyncio.get_running_loop()
        reaped = asyncio.Event()
        try:
            poll = select.epoll()
        except OSError:
            return False
        try:
            poll.register(self._fd, 0)  # EPOLLHUP alone: the process has ended
            loop.add_reader(poll.fileno(), reaped.set)
            async with asyncio.timeout(REAPED_S):
                await reaped.wait()
            return self._fd >= 0
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(poll.fileno())
            poll.close()

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


@functools.cache
def tells_exits() -> bool:
    """Whether this kernel's pidfds tell how their processes ended."""
    numbers = re.findall(r"\d+", os.uname().release)[:2]
    return tuple(map(int, numbers)) >= TELLS_EXITS_SINCE


def _wait_status(pidfd: int) -> int | None:
    """None while nobody has reaped the process."""
    told = bytearray(_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, told)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
            raise
        return None
    mask, status = _INFO.unpack(told)
    return status if mask & _INFO_EXIT else None


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
