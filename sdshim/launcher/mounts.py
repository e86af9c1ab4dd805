"""Unmount everything at and below a directory, deepest first."""

from __future__ import annotations

import errno
import os
import re
import sys
import time

_UMOUNT_NOFOLLOW = 8
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
    return all([_unmount(path, deadline) for path in paths])  # noqa: C419  try each


def _unmount(path: bytes, deadline: float) -> bool:
    import ctypes  # only when there is something to unmount

    libc = ctypes.CDLL(None, use_errno=True)
    deadline = min(deadline, time.monotonic() + _BUSY)
    while libc.umount2(path, _UMOUNT_NOFOLLOW) != 0:
        error = ctypes.get_errno()
        if error in (errno.EINVAL, errno.ENOENT):
            return True  # gone with its parent
        if error != errno.EBUSY or time.monotonic() > deadline:
            sys.stderr.write(f"cannot unmount {os.fsdecode(path)}: {os.strerror(error)}\n")
            return False
        time.sleep(0.02)
    return True
