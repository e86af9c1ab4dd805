"""A loop device for the time of a mount (protocol 9): autoclear frees it with the last user, which
is the mount; when that fails, it is this process."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

_CTL_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_TRIES = 100
"""Others take free devices as well, between the question and the answer."""


class _Info(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("device", "inode", "rdevice", "offset", "limit")),
        *((name, ctypes.c_uint32) for name in ("number", "encrypt", "key_size", "flags")),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("key", ctypes.c_char * 32),
        ("init", ctypes.c_uint64 * 2),
    ]


class _Config(ctypes.Structure):
    _fields_ = [
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    ]


class Loop:
    """A loop device over `file`; what is mounted from its `path` before `close` keeps it."""

    def __init__(self, file: str, read_only: bool, direct_io: bool) -> None:
        mode = os.O_RDONLY if read_only else os.O_RDWR
        backing = os.open(file, mode | os.O_CLOEXEC)
        try:
            flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)
            info = _Info(flags=flags, file_name=os.fsencode(file)[:63])
            self.path, self._device = _configure(_Config(fd=backing, info=info), mode)
        finally:
            os.close(backing)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._device)


def _configure(config: _Config, mode: int) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            device = os.open(path, mode | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, bytes(config))
                return path, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, error.strerror, path) from error
        raise OSError(errno.EBUSY, "no loop device stays free", "/dev/loop-control")
    finally:
        os.close(control)
