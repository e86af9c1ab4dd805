"""The pump: entries of a stream, and the program itself between FIFOs and a journald of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sdshim.launcher import pump
from sdshim.launcher.lines import MAX_LINE, Cutter, RateLimit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = pump.__file__


def entries(data: bytes, *, prefixed: bool = True, end: bool = True) -> list[dict[str, bytes]]:
    """What a stream becomes."""
    cutter, found, place = Cutter(6, prefixed=prefixed), [], 0
    while place < len(data):
        entry, stop = cutter.next(data, place, whole=False)
        if stop == place:
            break
        cutter.done(last=data[stop - 1] == 10)
        found.append(decode(entry))
        place = stop
    if end and place < len(data):
        found.append(decode(cutter.last(data, place)))
    return found


def decode(entry: bytes) -> dict[str, bytes]:
    pairs = (line.partition(b"=") for line in entry.splitlines() if b"=" in line)
    return {name.decode(): value for name, _, value in pairs}


# --- lines


def test_a_line_is_an_entry_and_so_is_an_unfinished_one_at_the_end() -> None:
    data = b"one\n\n\xff=two\r\nthree"
    assert [e["MESSAGE"] for e in entries(data)] == [b"one", b"", b"\xff=two", b"three"]
    assert [e["MESSAGE"] for e in entries(data, end=False)][-1] == b"\xff=two"


def test_a_level_at_the_beginning_of_a_line_is_its_priority_where_prefixes_count() -> None:
    data = b"<3>bad\n<7>\n<8>no\n<3 no\nplain\n"
    found = [(e["PRIORITY"], e["MESSAGE"]) for e in entries(data)]
    rest = [(b"6", b"<8>no"), (b"6", b"<3 no"), (b"6", b"plain")]
    assert found == [(b"3", b"bad"), (b"7", b""), *rest]
    assert entries(data, prefixed=False)[0]["MESSAGE"] == b"<3>bad"


@pytest.mark.parametrize("length", [MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE + 7])
def test_a_long_line_is_several_entries_marked_as_docker_does(length: int) -> None:
    line = b"x" * length
    found = entries(line + b"\nnext\n")
    assert b"".join(e["MESSAGE"] for e in found[:-1]) == line
    parts, rest = found[:-1], found[-1]
    assert "CONTAINER_PARTIAL_ID" not in rest
    if length == MAX_LINE:
        assert len(parts) == 1 and "CONTAINER_PARTIAL_ID" not in parts[0]
        return
    assert len({e["CONTAINER_PARTIAL_ID"] for e in parts}) == 1
    ordinals = [int(e["CONTAINER_PARTIAL_ORDINAL"]) for e in parts]
    assert ordinals == list(range(1, len(parts) + 1))
    assert [e["CONTAINER_PARTIAL_LAST"] for e in parts] == [b"false"] * (len(parts) - 1) + [b"true"]
    marked = [e.get("CONTAINER_PARTIAL_MESSAGE") for e in parts]
    assert marked == [b"true"] * (len(parts) - 1) + [None]


def test_a_long_line_is_not_cut_in_the_midst_of_a_character() -> None:
    line = b"x" + "\N{EURO SIGN}".encode() * MAX_LINE
    found = entries(line + b"\n")
    assert b"".join(e["MESSAGE"] for e in found) == line
    for entry in found:
        entry["MESSAGE"].decode()


def test_a_rate_limit_lets_a_burst_through_in_each_interval_and_counts_the_rest() -> None:
    limit = RateLimit(10, 2)
    sent = []
    for now in (0.0, 1.0, 2.0, 3.0, 10.0):
        told = limit.report(now)
        allowed = limit.allows(now)
        limit.count(sent=allowed)
        sent.append((allowed, told))
    assert sent == [(True, 0), (True, 0), (False, 0), (False, 0), (True, 2)]
    free = RateLimit(0, 2)
    assert all(free.allows(0) for _ in range(9))


# --- the program


class Desk:
    """The daemon's and journald's side of one pump."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.journal.bind(str(folder / "journal"))
        self.journal.settimeout(10)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "pump.sock"))
        self.listener.listen()
        self.fds: list[int] = []
        self.start()

    def start(self) -> None:
        """Start a pump, and hear of it."""
        argv = [sys.executable, "-I", "-S", PROGRAM, str(self.folder / "pump.sock")]
        self.process = subprocess.Popen(argv, env={"SDSHIM_IDLE": "0.2"})
        self.control, _ = self.listener.accept()
        self.control.settimeout(10)

    def fifo(self, name: str) -> tuple[int, int]:
        """(read end, write end) of a FIFO."""
        os.mkfifo(self.folder / name)
        read = os.open(self.folder / name, os.O_RDONLY | os.O_NONBLOCK)
        write = os.open(self.folder / name, os.O_WRONLY)
        self.fds += [read, write]
        return read, write

    def add(self, serial: int, *fds: int, limit: str = "0 0", unit: str = "u") -> None:
        head = f"add {serial} 6 1 {limit} {unit} {self.folder}/journal\n"
        socket.send_fds(self.control, [f"{head}FIELD={serial}\n".encode()], list(fds))

    def entry(self) -> dict[str, bytes]:
        return decode(self.journal.recv(1 << 20))

    def messages(self, count: int) -> list[bytes]:
        return [self.entry()["MESSAGE"] for _ in range(count)]

    def shut(self, fd: int) -> None:
        self.fds.remove(fd)
        os.close(fd)

    def close(self) -> None:
        self.control.close()
        assert self.process.wait(10) in (0, -signal.SIGKILL)
        for fd in self.fds:
            os.close(fd)
        self.journal.close()
        self.listener.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_lines_go_to_the_journal_with_the_streams_fields_until_its_end(desk: Desk) -> None:
    read, write = desk.fifo("out")
    os.write(write, b"<4>early\n")
    desk.add(7, read)
    assert desk.entry() == {"FIELD": b"7", "PRIORITY": b"4", "MESSAGE": b"early"}
    os.write(write, b"a\nb")
    assert desk.messages(1) == [b"a"]
    desk.shut(write)
    assert desk.messages(1) == [b"b"]
    assert desk.control.recv(64) == b"end 7"


def test_what_is_no_line_yet_stays_in_the_fifo(desk: Desk) -> None:
    read, write = desk.fifo("out")
    desk.add(1, read)
    os.write(write, b"a\nprompt> ")
    assert desk.messages(1) == [b"a"]
    desk.control.close()
    assert desk.process.wait(10) == 0
    assert os.read(read, 99) == b"prompt> "


def test_a_pump_that_is_killed_may_repeat_lines_and_loses_none(desk: Desk) -> None:
    read, write = desk.fifo("out")
    desk.add(1, read)
    heard: list[bytes] = []
    count = 0
    for _ in range(5):
        for _ in range(200):
            os.write(write, b"%d\n" % count)
            count += 1
        heard += desk.messages(50)
        desk.process.kill()
        desk.process.wait()
        desk.control.close()
        desk.start()
        desk.add(1, read)
    while heard[-1] != b"%d" % (count - 1):
        heard += desk.messages(1)
    first = list(dict.fromkeys(heard))
    assert first == [b"%d" % number for number in range(count)]


def test_a_full_fifo_without_a_line_is_taken_as_a_part(desk: Desk) -> None:
    """A terminal's output comes by splice, each piece in a page of its own: sixteen fill it."""
    read, write = desk.fifo("out")
    desk.add(1, read)
    inside, outside = os.pipe()
    for _ in range(40):
        os.write(outside, b".")
        os.splice(inside, write, 1)
    os.close(inside)
    os.close(outside)
    desk.shut(write)
    found = b""
    while len(found) < 40:
        found += desk.entry()["MESSAGE"]
    assert found == b"." * 40


def test_finish_ends_a_stream_that_others_still_hold_open(desk: Desk) -> None:
    read, write = desk.fifo("out")
    desk.add(1, read)
    os.write(write, b"tail")
    desk.control.send(b"finish 1")
    assert desk.messages(1) == [b"tail"]
    assert desk.control.recv(64) == b"end 1"


def test_both_gives_the_client_every_byte_at_once_and_the_journal_whole_lines(desk: Desk) -> None:
    read, write = desk.fifo("out")
    theirs, sink = desk.fifo("client")
    desk.add(1, read, sink)
    os.write(write, b"prompt> ")
    os.set_blocking(theirs, True)
    assert os.read(theirs, 99) == b"prompt> "
    os.write(write, b"yes\n")
    assert os.read(theirs, 99) == b"yes\n"
    assert desk.messages(1) == [b"prompt> yes"]


def test_a_client_that_does_not_read_loses_whole_lines_and_the_journal_says_so(desk: Desk) -> None:
    read, write = desk.fifo("out")
    theirs, sink = desk.fifo("client")
    os.set_blocking(sink, False)
    desk.add(1, read, sink)
    lines = [b"%06d %s" % (number, b"x" * 90) for number in range(2000)]
    heard = []
    for place in range(0, len(lines), 50):
        os.write(write, b"".join(line + b"\n" for line in lines[place : place + 50]))
        heard += desk.messages(50)
    kept = b""
    while part := _read(theirs):
        kept += part
    desk.shut(write)
    end = [desk.entry()]
    warning = [text for text in heard if text.startswith(b"sdshim: ")]
    assert [text for text in heard if text not in warning] == lines[: 2000 - len(warning)]
    while b"were not given to the client" not in end[-1]["MESSAGE"]:
        end.append(desk.entry())
    given = kept.splitlines()
    assert given == [line for line in lines if line in set(given)] and kept.endswith(b"\n")
    assert int(end[-1]["SDSHIM_DROPPED_LINES"]) == 2000 - len(given) > 0
    assert any(b"does not read" in text for text in warning)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def test_the_rate_limit_is_the_units_and_is_reported(desk: Desk) -> None:
    (out, to_out), (err, to_err) = desk.fifo("out"), desk.fifo("err")
    desk.add(1, out, limit="3600000000 3")
    desk.add(2, err, limit="3600000000 3")
    os.write(to_out, b"1\n2\n")
    assert desk.messages(2) == [b"1", b"2"]
    os.write(to_err, b"3\n4\n5\n")
    assert desk.messages(1) == [b"3"]
    desk.shut(to_out)
    desk.shut(to_err)
    told = desk.entry()
    assert told["MESSAGE"] == b"Suppressed 2 messages from u"
    assert told["N_DROPPED"] == b"2"


def test_a_journald_that_takes_nothing_holds_the_streams_and_loses_nothing(desk: Desk) -> None:
    read, write = desk.fifo("out")
    desk.add(1, read)
    os.set_blocking(write, False)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write, b"%-99d\n" % written)
            written += 1
    while True:  # what had room meanwhile
        try:
            os.write(write, b"%-99d\n" % written)
            written += 1
        except BlockingIOError:
            break
    desk.shut(write)
    found = [int(text) for text in desk.messages(written)]
    assert found == list(range(written))


def test_it_tells_when_it_is_idle_and_not_while_half_a_line_waits(desk: Desk) -> None:
    read, write = desk.fifo("out")
    desk.add(1, read)
    assert desk.control.recv(64) == b"idle 1"
    os.write(write, b"half")
    desk.control.settimeout(1)
    with pytest.raises(TimeoutError):
        desk.control.recv(64)
    os.write(write, b"\n")
    assert desk.control.recv(64) == b"idle 1"


def test_a_journald_that_comes_late_is_found(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "journal").rename(tmp_path / "hidden")
    read, write = desk.fifo("out")
    desk.add(1, read)
    os.write(write, b"kept\n")
    desk.control.settimeout(0.3)
    with pytest.raises(TimeoutError):
        desk.control.recv(64)
    (tmp_path / "hidden").rename(tmp_path / "journal")
    assert desk.messages(1) == [b"kept"]
    desk.close()


def test_what_is_written_just_before_the_last_writer_goes_is_not_missed(tmp_path: Path) -> None:
    """The process says more and ends between the pump's look and its question for writers."""
    os.mkfifo(tmp_path / "out")
    read = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    writers = [os.open(tmp_path / "out", os.O_WRONLY)]
    os.write(writers[0], b"name? ")

    class Late(pump.Pump):
        def _look(self, stream: pump.Stream) -> tuple[bytes, bool]:
            seen = super()._look(stream)
            if seen[0] and writers:
                os.write(writers[0], b"hello\n")
                os.close(writers.pop())
            return seen

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(10)
        daemon, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not (child := os.fork()):  # the program ends with what it holds
            daemon.close()
            Late(control, 60).run()
            os._exit(0)
        control.close()
        os.close(writers.pop())
        with daemon:
            daemon.settimeout(10)
            add = f"add 1 6 1 0 0 u {tmp_path}/journal\nFIELD=1\n"
            socket.send_fds(daemon, [add.encode()], [read])
            os.close(read)
            said = decode(journal.recv(1 << 16))["MESSAGE"]
            assert daemon.recv(64) == b"end 1"
        assert os.waitpid(child, 0)[1] == 0
    assert said == b"name? hello"
