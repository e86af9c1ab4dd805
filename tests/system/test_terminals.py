"""Terminals of containers and execs: ctr on a real pty, and what only a client by hand can do."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import runc_pb2, task_types_pb2
from sdshim.pb.wellknown import PROCESS_URL, pack
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.client import events
from tests.system.jobs import Job, both
from tests.system.screen import Screen
from tests.system.taskclient import spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.client import Ctr
    from tests.system.taskclient import Bundle, Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

UNKNOWN = 2
SEQUENCE = b"".join(b"%d\r\n" % n for n in range(1, 500001))


@pytest.fixture
def box(ctr: Ctr) -> Iterator[Ctr]:
    """A running container `box` without a terminal."""
    ctr.start("box", "sleep", "1000")
    yield ctr
    ctr.remove("tty", "box")


def _run(ctr: Ctr, task: str, *command: str, options: tuple[str, ...] = ("--rm",)) -> Screen:
    return Screen(ctr.host, ctr.run_argv(task, *command, options=["-t", *options]))


def _exec(ctr: Ctr, exec_id: str, *command: str) -> Screen:
    argv = ctr.argv("task", "exec", "-t", "--exec-id", exec_id, "box", *command)
    return Screen(ctr.host, argv)


def _make(ctr: Ctr, where: str, *command: str) -> Screen:
    return _run(ctr, "tty", *command) if where == "init" else _exec(ctr, "tty", *command)


@both
def test_a_shell_on_a_terminal(box: Ctr, where: str) -> None:
    with _make(box, where, "sh") as screen:
        screen.type(b"tty; echo $((6*7))-; exit 9\n")
        assert b"/dev/" in screen.until(b"42-")
        assert screen.end() == 9


@both
def test_the_size_and_a_resize(box: Ctr, where: str) -> None:
    loop = 's=$(stty size); echo "$s"; [ "$s" = "22 77" ] && exit 4; sleep 0.05'
    with _make(box, where, "sh", "-c", f"while :; do {loop}; done") as screen:
        screen.until(b"30 100")
        for _ in range(20):  # ctr hears of it from a moment after Start on
            screen.resize(77, 22)
            if screen.shows(b"22 77", 1):
                break
        assert screen.end() == 4


def test_megabytes_through_a_terminal(box: Ctr) -> None:
    # Not with `ctr run`: it leaves unread what a slow terminal has not taken at the exit (stock
    # loses the same); test_megabytes_from_init has a reader that does not.
    with _exec(box, "tty", "seq", "1", "500000") as screen:
        assert screen.end(60) == 0
        assert screen.seen == SEQUENCE


@both
def test_a_background_child_does_not_hang_the_exit(box: Ctr, where: str) -> None:
    begun = time.monotonic()
    with _make(box, where, "sh", "-c", "trap '' HUP; sleep 100 & echo bye; exit 3") as screen:
        assert screen.end() == 3
        assert b"bye" in screen.seen
    assert time.monotonic() - begun < 10


@both
def test_interrupt_reaches_the_process(box: Ctr, where: str) -> None:
    with _make(
        box, where, "sh", "-c", "trap 'exit 5' INT; echo on; while :; do sleep 0.1; done"
    ) as s:
        s.until(b"on")
        s.type(b"\x03")
        assert s.end() == 5


@both
@pytest.mark.parametrize("code", range(5))
def test_a_short_life_loses_neither_exit_nor_output(rig: Rig, where: str, code: int) -> None:
    """(Not through ctr: one that has had no time to open its FIFO before the exit gives it up.)"""
    job = Job(rig, where, "sh", "-c", f"echo out-{code}; exit {code}", terminal=True)
    job.fifos("stdin", "stdout")
    assert job.run() == code
    assert job.bundle.read("stdout") == b"out-%d\r\n" % code
    job.call("Delete")


def test_a_program_that_does_not_exist_fails_in_the_runtimes_words(box: Ctr) -> None:
    with _run(box, "nope", "/does/not/exist") as screen:
        assert screen.end() != 0
        assert b"/does/not/exist" in screen.seen
    with _exec(box, "nope", "/does/not/exist") as screen:
        assert screen.end() != 0
        assert b"/does/not/exist" in screen.seen
    with _exec(box, "nope", "true") as screen:
        assert screen.end() == 0


def test_detach_and_attach(ctr: Ctr) -> None:
    with _run(ctr, "tty", "sh", "-c", 'while read x; do echo "got $x"; done', options=()) as one:
        one.type(b"first\n")
        one.until(b"got first")
        one.leave()
    assert ctr.status("tty") == "RUNNING"
    for number in range(3):
        with Screen(ctr.host, ctr.argv("task", "attach", "tty")) as more:
            more.type(b"again-%d\n" % number)
            more.until(b"got again-%d" % number)
            more.leave()
    assert ctr.status("tty") == "RUNNING"
    ctr.remove("tty")


@both
def test_killing_the_daemon_in_a_session_loses_nothing(box: Ctr, where: str) -> None:
    """Typed bytes come back from a `cat` on a raw terminal: in order, once, all of them."""
    random_, kills = random.Random(3), 0
    with _make(box, where, "sh", "-c", "stty raw -echo; echo go; exec cat") as screen:
        screen.until(b"go\n")
        typed, until = b"", time.monotonic() + 4
        next_kill = 0.0
        while time.monotonic() < until:
            piece = b"%07d." % len(typed) * random_.randint(1, 60)
            typed += piece
            screen.type(piece)
            screen.read(random_.uniform(0, 0.01))
            if time.monotonic() > next_kill:
                kills += kill_daemon(box.host)
                next_kill = time.monotonic() + random_.uniform(0.2, 0.6)
        deadline = time.monotonic() + 15
        came = bytearray()
        while len(came) < len(typed) and time.monotonic() < deadline:
            screen.read(0.2)
            came = screen.seen[screen.seen.index(b"go\n") + 3 :]
        print(f"terminal: kills={kills} bytes={len(typed)}")
        assert came == typed
        assert kills >= 4
        target = ["--exec-id", "tty", "box"] if where == "exec" else ["tty"]
        box.call("task", "kill", "-s", "9", *target)
        assert screen.end() == 137


def test_a_reader_that_stops_delays_nobody(box: Ctr) -> None:
    with _exec(box, "flood", "yes") as flood:
        flood.until(b"y\r\n")
        flood.host.send_signal(flood.process, signal.SIGSTOP)
        time.sleep(0.3)
        begun = time.monotonic()
        for number in range(5):
            with _exec(box, f"quick-{number}", "echo", "quick") as screen:
                assert screen.end() == 0
                assert b"quick" in screen.seen
        assert time.monotonic() - begun < 10
        pid = daemon_pid(box.host)
        before = _cpu(pid)
        time.sleep(0.5)
        assert _cpu(pid) - before < 0.25, "the daemon spins"
        # The exit does not wait for the reader either.
        with events(box.host) as seen:
            box.call("task", "kill", "-s", "9", "--exec-id", "flood", "box", timeout=5)
            seen.until("box", "exit")
        flood.process.send_signal(signal.SIGCONT)  # the way in stops with the command
        flood.host.send_signal(flood.process, signal.SIGCONT)
        assert flood.end() == 137


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


# --- by hand -------------------------------------------------------------------------------------


def _tty_spec(*command: str) -> dict[str, Any]:
    spec = spec_of(*command)
    spec["process"]["terminal"] = True
    options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    spec["mounts"].append(
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options}
    )
    return spec


def _created(rig: Rig, *command: str) -> Bundle:
    bundle = rig.bundle("hand", spec=_tty_spec(*command))
    streams = {"stdin": bundle.fifo("stdin"), "stdout": bundle.fifo("stdout")}
    never = f"{bundle.path}/stderr-never-made"
    rig.call("Create", id="hand", bundle=bundle.path, terminal=True, stderr=never, **streams)
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    return bundle


def _process(*command: str) -> Any:
    process = {"args": list(command), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0}}
    return {"type_url": PROCESS_URL, "value": json.dumps(process).encode()}


def test_the_console_exists_from_create_and_stderr_is_ignored(rig: Rig) -> None:
    bundle = _created(rig, "sh", "-c", "stty size; exit 2")
    state = rig.call("State", id="hand")
    assert state.terminal
    assert state.stderr.endswith("never-made")
    rig.call("ResizePty", id="hand", width=90, height=33)
    rig.call("Start", id="hand")
    assert bundle.read("stdout") == b"33 90\r\n"
    assert rig.call("Wait", id="hand").exit_status == 2
    rig.call("ResizePty", id="hand", width=1, height=1)
    rig.call("Delete", id="hand")
    rig.events.until("hand", "delete")
    assert not os.listdir(rig.host.path("/run/sdshim/c"))  # noqa: PTH208


def test_megabytes_from_init(rig: Rig) -> None:
    bundle = _created(rig, "seq", "1", "500000")
    rig.call("Start", id="hand")
    assert bundle.read("stdout", 60) == SEQUENCE
    assert rig.call("Wait", id="hand").exit_status == 0


def test_close_io_ends_stdin_when_the_client_has_left_too(rig: Rig) -> None:
    bundle = _created(rig, "sh", "-c", "stty -echo; echo on; cat; echo end; exit 6")
    rig.call("Start", id="hand")
    assert bundle.read_line("stdout") == b"on\r\n"
    os.write(bundle.ends["stdin"], b"one\n")
    assert bundle.read_line("stdout") == b"one\r\n"
    os.close(bundle.ends.pop("stdin"))
    time.sleep(0.3)
    assert rig.call("State", id="hand").status == task_types_pb2.RUNNING
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    rig.call("CloseIO", id="hand", stdin=True)
    rig.call("CloseIO", id="hand", stdin=True)
    os.write(bundle.ends["stdin"], b"two\n")
    os.close(bundle.ends.pop("stdin"))
    assert bundle.read("stdout") == b"two\r\nend\r\n"
    assert rig.call("Wait", id="hand").exit_status == 6


def test_an_exit_and_its_wait_do_not_wait_for_a_slow_reader(rig: Rig) -> None:
    bundle = _created(rig, "sh", "-c", "head -c 60000 /dev/zero | tr '\\0' x; echo; exit 8")
    rig.call("Start", id="hand")
    deadline = time.monotonic() + 5
    while rig.call("State", id="hand").status != task_types_pb2.STOPPED:
        assert time.monotonic() < deadline, "the exit waits for the reader"
        time.sleep(0.05)
    assert rig.call("Wait", id="hand").exit_status == 8
    assert bundle.read("stdout") == b"x" * 60000 + b"\r\n"


def test_a_daemon_killed_before_start_and_after_the_exit(rig: Rig) -> None:
    bundle = _created(rig, "sh", "-c", "stty size; seq 1 4000; exit 3")
    rig.call("ResizePty", id="hand", width=91, height=34)
    kill_daemon(rig.host)
    connection = rig.connect()
    connection.call("Start", id="hand")
    kill_daemon(rig.host)
    told = b"34 91\r\n" + b"".join(b"%d\r\n" % n for n in range(1, 4001))
    assert bundle.read("stdout") == told
    connection = rig.connect()
    assert connection.call("Wait", id="hand").exit_status == 3
    connection.call("Delete", id="hand")
    rig.events.until("hand", "delete")


def test_resize_of_execs(rig: Rig) -> None:
    rig.running(
        "plain", spec=_tty_spec("sleep", "1000") | {"process": spec_of("sleep", "1000")["process"]}
    )
    rig.call("ResizePty", id="plain", width=1, height=1)  # no terminal: nothing, silently
    out = rig.host.path("/tmp/taskclient/exec-out")
    os.mkfifo(out)
    try:
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        process = _process("sh", "-c", "stty size; exit 7")
        where = {"id": "plain", "exec_id": "e"}
        rig.call("Exec", **where, spec=process, terminal=True, stdout="/tmp/taskclient/exec-out")
        rig.call("ResizePty", **where, width=92, height=35)
        kill_daemon(rig.host)
        connection = rig.connect()
        connection.call("Start", **where)
        assert connection.call("Wait", **where).exit_status == 7
        said = b""
        while select.select([reader], [], [], 5)[0] and (part := os.read(reader, 100)):
            said += part
        assert said == b"35 92\r\n"
        assert connection.fails("ResizePty", **where, width=1, height=1) == (
            UNKNOWN,
            "cannot resize a stopped container",
        )
        connection.call("Delete", **where)
        os.close(reader)
    finally:
        out.unlink()


def test_streams_that_are_not_fifos_are_refused(rig: Rig) -> None:
    bundle = rig.bundle("hand", spec=_tty_spec("true"))
    code, text = rig.refused(
        "Create", id="hand", bundle=bundle.path, terminal=True, stdout="/dev/null"
    )
    assert code == 3
    assert "is not a FIFO" in text


# --- by hand, both kinds


@both
def test_close_io_is_the_end_of_a_terminals_stdin(rig: Rig, where: str) -> None:
    job = Job(rig, where, "sh", "-c", "stty -echo; echo on; cat; echo end; exit 6", terminal=True)
    job.fifos("stdin", "stdout")
    job.start()
    assert job.bundle.read_line("stdout") == b"on\r\n"
    stdin = job.open_stdin()
    job.close_io()
    os.write(stdin, b"one\n")
    assert job.bundle.read_line("stdout") == b"one\r\n"
    os.close(stdin)
    assert job.bundle.read("stdout") == b"end\r\n"
    assert job.wait() == 6


@both
def test_clients_come_and_go(rig: Rig, where: str) -> None:
    """What was written between two of them is there for the second."""
    script = 'stty -echo; echo on; while read x; do echo "got $x"; done; exit 5'
    job = Job(rig, where, "sh", "-c", script, terminal=True)
    job.fifos("stdin", "stdout")
    job.start()
    assert job.bundle.read_line("stdout") == b"on\r\n"
    for number in range(3):
        stdin = job.open_stdin()
        os.write(stdin, b"%d\n" % number)
        os.close(job.bundle.ends.pop("stdout"))
        os.close(stdin)
        job.bundle.attach("stdout")
        assert job.bundle.read_line("stdout") == b"got %d\r\n" % number
    job.close_io()
    assert job.wait() == 5


@both
def test_a_terminal_that_nobody_reads_delays_nobody_else(rig: Rig, where: str) -> None:
    job = Job(rig, where, "yes", terminal=True)
    job.fifos("stdin", "stdout")
    job.start()
    other = rig.bundle("other", "echo", "hi")
    rig.call("Create", id="other", bundle=other.path, stdout=other.fifo("stdout"))
    rig.call("Start", id="other")
    assert other.read("stdout") == b"hi\n"
    job.call("Kill", signal=9)
    assert job.wait() == 137
    job.call("Delete")


CUTTER = "/tmp/taskclient/cutter"
CUT_ONCE = """#!/bin/sh
runc "$@" || exit
case " $* " in *" start "*)
    [ -e "$0.done" ] || { touch "$0.done"; systemctl kill --kill-whom=main -s KILL sdshim; }
esac
"""


def test_a_daemon_killed_between_the_runtimes_start_and_its_own_record(rig: Rig) -> None:
    cutter = rig.host.path(CUTTER)
    cutter.write_text(CUT_ONCE)
    cutter.chmod(0o755)
    options, script = runc_pb2.Options(binary_name=CUTTER), "stty raw -echo; echo on; cat"
    job = Job(rig, "init", "sh", "-c", script, terminal=True, options=pack(options))
    job.fifos("stdin", "stdout")
    try:
        job.start()
        assert cutter.with_name("cutter.done").exists()
        assert job.bundle.read_line("stdout") == b"on\n"
        stdin = job.open_stdin()
        os.write(stdin, b"typed\n")
        assert job.bundle.read_line("stdout") == b"typed\n"
        os.close(stdin)
        job.call("Kill", signal=9)
        assert job.wait() == 137
        job.call("Delete")
    finally:
        for path in (cutter, cutter.with_name("cutter.done")):
            path.unlink(missing_ok=True)
