"""Unmounting a task's rootfs (protocol 9): deepest first, each path until nothing is left on it.

umount2(2) through ctypes in a thread: an overlay's umount writes back and may take seconds, and one
whose file system does not answer (a server that is away, a FUSE program that hangs) does not return
at all. Then the mounts are detached: their file systems go when they can.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import time
from functools import partial
from pathlib import Path

from sdshim.core.errors import UnknownError
from sdshim.host.blocking import apart

UMOUNT_NOFOLLOW = 8
MNT_DETACH = 2
UNREACHABLE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESTALE)
MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Of a path on which somebody has moved something since it was read: it is read again."""
MOVED_TRIES = 100
BUSY_TRIES = 50
BUSY_WAIT_S = 0.05
UNMOUNT_S = 30.0
DETACH_S = 5.0

log = logging.getLogger(__name__)


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
    try:
        await apart(partial(_unmount_tree, path), UNMOUNT_S)
        return
    except TimeoutError:
        log.warning("umount of %s does not return after %g s; it is detached", path, UNMOUNT_S)
    try:
        await apart(partial(_unmount_tree, path, MNT_DETACH), DETACH_S)
    except TimeoutError:
        text = f"failed rootfs umount: {path} can neither be unmounted nor detached: it hangs"
        raise UnknownError(text, hint=f"grep {path} /proc/self/mountinfo") from None


def _unmount_tree(path: Path, more: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(MOVED_TRIES):
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        points = mount_points(path.parent.resolve() / path.name, table)
        if _unmounted(libc, points, UMOUNT_NOFOLLOW | more):
            return
    raise UnknownError(f"failed rootfs umount: what is mounted below {path} is moved all the time")


def _unmounted(libc: ctypes.CDLL, points: list[Path], flags: int) -> bool:
    """Unmount each; False at once when one is not where it was."""
    for point in points:
        code = _unmount(libc, point, flags)
        if code in MOVED:
            return False
        if code:  # below a FUSE mount whose program is dead: it has to go with that one
            flags |= MNT_DETACH
    return True


def _unmount(libc: ctypes.CDLL, point: Path, flags: int) -> int:
    """Until nothing is left on a mount point; 0, or one of UNREACHABLE and MOVED."""
    busy = 0
    while code := _umount2(libc, point, flags):
        if code == errno.EINVAL:
            return 0
        if code in UNREACHABLE or code in MOVED:
            return code
        if code != errno.EBUSY or busy == BUSY_TRIES:
            raise UnknownError(f"failed rootfs umount: {point}: {os.strerror(code)}")
        busy += 1
        # The kernel tells nobody when a mount stops being busy: stock tries again as well.
        time.sleep(BUSY_WAIT_S)
    return 0


def _umount2(libc: ctypes.CDLL, point: Path, flags: int) -> int:
    """umount2(2) in the folder that the mount point is in; the error's number."""
    try:
        folder = _reached(point.parent)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        place = f"/proc/self/fd/{folder}/{point.name}"
        return 0 if libc.umount2(os.fsencode(place), flags) == 0 else ctypes.get_errno()
    finally:
        os.close(folder)


def _reached(path: Path) -> int:
    """A descriptor of a folder, come to without a symbolic link. mountinfo's paths have none, but
    who may write below the rootfs can put one into the way afterwards, to where another mount of
    the host is. Raises OSError."""
    way = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open("/", way)
    for name in path.parts[1:]:
        try:
            below = os.open(name, way, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder
