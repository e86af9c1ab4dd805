"""FIFOs of containers and execs, as clients use and leave them (protocol 6.2)."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
from typing import TYPE_CHECKING

import pytest

from sdshim.pb import options_pb2, task_types_pb2
from sdshim.pb.wellknown import pack
from tests.system.jobs import Job, both
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

RUNNING, STOPPED = task_types_pb2.RUNNING, task_types_pb2.STOPPED
PIPE = 64 << 10
"""What a FIFO holds."""


def _held(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


# --- outputs


@both
def test_a_client_that_leaves_is_no_broken_pipe(rig: Rig, where: str) -> None:
    """What is written meanwhile waits in the FIFO for the next reader."""
    script = "echo 1; read x; echo 2; echo err >&2; read x; exit 6"
    job = Job(rig, where, "sh", "-c", script)
    job.fifos("stdin", "stdout", "stderr")
    job.start()
    assert job.bundle.read_line("stdout") == b"1\n"
    stdin = job.open_stdin()
    for stream in ("stdout", "stderr"):
        os.close(job.bundle.ends.pop(stream))
    os.write(stdin, b"go on\n")
    for stream, line in (("stdout", b"2\n"), ("stderr", b"err\n")):
        job.bundle.attach(stream)
        assert job.bundle.read_line(stream) == line
    os.write(stdin, b"go on\n")
    os.close(stdin)
    assert job.wait() == 6
    assert job.bundle.read("stdout") + job.bundle.read("stderr") == b""


@both
def test_without_a_reader_a_pipe_full_is_written_and_no_byte_is_lost(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", f"head -c {PIPE + 5000} /dev/zero; echo over; exit 2")
    job.fifos("stdout")
    job.start()
    end = job.bundle.ends["stdout"]
    eventually(lambda: _held(end) == PIPE, "a full FIFO")
    assert job.call("State").status == RUNNING
    assert job.bundle.read("stdout") == b"\0" * (PIPE + 5000) + b"over\n"
    assert job.wait() == 2


@both
def test_one_full_stream_stops_nobody_else(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", "yes >&2 & echo out; wait")
    job.fifos("stdout", "stderr")
    job.start()
    assert job.bundle.read_line("stdout") == b"out\n"
    eventually(lambda: _held(job.bundle.ends["stderr"]) == PIPE, "a full FIFO")
    other = rig.bundle("other", "echo", "hi")
    rig.call("Create", id="other", bundle=other.path, stdout=other.fifo("stdout"))
    rig.call("Start", id="other")
    assert other.read("stdout") == b"hi\n"
    job.call("Kill", signal=9)
    assert job.wait() == 137


@both
def test_the_end_of_file_comes_with_the_exit_before_any_delete(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", "echo last words")
    job.fifos("stdin", "stdout", "stderr")
    job.start()
    assert job.bundle.read("stdout") == b"last words\n"
    assert job.bundle.read("stderr") == b""
    assert job.wait() == 0


def test_the_end_of_file_waits_for_no_child_of_a_dead_init(rig: Rig) -> None:
    job = Job(rig, "init", "sh", "-c", "trap '' HUP TERM; sleep 1000 & echo bye; exit 3")
    job.fifos("stdout")
    assert job.run() == 3
    assert job.bundle.read("stdout") == b"bye\n"


def test_a_child_that_an_exec_leaves_behind_delays_neither_exit_nor_delete(rig: Rig) -> None:
    """Its stdout is the client's FIFO: the end of file comes with the child's end. (The stock shim
    closes its copy at Delete: docs/loggers.md.)"""
    job = Job(rig, "exec", "sh", "-c", "exec 3<&0; (read x <&3; echo later) & echo now; exit 4")
    job.fifos("stdin", "stdout")
    assert job.run() == 4
    assert job.bundle.read_line("stdout") == b"now\n"
    stdin = job.open_stdin()
    job.call("Delete")
    os.write(stdin, b"go\n")
    os.close(stdin)
    assert job.bundle.read("stdout") == b"later\n"


# --- stdin


@both
def test_stdin_ends_when_both_closeio_was_called_and_the_client_has_left(
    rig: Rig, where: str
) -> None:
    job = Job(rig, where, "sh", "-c", "cat; echo over")
    job.fifos("stdin", "stdout")
    job.start()
    for line in (b"one\n", b"two\n"):  # a client leaves, the next one comes
        stdin = job.open_stdin()
        os.write(stdin, line)
        os.close(stdin)
        assert job.bundle.read_line("stdout") == line
    stdin = job.open_stdin()
    job.close_io()
    os.write(stdin, b"three\n")  # CloseIO alone is no end either
    assert job.bundle.read_line("stdout") == b"three\n"
    os.close(stdin)
    assert job.bundle.read("stdout") == b"over\n"
    assert job.wait() == 0


@both
def test_closeio_before_anybody_has_come_is_the_end_of_stdin(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", "cat; echo over")
    job.fifos("stdin", "stdout")
    job.start()
    job.close_io()
    assert job.bundle.read("stdout") == b"over\n"


@both
def test_a_client_that_never_opens_stdin_holds_up_nothing(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", "echo started; exit 5")
    job.fifos("stdin", "stdout")
    assert job.run() == 5
    assert job.bundle.read("stdout") == b"started\n"


@both
def test_a_process_sees_blocking_streams(rig: Rig, where: str) -> None:
    """O_NONBLOCK belongs to the open file: the daemon's must not be the container's."""
    job = Job(rig, where, "sh", "-c", "cat /proc/self/fdinfo/0 /proc/self/fdinfo/1 >&2")
    job.fifos("stdin", "stdout", "stderr")
    assert job.run() == 0
    lines = job.bundle.read("stderr").splitlines()
    flags = [int(line.split()[1], 8) for line in lines if line.startswith(b"flags:")]
    assert len(flags) == 2
    assert not any(flag & os.O_NONBLOCK for flag in flags)


# --- some of them


def _are_null(fds: Iterable[int]) -> str:
    """A script that fails when one of its descriptors is not a null device."""
    words = " ".join(map(str, fds))
    test = '[ "$(stat -L -c %t:%T /proc/$$/fd/$n)" = 1:3 ]'
    return f"for n in {words}; do {test} || exit 1; done"


@both
@pytest.mark.parametrize("given", ["stdin", "stdout", "stderr", "stdin stderr"])
def test_the_others_are_dev_null(rig: Rig, where: str, given: str) -> None:
    names = ("stdin", "stdout", "stderr")
    others = [n for n in range(3) if names[n] not in given.split()]
    job = Job(rig, where, "sh", "-c", _are_null(others))
    job.fifos(*given.split())
    assert job.run() == 0
    for stream in set(given.split()) - {"stdin"}:
        assert job.bundle.read(stream) == b""


@both
def test_without_streams_all_are_dev_null_and_can_be_written_to(rig: Rig, where: str) -> None:
    options = pack(options_pb2.Options(log="null"))  # else they are the journal's
    job = Job(rig, where, "sh", "-c", f"{_are_null(range(3))}; echo x && cat", options=options)
    assert job.run() == 0


@both
def test_a_stream_may_be_a_file_that_is_there(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", "echo out; echo err >&2")
    path = job.bundle.outside / "file"
    path.write_text("before\n")
    job.streams = dict.fromkeys(("stdout", "stderr"), f"{job.bundle.path}/file")
    assert job.run() == 0
    assert path.read_text() == "before\nout\nerr\n"


def test_a_poll_of_the_clients_end_is_quiet_while_the_process_lives(rig: Rig, host: Host) -> None:
    """No POLLHUP comes between Create and the exit, also not with a new daemon."""
    job = Job(rig, "init", "sh", "-c", "read x")
    job.fifos("stdin", "stdout")
    poll = select.poll()
    poll.register(job.bundle.ends["stdout"])
    job.start()
    host.run(["systemctl", "restart", "sdshim.service"])
    assert not poll.poll(300)
    stdin = job.open_stdin()
    os.write(stdin, b"\n")
    os.close(stdin)
    assert poll.poll(10000)
