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
_MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_OCTAL = re.compile(rb"\\([0-7]{3})")
_BUSY = 0.3


def mount_points(directory: str, mountinfo: bytes) -> list[bytes]:
    """Mount points at and below `directory`, the order to unmount them in (mountinfo: proc(5))."""
    parent, name = os.path.split(os.fsencode(directory))
    root = os.path.join(os.path.realpath(parent), name)  # a link there leads to what is not ours
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
    while (done := _unmount_all(directory, deadline)) is None:
        if time.monotonic() > deadline:
            return False
    return done


def _unmount_all(directory: str, deadline: float) -> bool | None:
    """None when one was not where it had been a moment before."""
    with open("/proc/self/mountinfo", "rb") as file:
        paths = mount_points(directory, file.read())
    flags, done = _UMOUNT_NOFOLLOW, True
    for path in paths:
        code = _unmount(path, flags, deadline)
        if code in _MOVED:
            return None
        if code in _UNREACHABLE:  # below a FUSE mount whose program is dead: it goes with that one
            flags |= _MNT_DETACH
        elif code:
            sys.stderr.write(f"cannot unmount {os.fsdecode(path)}: {os.strerror(code)}\n")
            done = False
    return done


def _unmount(path: bytes, flags: int, deadline: float) -> int:
    """Until nothing is left on a mount point; the error's number, 0 when all went."""
    deadline = min(deadline, time.monotonic() + _BUSY)
    while (code := _umount2(path, flags)) != 0:
        if code == errno.EINVAL:
            return 0
        if code != errno.EBUSY or time.monotonic() > deadline:
            return code
        time.sleep(0.02)
    return 0


def _umount2(path: bytes, flags: int) -> int:
    """umount2(2) in the folder that the mount point is in, come to without a symbolic link (the
    daemon's host/mounts.py tells why); the error's number, 0 for none."""
    import ctypes  # only when there is something to unmount

    libc = ctypes.CDLL(None, use_errno=True)
    way = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, last = path.split(b"/")[1:]
    folder = os.open("/", way)
    try:
        for name in folders:
            below = os.open(name, way, dir_fd=folder)
            os.close(folder)
            folder = below
        place = b"/proc/self/fd/%d/%s" % (folder, last)
        return 0 if libc.umount2(place, flags) == 0 else ctypes.get_errno()
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(folder)
