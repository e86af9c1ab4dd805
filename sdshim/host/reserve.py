"""Room that is set aside on /run, so that what has begun can end when the disk is full.

`ahead` reserves room behind the end of a file that only grows (the call log). `Reserve` keeps a few
files whose room is theirs already: what exists can be replaced by one of them, and what it gives up
becomes the next (task records, outboxes). Nothing new is made of it: new work needs a free disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import TYPE_CHECKING

from sdshim.core.errors import ResourceExhausted

if TYPE_CHECKING:
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FILES = 8
SIZE = 16 << 10
"""Bytes of each; a record has two to four thousand."""
_KEEP_SIZE = 1


def ahead(fd: int, offset: int, size: int) -> None:
    """Reserve room in a file without making it longer. Raises OSError, FULL when there is none."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    if fallocate(fd, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code != errno.EOPNOTSUPP:  # then writing tells
            raise OSError(code, os.strerror(code))


class Reserve:
    """The files in `folder`; they outlive the daemon."""

    def __init__(self, folder: Path, files: int = FILES) -> None:
        self._folder = folder
        self._files = [folder / str(number) for number in range(files)]
        self._missing = list(self._files)
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fill()

    def replace(self, path: Path | str, data: bytes) -> None:
        """Write a file atomically, owner only. Raises ResourceExhausted when there is no room; a
        file that exists has room in the reserve."""
        folder, _, name = str(path).rpartition("/")
        temporary = f"{folder}/.{name}.new"  # (a Path costs as much as the write itself)
        try:
            try:
                _write(temporary, data, os.O_CREAT | os.O_TRUNC)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
                if error.errno not in FULL or not os.access(path, os.F_OK):
                    raise
                self._take(temporary, data)
            os.replace(temporary, path)  # noqa: PTH105
        except OSError as error:
            raise no_room(path, error) from error
        if self._missing:
            self._fill()

    def _take(self, temporary: str, data: bytes) -> None:
        """Have one of the files under that name, with that in it."""
        spares = [spare for spare in self._files if spare not in self._missing]
        if not spares or len(data) > SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._missing.append(spares[-1])
        spares[-1].replace(temporary)
        _write(temporary, data, 0)
        os.truncate(temporary, len(data))

    def _fill(self) -> None:
        """Make the missing files, as many as there is room for."""
        while self._missing:
            spare = self._missing[-1]
            try:
                fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, SIZE)
                finally:
                    os.close(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    spare.unlink()
                return
            self._missing.pop()


def _write(path: str, data: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        if os.write(fd, data) != len(data):  # a full tmpfs takes what fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def no_room(path: Path | str, error: OSError) -> ResourceExhausted:
    """What a file that cannot be written is for clients."""
    return ResourceExhausted(
        f"cannot write state {path}", cause=str(error), hint="df -h /run; df -i /run; sdshim doctor"
    )
