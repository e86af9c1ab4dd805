"""System calls of the mount API that Python's library does not have, through libc's syscall(2).

Numbers from 424 on are the same on every architecture but alpha. Each raises OSError with what it
was about as the file name.
"""

from __future__ import annotations

import ctypes
import os

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC = 16, 32, 64, 128
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 1024, 2048, 4096, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME = 1 << 21, 1 << 24

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_STRICTATIME = 0x70, 0x10, 0x20
ATTR_NODIRATIME, ATTR_IDMAP = 0x80, 0x100000

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000

_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_TRIES = 1000
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


def _checked(result: int, about: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), about)
    return result


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    words = (os.fsencode(source), os.fsencode(target), os.fsencode(kind))
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)), "")


def open_below(root: int, path: str) -> int:
    """An O_PATH descriptor of `path` with `root` (a descriptor) as the root directory: nothing
    leads out of it. The kernel gives up at a `..` when anything on the machine is renamed or
    mounted meanwhile (openat2(2)): it is asked again."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path or "/")
    size = ctypes.sizeof(how)
    for _ in range(_TRIES):
        try:
            return _checked(_libc.syscall(_OPENAT2, root, name, ctypes.byref(how), size), path)
        except BlockingIOError as error:
            last = error
    raise last


def clone_tree(path: str, *, recursive: bool = False) -> int:
    """A copy of the mount at `path` that is mounted nowhere, gone with its descriptor."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _checked(_libc.syscall(_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags), path)


def set_attributes(
    tree: int,
    *,
    on: int = 0,
    off: int = 0,
    propagation: int = 0,
    userns: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2)."""
    attributes = _MountAttr(on, off, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attributes)
    pointer = ctypes.byref(attributes)
    _checked(_libc.syscall(_MOUNT_SETATTR, tree, b"", flags, pointer, size), "mount_setattr")


def attach(tree: int, target: int) -> None:
    """move_mount(2): a tree that is mounted nowhere onto what a descriptor names."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _checked(_libc.syscall(_MOVE_MOUNT, tree, b"", target, b"", flags), "")


def unshare(flags: int) -> None:
    """unshare(2); os.unshare is there from Python 3.12 on."""
    _checked(_libc.unshare(flags), "unshare")


def enter(namespace: int, kind: int) -> None:
    """setns(2)."""
    _checked(_libc.setns(namespace, kind), "setns")


def enter_hosts_mounts() -> None:
    """Into the host's mount namespace, where a drop-in has put the unit into another
    (hostmounts.sh)."""
    hosts = "/proc/1/ns/mnt"
    try:
        if os.path.samefile(hosts, "/proc/self/ns/mnt"):
            return
    except PermissionError:
        return
    fd = os.open(hosts, os.O_RDONLY | os.O_CLOEXEC)
    enter(fd, CLONE_NEWNS)
    os.close(fd)
