"""Streams that must go on while the daemon is killed: a flood through a FIFO, a terminal session.

Both are byte-exact: what is read is compared with what was written, from first byte to last.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2

from tests.bench.exits import PROCESS_TYPE
from tests.bench.lives import OURS
from tests.fault.field import FOLDER
from tests.fault.life import ANSWER
from tests.tools.containerd import TASKS
from tests.tools.streams import Streams

if TYPE_CHECKING:
    from random import Random

    from tests.fault.field import Field
    from tests.fault.strikes import Scenario

NUMBERS = 1_000_000
PIECE = b"".join(b"%d\n" % number for number in range(1, NUMBERS + 1))
"""What the flood writes again and again: no two parts of it are the same."""
FLOOD = f"seq 1 {NUMBERS} >/piece; until [ -e /stop ]; do cat /piece; done; exit 5"
SESSION = "stty raw -echo; echo go; exec cat"
TYPE_EVERY = 0.005
RATE = 50e6
"""Bytes per second that are read at most, and so written."""


class Flow:
    """One container with streams, and a thread that reads them."""

    def __init__(self, field: Field, command: str, *, terminal: bool) -> None:
        self._field = field
        self._call = field.client.call
        self.name, mounts = field.bench.make(OURS, "sh", "-c", command, terminal=terminal)
        path = f"{FOLDER}/{self.name}"
        self.streams = Streams(path, field.host.path(path))
        self.streams.outside.mkdir()
        fields: dict[str, Any] = {"stdout": self.streams.fifo("stdout"), "terminal": terminal}
        if terminal:
            fields["stdin"] = self.streams.fifo("stdin")
        self._call(TASKS, "Create", container_id=self.name, rootfs=mounts, **fields)
        self._wait = field.client.begin(TASKS, "Wait", timeout=600, container_id=self.name)
        self._call(TASKS, "Start", container_id=self.name)
        self.read = 0
        self._reader = threading.Thread(target=self._read, name=self.name)

    def begin(self) -> None:
        """Read from now on."""
        self._reader.start()

    def _read(self) -> None:
        fd, begun = self.streams.ends["stdout"], time.monotonic()
        while True:
            time.sleep(max(0.0, begun + self.read / RATE - time.monotonic()))
            if not select.select([fd], [], [], ANSWER)[0]:
                return self._fault("hung", f"nothing comes after {self.read} bytes")
            part = os.read(fd, 1 << 20)
            if not part:
                return None
            if not self.expected(part):
                return self._fault("wrong", f"bytes after {self.read}: {part[:60]!r}")
            self.read += len(part)

    def expected(self, part: bytes) -> bool:
        """Whether this comes after the `read` bytes so far."""
        raise NotImplementedError

    def _fault(self, kind: str, text: str) -> None:
        self._field.tally.fault(kind, f"{type(self).__name__}: {text}")

    def ended(self, status: int) -> None:
        """Its end is due: everything is read, its exit is the planned one."""
        exited = self._wait.result(ANSWER)
        if exited.exit_status != status:
            self._fault("wrong", f"exit {exited.exit_status}, not {status}")
        self._reader.join()
        self._call(TASKS, "Delete", timeout=ANSWER, container_id=self.name)
        self._field.client.remove_container(self.name)
        self.streams.close()
        shutil.rmtree(self.streams.outside)


class Flood(Flow):
    """A container that writes as fast as it is read."""

    def __init__(self, field: Field) -> None:
        super().__init__(field, FLOOD, terminal=False)

    def expected(self, part: bytes) -> bool:
        at = self.read % len(PIECE)
        while part:
            piece = PIECE[at : at + len(part)]
            if part[: len(piece)] != piece:
                return False
            part, at = part[len(piece) :], 0
        return True

    def end(self) -> None:
        """Let it come to an end of the piece, by an exec."""
        one: dict[str, Any] = {"container_id": self.name, "exec_id": "stop"}
        process = {**self._field.bench.spec["process"], "args": ["touch", "/stop"]}
        spec = any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode())
        self._call(TASKS, "Exec", spec=spec, **one)
        self._call(TASKS, "Start", **one)
        self._call(TASKS, "Wait", timeout=ANSWER, **one)
        self._call(TASKS, "DeleteProcess", **one)
        self.ended(5)
        if self.read % len(PIECE):
            self._fault("lost", f"{len(PIECE) - self.read % len(PIECE)} bytes at the end")


class Session(Flow):
    """Somebody types, and reads what `cat` on a terminal says."""

    def __init__(self, field: Field) -> None:
        super().__init__(field, SESSION, terminal=True)
        self._typed = bytearray(b"go\n")
        self._stop = threading.Event()
        self._typist = threading.Thread(target=self._type, name=f"{self.name}-typist")

    def begin(self) -> None:
        super().begin()
        deadline = time.monotonic() + ANSWER
        while self.read < 3 and time.monotonic() < deadline:  # raw from here on
            time.sleep(0.01)
        self._typist.start()

    def _type(self) -> None:
        number = 0
        fd = os.open(self.streams.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
        try:
            while not self._stop.wait(TYPE_EVERY):
                number += 1
                line = b"line %d\n" % number
                self._typed += line
                os.write(fd, line)
        finally:
            os.close(fd)

    def expected(self, part: bytes) -> bool:
        return bytes(self._typed[self.read : self.read + len(part)]) == part

    def end(self) -> None:
        """All that was typed comes back, then it is killed."""
        self._stop.set()
        self._typist.join()
        deadline = time.monotonic() + ANSWER
        while self.read < len(self._typed) and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.read < len(self._typed):
            self._fault("lost", f"{len(self._typed) - self.read} of {len(self._typed)} bytes")
        self._call(TASKS, "Kill", timeout=ANSWER, container_id=self.name, signal=9)
        self.ended(137)


def run(field: Field, scenario: Scenario, count: int, dice: Random) -> None:
    """Both flows, and as many strikes meanwhile."""
    flood, session = Flood(field), Session(field)
    flood.begin()
    session.begin()
    begun = time.monotonic()
    for _ in range(count):
        scenario.strike(field, dice.uniform(0, scenario.pause))
        field.tally.count("kills")
    rate = flood.read / (time.monotonic() - begun) / 1e6
    flood.end()
    session.end()
    print(
        f"  flood: {flood.read} bytes, {rate:.0f} MB/s; session: {session.read} bytes", flush=True
    )
