"""The client's side of a process's streams: FIFOs in a folder of the host."""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class Streams:
    """A folder for FIFOs; `path` inside the host, `outside` the same from here."""

    path: str
    outside: Path
    ends: dict[str, int] = field(init=False, default_factory=dict)

    def fifo(self, stream: str) -> str:
        """Make a FIFO, take the client's end of an output; its path for Create."""
        os.mkfifo(self.outside / stream, 0o700)
        if stream != "stdin":
            self.attach(stream)
        return f"{self.path}/{stream}"

    def attach(self, stream: str) -> None:
        """Take the client's end of an output (again)."""
        mode = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        self.ends[stream] = os.open(self.outside / stream, mode)

    def read(self, stream: str, timeout: float = 10) -> bytes:
        """What the container wrote, up to the end of file."""
        data = b""
        deadline = time.monotonic() + timeout
        while True:
            ready, _, _ = select.select([self.ends[stream]], [], [], deadline - time.monotonic())
            assert ready, f"no end of file on {stream} within {timeout} s; came: {data!r}"
            part = os.read(self.ends[stream], 65536)
            if not part:
                return data
            data += part

    def read_line(self, stream: str, timeout: float = 10) -> bytes:
        """What the container writes next, up to the end of a line."""
        data = b""
        while not data.endswith(b"\n"):
            assert select.select([self.ends[stream]], [], [], timeout)[0], f"came: {data!r}"
            part = os.read(self.ends[stream], 1)
            assert part, f"{stream} has ended; came: {data!r}"
            data += part
        return data

    def close(self) -> None:
        for fd in self.ends.values():
            os.close(fd)
        self.ends.clear()
