"""Terminals: real ptys and FIFOs, bytes moved by splice, standstills, crashes."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import hashlib
import os
import select
import socket
import struct
import termios
import threading
import time
import tty
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import InvalidArgument, UnknownError
from sdshim.core.model import Stdio
from sdshim.stdio import console
from sdshim.stdio.fifo import STDIN, Held

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

MEGABYTES = 4 << 20


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main, debug=True)


@dataclass
class Rig:
    """A pty, the FIFOs of a client, and both of the client's ends."""

    folder: Path
    name: str = "a"
    held: Held = field(default_factory=Held)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.stdio = Stdio(
            stdin=str(self.folder / f"{self.name}-in"),
            stdout=str(self.folder / f"{self.name}-out"),
            stderr=str(self.folder / f"{self.name}-never-made"),
            terminal=True,
        )
        os.mkfifo(self.stdio.stdin)
        os.mkfifo(self.stdio.stdout)
        console.check(self.stdio)
        console.hold(self.held, self.stdio, self.folder / f"{self.name}.sock")
        self.out = os.open(self.stdio.stdout, os.O_RDONLY)
        self.typed = os.open(self.stdio.stdin, os.O_WRONLY)

    def pump(self) -> console.Pump:
        ends = self.held.ends
        return console.Pump(
            self.master,
            ends.get(console.SOURCE, -1),
            ends[console.SINK],
            closed=lambda: self.log.append("closed"),
            drained=self.drained,
        )

    def drained(self) -> None:
        self.log.append("drained")
        self.held.close_all()

    def close(self) -> None:
        self.held.close_all()
        for name in ("master", "slave", "out", "typed"):
            with contextlib.suppress(OSError):
                os.close(getattr(self, name))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def pattern(size: int) -> bytes:
    return b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(size // 32))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:1000]) :]


def read_exactly(fd: int, size: int, nap: Callable[[int], float] = lambda got: 0) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = os.read(fd, min(size - len(got), 3000))
        if not part:
            break
        got += part
        if pause := nap(len(got)):
            time.sleep(pause)
    return bytes(got)


async def eventually(true: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def fill(slave: int) -> int:
    """Write until FIFO and pty are full; how many bytes went in."""
    os.set_blocking(slave, False)
    written = refused = 0
    while refused < 100:
        try:
            written += os.write(slave, b"z" * 500)
            refused = 0
        except BlockingIOError:
            refused += 1
            await asyncio.sleep(0.001)
    return written


def test_megabytes_go_out_and_in_without_loss(rig: Rig) -> None:
    data = pattern(MEGABYTES)

    async def main() -> None:
        pump = rig.pump()
        writer = asyncio.to_thread(write_all, rig.slave, data)
        reader = asyncio.to_thread(read_exactly, rig.out, len(data))
        _, got = await asyncio.gather(writer, reader)
        assert got == data
        writer = asyncio.to_thread(write_all, rig.typed, data)
        reader = asyncio.to_thread(read_exactly, rig.slave, len(data))
        _, got = await asyncio.gather(writer, reader)
        assert got == data
        pump.close()

    run(main())


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_reader_that_stops_and_goes_on_gets_everything(rig: Rig, way: str) -> None:
    data = pattern(1 << 20)
    writing, reading = (rig.slave, rig.out) if way == "out" else (rig.typed, rig.slave)

    def nap(got: int) -> float:
        return 0.05 if got % 100_000 < 3000 else 0.0

    async def main() -> None:
        pump = rig.pump()
        writer = asyncio.to_thread(write_all, writing, data)
        reader = asyncio.to_thread(read_exactly, reading, len(data), nap)
        _, got = await asyncio.gather(writer, reader)
        assert got == data
        pump.close()

    run(main())


def test_a_reader_that_stops_delays_nobody_and_costs_nothing(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path, "b")
    data = pattern(1 << 20)

    async def main() -> None:
        pumps = [rig.pump(), other.pump()]
        await fill(rig.slave)
        writer = asyncio.to_thread(write_all, other.slave, data)
        reader = asyncio.to_thread(read_exactly, other.out, len(data))
        _, got = await asyncio.gather(writer, reader)
        assert got == data
        begun = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - begun < 0.1, "it spins on a full FIFO"
        for pump in pumps:
            pump.close()

    run(main())
    other.close()


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_next_daemon_pumps_on_and_no_byte_is_lost_or_doubled(rig: Rig, way: str) -> None:
    """Each life gets copies of the kept descriptors, and is dropped at an arbitrary moment."""
    data = pattern(MEGABYTES)
    writing, reading = (rig.slave, rig.out) if way == "out" else (rig.typed, rig.slave)
    got: list[bytes] = []

    async def life(seconds: float) -> None:
        pump = rig.pump()
        done = asyncio.get_running_loop().time() + seconds
        while reader.is_alive() and asyncio.get_running_loop().time() < done:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        pump.close()

    writer = threading.Thread(target=write_all, args=(writing, data))
    reader = threading.Thread(target=lambda: got.append(read_exactly(reading, len(data))))
    writer.start()
    reader.start()
    lives = 0
    while reader.is_alive() and lives < 5000:
        asyncio.run(life(0.002 + lives % 7 / 1000), debug=True)
        lives += 1
    writer.join()
    reader.join()
    assert got == [data]
    assert lives > 3


def test_what_the_pty_holds_at_the_end_arrives_though_others_keep_the_slave(rig: Rig) -> None:
    async def main() -> None:
        pump = rig.pump()
        write_all(rig.slave, b"last words")
        pump.finish()  # the slave stays open
        await eventually(lambda: "drained" in rig.log)
        assert os.read(rig.out, 100) == b"last words"
        assert os.read(rig.out, 100) == b"", "the client sees the end of it"

    run(main())


def test_a_flood_from_a_child_left_behind_does_not_keep_the_end_from_coming(rig: Rig) -> None:
    async def main() -> None:
        pump = rig.pump()
        over = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    os.write(rig.slave, b"y\n" * 500)

        flooding = asyncio.create_task(asyncio.to_thread(flood))
        reading = asyncio.create_task(asyncio.to_thread(read_exactly, rig.out, 1 << 40))
        await asyncio.sleep(0.05)
        pump.finish()
        await eventually(lambda: "drained" in rig.log)
        over.set()
        os.close(rig.master)
        await asyncio.gather(flooding, reading)

    run(main())


def test_the_end_waits_for_a_slow_reader(rig: Rig) -> None:
    async def main() -> None:
        pump = rig.pump()
        written = await fill(rig.slave)
        pump.finish()
        await asyncio.sleep(0.1)
        assert rig.log == []
        got = await asyncio.to_thread(read_exactly, rig.out, 1 << 30)
        assert rig.log == ["drained"]
        assert got == b"z" * written

    run(main())


def test_a_client_that_leaves_is_not_the_end_of_stdin_and_close_io_is(rig: Rig) -> None:
    modes = termios.tcgetattr(rig.slave)
    modes[3] |= termios.ICANON
    termios.tcsetattr(rig.slave, termios.TCSANOW, modes)

    async def main() -> None:
        pump = rig.pump()
        os.close(rig.typed)
        await asyncio.sleep(0.05)
        assert rig.log == []
        rig.typed = os.open(rig.stdio.stdin, os.O_WRONLY)
        os.write(rig.typed, b"again\n")
        assert await asyncio.to_thread(os.read, rig.slave, 100) == b"again\n"
        rig.held.close(STDIN)  # CloseIO
        os.write(rig.typed, b"last\nhalf")
        await asyncio.sleep(0.05)
        assert rig.log == []
        os.close(rig.typed)
        await eventually(lambda: rig.log == ["closed"])
        assert await asyncio.to_thread(os.read, rig.slave, 100) == b"last\n"
        assert await asyncio.to_thread(os.read, rig.slave, 100) == b"half"
        assert await asyncio.to_thread(os.read, rig.slave, 100) == b""
        pump.close()

    run(main())


def test_a_client_that_leaves_and_comes_back_reads_on(rig: Rig) -> None:
    async def main() -> None:
        pump = rig.pump()
        os.close(rig.out)
        os.write(rig.slave, b"unheard")
        await asyncio.sleep(0.05)
        rig.out = os.open(rig.stdio.stdout, os.O_RDONLY)
        assert await asyncio.to_thread(os.read, rig.out, 100) == b"unheard"
        pump.close()

    run(main())


def test_a_pty_whose_slave_is_closed_for_a_while_neither_ends_nor_spins(rig: Rig) -> None:
    async def main() -> None:
        pump = rig.pump()
        name = os.ttyname(rig.slave)
        os.write(rig.slave, b"one")
        os.close(rig.slave)
        assert await asyncio.to_thread(os.read, rig.out, 100) == b"one"
        begun = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - begun < 0.1
        rig.slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
        os.write(rig.slave, b"two")
        assert await asyncio.to_thread(os.read, rig.out, 100) == b"two"
        pump.close()

    run(main())


def test_without_stdout_output_is_thrown_away(rig: Rig) -> None:
    async def main() -> None:
        pump = console.Pump(rig.master, -1, -1, closed=lambda: None, drained=rig.drained)
        await asyncio.to_thread(write_all, rig.slave, b"x" * (1 << 20))
        pump.finish()
        await eventually(lambda: rig.log == ["drained"])

    run(main())


def send(path: Path, *fds: int) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([b"/dev/pts/0"], rights)
    return peer


def test_the_master_is_received_and_resized(rig: Rig, tmp_path: Path) -> None:
    listener = rig.held.ends[console.LISTENER]
    with send(tmp_path / "a.sock", rig.master):
        master = console.receive(listener)
    assert not os.get_inheritable(master)
    assert not os.get_blocking(master)
    console.resize(master, 80, 24 + 65536)
    rows, columns, _, _ = struct.unpack(
        "HHHH", fcntl.ioctl(rig.slave, termios.TIOCGWINSZ, b"\0" * 8)
    )
    assert (rows, columns) == (24, 80)
    os.close(master)


def test_anything_but_one_descriptor_is_refused(rig: Rig, tmp_path: Path) -> None:
    listener = rig.held.ends[console.LISTENER]
    with pytest.raises(UnknownError, match="sent no terminal"):
        console.receive(listener)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for fds in ((), (rig.master, rig.slave)):
        with send(tmp_path / "a.sock", *fds), pytest.raises(UnknownError, match="not one"):
            console.receive(listener)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_held_already_is_not_opened_again(rig: Rig, tmp_path: Path) -> None:
    before = dict(rig.held.ends)
    assert set(before) == {console.LISTENER, console.SOURCE, console.SINK, STDIN}
    rig.held.close(console.SINK)
    console.hold(rig.held, rig.stdio, tmp_path / "a.sock")
    assert {k: v for k, v in rig.held.ends.items() if k != console.SINK} == {
        k: v for k, v in before.items() if k != console.SINK
    }
    assert not select.select([rig.held.ends[console.SOURCE]], [], [], 0)[0]


@pytest.mark.parametrize(
    "stdio",
    [
        Stdio(stdout="/dev/null", terminal=True),
        Stdio(stdout="binary:///bin/logger", terminal=True),
        Stdio(stdin="relative", terminal=True),
        Stdio(stdin="/does/not/exist", terminal=True),
    ],
)
def test_paths_that_cannot_serve_a_terminal_are_refused(stdio: Stdio) -> None:
    with pytest.raises(InvalidArgument):
        console.check(stdio)
