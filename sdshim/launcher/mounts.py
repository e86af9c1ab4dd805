"""Unmount everything at and below a directory, deepest first."""

from __future__ import annotations

import errno
import os
import re
import sys
import time

_UMOUNT_NOFOLLOW = 8
_MNT_DETACH = 2
_UNREACHABLE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESTALE)
_OCTAL = re.compile(rb"\\([0-7]{3})")
_BUSY = 0.3


def mount_points(directory: str, mountinfo: bytes) -> list[bytes]:
    """Mount points at and below `directory`, the order to unmount them in (mountinfo: proc(5))."""
    root = os.fsencode(os.path.realpath(directory))
    found = []
    for line in reversed(mountinfo.splitlines()):
        fields = line.split(b" ")
        if len(fields) < 5:
            continue
        path = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
        if path == root or path.startswith(root + b"/"):
            found.append(path)
    return sorted(found, key=lambda path: path.count(b"/"), reverse=True)


def unmount_below(directory: str, deadline: float) -> bool:
    """Unmount; a mount still busy after a moment is left to containerd, which tries again."""
    with open("/proc/self/mountinfo", "rb") as file:
        paths = mount_points(directory, file.read())
    flags, done = _UMOUNT_NOFOLLOW, True
    for path in paths:
        code = _unmount(path, flags, deadline)
        if code in _UNREACHABLE:  # below a FUSE mount whose program is dead: it goes with that one
            flags |= _MNT_DETACH
        elif code:
            sys.stderr.write(f"cannot unmount {os.fsdecode(path)}: {os.strerror(code)}\n")
            done = False
    return done


def _unmount(path: bytes, flags: int, deadline: float) -> int:
    """Until nothing is left on a mount point; the error's number, 0 when all went."""
    import ctypes  # only when there is something to unmount

    libc = ctypes.CDLL(None, use_errno=True)
    deadline = min(deadline, time.monotonic() + _BUSY)
    while libc.umount2(path, flags) != 0:
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOENT):
            return 0  # gone with its parent
        if code != errno.EBUSY or time.monotonic() > deadline:
            return code
        time.sleep(0.02)
    return 0
