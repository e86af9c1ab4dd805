"""Where a frame waits that is too large to be peeked whole: socket → pipe → memory file.

A peer's send buffer holds some 200 KB, a legal frame has up to 4 MiB, so its head must leave the
socket before its tail can arrive. splice(2) moves bytes inside the kernel: a process that dies at
any instruction leaves each byte in exactly one place, and since both ends of the pipe and the file
are in the fd store (under one name, `spool.<serial>`; told apart by what they are), the next
process goes on. The file's offset, shared by all copies of the descriptor, says how far the frame
has come; its first ten bytes hold the header from the beginning. An empty file says that the frame
has been dealt with. The file has no name anywhere, so there is nothing to sweep.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios
from enum import Enum, auto
from typing import TYPE_CHECKING

from sdshim.ttrpc.frames import HEADER, encode_header, parse_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sdshim.core.points import Crash
    from sdshim.ttrpc.frames import Header


class Progress(Enum):
    """How far a spool has come."""

    PART = auto()  # the socket has nothing more now
    WHOLE = auto()
    EOF = auto()  # the peer left in the middle


class Spool:
    """One frame under way; owns its three descriptors."""

    __slots__ = ("_file", "_read", "_total", "_write", "header")

    def __init__(self, header: Header, read: int, write: int, file: int) -> None:
        self.header = header
        self._read = read
        self._write = write
        self._file = file
        self._total = HEADER + header.length

    @classmethod
    def create(cls, header: Header) -> Spool:
        """An empty one; OSError when there are no descriptors left."""
        file = os.memfd_create("sdshim-spool", os.MFD_CLOEXEC)
        try:
            os.pwrite(file, encode_header(header), 0)
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            os.close(file)
            raise
        return cls(header, read, write, file)

    @classmethod
    def adopt(cls, fds: Iterable[int]) -> Spool | None:
        """One an earlier process began, or None (all closed) if it is finished or was never used.

        Nothing is moved before all three are in the store, so an incomplete set is an unused one.
        """
        read = write = file = -1
        for fd in fds:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                file = fd
            elif fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                write = fd
            else:
                read = fd
        head = os.pread(file, HEADER, 0) if file >= 0 else b""
        if len(head) == HEADER and read >= 0 and write >= 0:
            return cls(parse_header(head), read, write, file)
        for fd in (read, write, file):
            if fd >= 0:
                os.close(fd)
        return None

    @property
    def fds(self) -> tuple[int, int, int]:
        """What must be in the store before the first `advance`."""
        return self._read, self._write, self._file

    def advance(self, sock: int, crash: Crash) -> Progress:
        """Move what there is, never a byte of the next frame."""
        while True:
            waiting = struct.unpack("i", fcntl.ioctl(self._read, termios.FIONREAD, bytes(4)))[0]
            while waiting:
                waiting -= os.splice(self._read, self._file, waiting)
                crash("spool.filed")
            left = self._total - os.lseek(self._file, 0, os.SEEK_CUR)
            if not left:
                return Progress.WHOLE
            try:
                moved = os.splice(sock, self._write, left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                return Progress.PART
            except ConnectionError:
                return Progress.EOF
            if not moved:
                return Progress.EOF
            crash("spool.moved")

    def data(self) -> bytes:
        """The frame's data, once it is whole."""
        return os.pread(self._file, self._total - HEADER, HEADER)

    def finish(self) -> None:
        """The frame is safe elsewhere: mark it so for a process that may still find the spool."""
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Give the descriptors up."""
        for fd in self.fds:
            os.close(fd)
