"""A program on the host with a terminal of the tests' own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.host import Host


class Screen:
    """A program on the host with a terminal of ours, 100 columns by 30 lines."""

    def __init__(self, host: Host, argv: list[str]) -> None:
        self.host = host
        self._master, slave = os.openpty()
        self.resize(100, 30, tell=False)
        modes = termios.tcgetattr(slave)
        modes[1] &= ~termios.ONLCR  # ctr leaves this terminal's output processing on
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        self.seen = bytearray()
        self._at = 0
        self.process = host.popen(
            argv, interactive=True, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.leave()
        os.close(self._master)

    def resize(self, columns: int, lines: int, *, tell: bool = True) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        if tell:
            self.host.send_signal(self.process, signal.SIGWINCH)

    def type(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._master, data) :]

    def read(self, seconds: float) -> bool:
        """Take what comes; False at the end of it."""
        if select.select([self._master], [], [], max(seconds, 0))[0]:
            with contextlib.suppress(OSError):
                self.seen += (part := os.read(self._master, 65536))
                return bool(part)
            return False
        return True

    def until(self, text: bytes, timeout: float = 15) -> bytearray:
        """Read up to this text, past what was awaited before; what came."""
        deadline = time.monotonic() + timeout
        while (found := self.seen.find(text, self._at)) < 0:
            going = self.read(deadline - time.monotonic())
            assert going and time.monotonic() < deadline, f"no {text!r}: {self.seen[-2000:]!r}"
        begun, self._at = self._at, found + len(text)
        return self.seen[begun : self._at]

    def shows(self, text: bytes, seconds: float) -> bool:
        """Whether this text comes, past what was awaited before, in that time."""
        deadline = time.monotonic() + seconds
        while self.seen.find(text, self._at) < 0:
            if time.monotonic() >= deadline or not self.read(deadline - time.monotonic()):
                return False
        return True

    def end(self, timeout: float = 20) -> int:
        """Read to the end; the program's exit status."""
        deadline = time.monotonic() + timeout
        while self.read(0.2):
            assert time.monotonic() < deadline, f"no end: {self.seen[-2000:]!r}"
            if self.process.poll() is not None and not select.select([self._master], [], [], 0)[0]:
                break
        return int(self.process.wait(5))

    def leave(self) -> None:
        """The client is killed."""
        self.host.send_signal(self.process, 9)
        self.process.kill()
        self.process.wait()
