"""Unmounting a task's rootfs (protocol 9): deepest first, each path until nothing is left on it.

umount2(2) through ctypes in a thread: an overlay's umount writes back and may take seconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import time
from pathlib import Path

from sdshim.core.errors import UnknownError

UMOUNT_NOFOLLOW = 8
MNT_DETACH = 2
UNREACHABLE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESTALE)
BUSY_TRIES = 50
BUSY_WAIT_S = 0.05


def mount_points(below: Path, table: str) -> list[Path]:
    """Mount points at or below a path, deepest first, from the text of /proc/self/mountinfo."""
    prefix = str(below).rstrip("/")
    found = []
    for line in table.splitlines():
        fields = line.split(" ", 5)
        if len(fields) < 5:
            continue
        point = _unescape(fields[4])
        if point == prefix or point.startswith(prefix + "/"):
            found.append(point)
    return [Path(p) for p in sorted(found, key=len, reverse=True)]


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


async def unmount_tree(path: Path) -> None:
    """Unmount all at and below `path`. Raises UnknownError `failed rootfs umount: …`."""
    await asyncio.to_thread(_unmount_tree, path)


def _unmount_tree(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    flags = UMOUNT_NOFOLLOW
    for point in mount_points(path.parent.resolve() / path.name, table):
        if not _unmount(libc, point, flags):
            flags |= MNT_DETACH


def _unmount(libc: ctypes.CDLL, point: Path, flags: int) -> bool:
    """False when it cannot be reached, below a FUSE mount whose program is dead: then it has to go
    with that one."""
    busy = 0
    while libc.umount2(os.fsencode(point), flags) != 0:
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOENT):
            return True
        if code in UNREACHABLE:
            return False
        if code != errno.EBUSY or busy == BUSY_TRIES:
            raise UnknownError(f"failed rootfs umount: {point}: {os.strerror(code)}")
        busy += 1
        # The kernel tells nobody when a mount stops being busy: stock tries again as well.
        time.sleep(BUSY_WAIT_S)
    return True
