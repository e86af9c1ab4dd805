"""Main process of an exec's unit: subreaper.c and its twin subreaper.py, by the same tests.

The runtime here is a line of sh: it starts the exec'd process, writes `exec.pid` and ends.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.test_launcher_kit import LAUNCHER, forks, tracer

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = os.environ.get("SDSHIM_PYTHON", sys.executable)
RUNS = {"c": 200, "python": 40}  # an interpreter takes 30 ms each time
ALL = resource.RLIM_INFINITY

_PROCESS = "exec 9<>gate; (exec <gate 9>&-; read x; exit %d) & printf %%s $! >exec.pid"
"""Ends at the end of whoever started it: a shell would reap what ends before."""
RACE = _PROCESS
"""Runtime and process end at the same time."""
FIRST = f"( {_PROCESS} ); sleep 0.003"
"""The process is the subreaper's child and has ended before the runtime ends."""
WAITS = "sh -c 'trap \"exit 42\" %s; sleep 60 & touch up; wait' &"
UP = "while ! [ -e up ]; do sleep 0.01; done"


@dataclass
class Room:
    """A state directory, a notify socket, and what was started in it."""

    name: str
    program: list[str]
    state: Path
    notify: socket.socket
    env: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    inbox: list[bytes] = field(default_factory=list)

    def spawn(self, argv: list[str], stdout: int | None = None) -> subprocess.Popen[bytes]:
        """A process in a session of its own, which ends with the test."""
        process = subprocess.Popen(
            argv,
            cwd=self.state,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def begin(self, runtime: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        """The subreaper with a line of sh as the runtime."""
        return self.spawn([*self.program, "exec.pid", "/bin/sh", "-c", runtime], stdout)

    def run(self, runtime: str, stdout: int | None = None) -> int:
        """Its exit status; what it says is read meanwhile, as systemd does."""
        process = self.begin(runtime, stdout)
        self.listen(process)
        return process.wait()

    def listen(self, process: subprocess.Popen[bytes]) -> None:
        """Read messages until the process has ended (it is not reaped)."""
        end = os.pidfd_open(process.pid)
        try:
            while True:
                found, _, _ = select.select([self.notify.fileno(), end], [], [], 10)
                assert found, "it does not end"
                if found == [end]:
                    return
                self.inbox.append(self.notify.recv(99))
        finally:
            os.close(end)

    def heard(self, timeout: float = 0) -> list[bytes]:
        """Every message so far, of which the first may take `timeout` seconds."""
        found, self.inbox = self.inbox, []
        while select.select([self.notify], [], [], 0 if found else timeout)[0]:
            found.append(self.notify.recv(99))
        return found

    def pid(self) -> int:
        return int((self.state / "exec.pid").read_text())

    def text(self, name: str) -> str:
        return (self.state / name).read_text()

    def hook(self, *arguments: str) -> int:
        argv = ["/bin/sh", str(LAUNCHER / "exit-hook"), str(self.state), *arguments]
        env = {"EXIT_CODE": "killed", "EXIT_STATUS": "KILL", "SERVICE_RESULT": "signal"}
        return subprocess.run(argv, env=env, timeout=10, check=False).returncode


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """subreaper.c as the installer makes it, without a warning."""
    if not shutil.which("cc"):
        if os.environ.get("CI"):
            pytest.fail("no C compiler (cc)")
        pytest.skip("no C compiler (cc)")
    out = tmp_path_factory.mktemp("cc") / "subreaper"
    line = ["cc", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-o", str(out)]
    line.append(str(LAUNCHER / "subreaper.c"))
    if subprocess.run([*line, "-static"], capture_output=True, check=False).returncode:
        subprocess.run(line, check=True)
    return out


@pytest.fixture(params=["c", "python"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    program = [PYTHON, "-I", "-S", str(LAUNCHER / "subreaper.py")]
    if request.param == "c":
        program = [str(request.getfixturevalue("compiled"))]
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind(f"{short}/notify")
        os.mkfifo(f"{short}/gate")
        env = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": f"{short}/notify"}
        room = Room(request.param, program, Path(short), notify, env)
        yield room
        for process in room.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ended(pidfd: int, timeout: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout)[0])


def _until(room: Room, name: str) -> None:
    deadline = time.monotonic() + 10
    while not (room.state / name).exists():
        assert time.monotonic() < deadline, name
        time.sleep(0.005)


# How it ends


@pytest.mark.parametrize("runtime", [RACE, FIRST], ids=["race", "process first"])
def test_no_code_of_a_process_that_ends_at_once_is_lost(room: Room, runtime: str) -> None:
    for number in range(RUNS[room.name]):
        code = (0, 7, 255)[number % 3]
        assert room.run(runtime % code) == code, number
        assert room.heard() == [b"READY=1"]


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "HUP", "INT", "RTMIN"])
def test_it_ends_by_the_signal_that_ended_the_process_and_leaves_no_core(
    room: Room, name: str
) -> None:
    number = int(signal.Signals[f"SIG{name}"])
    # the shell of a background process would ignore INT
    kill = f"import os, signal as s; s.signal(2, s.SIG_DFL); os.kill(os.getpid(), {number})"
    resource.prlimit(0, resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1], ALL))
    ended = "sys.stdin.read()"  # after the runtime: a shell may reap a child of its own
    kill = f"import sys; {ended}; {kill}"
    line = f"ulimit -c 0; exec 9<>gate; {PYTHON} -ISc '{kill}' <gate 9>&- & printf %s $! >exec.pid"
    process = room.begin(line)
    room.listen(process)
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert end is not None
    assert (end.si_code, end.si_status) == (os.CLD_KILLED, number)
    assert not list(room.state.glob("*core*"))
    assert room.heard() == [b"READY=1"]


@pytest.mark.parametrize(
    ("failure", "status"), [("exit 1", 1), ("exit 255", 255), ("kill -KILL $$", 137)]
)
def test_a_runtime_that_fails_is_a_failed_start(room: Room, failure: str, status: int) -> None:
    assert room.run(failure) == status
    assert room.run(f"sleep 60 & printf %s $! >exec.pid; {failure}") == status
    assert room.heard() == []


@pytest.mark.parametrize("content", ["", "x", "0", "-1"])
def test_a_runtime_without_a_pid_is_255_and_no_start(room: Room, content: str) -> None:
    assert room.run(f"printf %s '{content}' >exec.pid") == 255
    assert room.run("rm exec.pid") == 255
    assert room.heard() == []


def test_a_runtime_that_cannot_run_has_the_shells_status(room: Room) -> None:
    assert room.spawn([*room.program, "exec.pid", "no-such-runtime"]).wait(10) == 127
    assert room.spawn([*room.program, "exec.pid", "/etc/passwd"]).wait(10) == 126
    assert room.heard() == []


def test_children_of_the_process_that_keep_its_streams_delay_nothing(room: Room) -> None:
    read, write = os.pipe()
    begin = time.monotonic()
    # It ends after the runtime: a shell may reap a child of its own, an OCI runtime does not.
    line = (
        "exec 9<>gate; sh -c 'exec <gate 9>&-; read x; sleep 60 & exit 3' & printf %s $! >exec.pid"
    )
    assert room.run(line, write) == 3
    assert time.monotonic() - begin < 5
    os.close(read)
    os.close(write)


def test_a_process_that_is_not_its_child_is_waited_for_and_ends_as_255(room: Room) -> None:
    stranger = room.spawn(["sleep", "60"])
    process = room.begin(f"printf %s {stranger.pid} >exec.pid")
    assert room.heard(5) == [b"READY=1"]
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.terminate()
    assert stranger.wait(10) == -signal.SIGTERM
    assert process.wait(10) == 255
    assert room.run(f"printf %s {stranger.pid} >exec.pid") == 255  # already gone


# READY


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_ready_comes_once_from_the_main_process_when_the_pid_file_is_there(
    room: Room, abstract: bool
) -> None:
    if abstract:
        name = f"sdshim-test-{os.getpid()}-{room.name}"
        room.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        room.notify.bind(f"\0{name}")
        room.env["NOTIFY_SOCKET"] = f"@{name}"
    room.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    room.notify.settimeout(10)
    process = room.begin("sleep 60 & sleep 0.1; printf %s $! >exec.pid")
    message, ancillary, _, _ = room.notify.recvmsg(99, 99)
    assert message == b"READY=1"
    assert int.from_bytes(ancillary[0][2][:4], sys.byteorder) == process.pid
    os.kill(room.pid(), signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert room.heard() == []
    if abstract:
        room.notify.close()


def test_it_ends_when_systemd_has_read_ready(room: Room) -> None:
    """Else systemd may find it dead before it looks for messages: a failed start."""
    process = room.begin(FIRST % 7)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    assert room.heard() == [b"READY=1"]
    assert process.wait(10) == 7


def test_it_ends_when_nobody_can_read_ready_any_more(room: Room) -> None:
    process = room.begin(FIRST % 7)
    assert select.select([room.notify], [], [], 10)[0]
    room.notify.close()
    assert process.wait(10) == 7


@pytest.mark.parametrize("address", [None, "", "@", "/nowhere/notify", "/" + "x" * 200])
def test_the_exit_does_not_depend_on_the_notify_socket(room: Room, address: str | None) -> None:
    room.env.pop("NOTIFY_SOCKET")
    if address is not None:
        room.env["NOTIFY_SOCKET"] = address
    assert room.run(RACE % 7) == 7


# What the runtime gets


def test_the_runtime_gets_clean_signals_three_streams_and_no_notify_socket(room: Room) -> None:
    line = "env >env; cat /proc/self/status >status; readlink /proc/$$/fd/* >fds; exit 1"
    assert room.run(line) == 1
    assert "PATH=" in room.text("env")
    assert "NOTIFY_SOCKET" not in room.text("env")
    status = dict(x.split(":\t", 1) for x in room.text("status").splitlines() if ":\t" in x)
    of_glibc = 0b11 << 31  # 32 and 33: nobody can set them, whoever started the tests decides
    assert int(status["SigBlk"], 16) & ~of_glibc == 0
    assert int(status["SigIgn"], 16) & ~of_glibc == 0
    assert len(room.text("fds").splitlines()) == 3


def test_eof_comes_when_the_process_closes_its_stream(room: Room) -> None:
    fifo = room.state / "out"
    os.mkfifo(fifo)
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(fifo, os.O_WRONLY)
    line = "sh -c 'echo last; exec >/dev/null; exec sleep 60' & printf %s $! >exec.pid"
    process = room.begin(line, write)
    os.close(write)
    os.set_blocking(read, True)
    assert os.read(read, 99) == b"last\n"
    assert os.read(read, 99) == b""
    assert process.poll() is None
    os.close(read)


# Signals


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "WINCH"])
def test_a_signal_is_passed_on_to_the_process(room: Room, name: str) -> None:
    process = room.begin(f"{WAITS % name} printf %s $! >exec.pid; {UP}")
    assert room.heard(5) == [b"READY=1"]
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.wait(10) == 42


def test_a_signal_that_comes_before_the_process_is_known_is_passed_on_later(room: Room) -> None:
    process = room.begin(f"{WAITS % 'TERM'} p=$!; {UP}; sleep 0.2; printf %s $p >exec.pid")
    _until(room, "up")
    process.terminate()
    assert room.heard(5) == [b"READY=1"]
    assert process.wait(10) == 42


# `exec`, the line of the unit


@pytest.fixture
def line(room: Room) -> list[str]:
    """`exec` in a folder that has the compiled program or has not."""
    folder = room.state / "launcher"
    folder.mkdir()
    for name in ("exec", "hostmounts.sh", "streams.sh", "subreaper.py"):
        shutil.copy(LAUNCHER / name, folder)
    if room.name == "c":
        shutil.copy(room.program[0], folder)
    room.env["SDSHIM_PYTHON"] = PYTHON if room.name == "python" else "/nowhere"
    return [str(folder / "exec"), str(room.state)]


def test_exec_becomes_the_subreaper_with_the_streams(room: Room, line: list[str]) -> None:
    room.env |= {"INVOCATION_ID": "x", "SDSHIM_TOKEN": "x", "HTTP_PROXY": "kept"}
    (room.state / "log").touch()
    command = 'env; printf "%s\\n" "$@"; exec >/dev/null; sleep 60 & printf %s $! >exec.pid'
    runtime = ["sh", "-c", command, "sh", "a b", "$HOME", "--"]
    process = room.spawn([*line, "-", str(room.state / "log"), "-", "--", *runtime])
    assert room.heard(5) == [b"READY=1"]
    assert room.text("main.pid") == f"{process.pid}\n"
    seen = room.text("log").splitlines()
    assert seen[-3:] == ["a b", "$HOME", "--"]
    names = {x.split("=")[0] for x in seen[:-3]}
    shells = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert names - shells == {"PATH", "HTTP_PROXY", "SDSHIM_PYTHON"}
    os.kill(room.pid(), signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_exec_starts_no_process_but_the_runtime(room: Room, line: list[str]) -> None:
    trace = room.state / "trace"
    words = tracer(trace)
    assert room.spawn([*words, *line, "-", "-", "-", "--", "true"]).wait(10) == 255
    assert len(forks(trace)) == 1


def test_faults_of_exec_are_one_line_and_main_pid_is_there_all_the_same(
    room: Room, line: list[str]
) -> None:
    faults = {
        ("-", "-", "-", "--", "xrunc", "exec"): (127, 'exec: "xrunc": executable file not found'),
        ("/nowhere", "-", "-", "--", "true"): (1, "open /nowhere: no such file"),
        ("-", "-", "true"): (2, "usage: exec STATE_DIR"),
    }
    for arguments, (status, text) in faults.items():
        process = room.spawn([*line, *arguments])
        assert process.wait(10) == status
        assert room.text("stderr").startswith(text)
        assert room.text("stderr").count("\n") == 1
        assert room.text("main.pid") == f"{process.pid}\n"
        (room.state / "stderr").unlink()
    assert room.spawn([line[0], "/nowhere"]).wait(10) == 1


# The exit hook of an exec


def _cgroup(pid: int | str = "self") -> str:
    """The longest path of a process: the most telling one."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return max((x.split(":", 2)[2] for x in lines), key=len)


def test_the_hook_ends_what_a_killed_subreaper_left_behind(room: Room) -> None:
    process = room.begin("sleep 60 & printf %s $! >exec.pid")
    assert room.heard(5) == [b"READY=1"]
    pid = room.pid()
    held = [str(x.readlink()) for x in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert f"/proc/{pid}" in held  # else its age, which the hook goes by, could change
    pidfd = os.pidfd_open(pid)
    process.kill()
    process.wait()
    assert not _ended(pidfd, 0.05)
    assert room.hook(_cgroup()) == 0
    assert _ended(pidfd, 10)
    assert room.text("exit") == f"- {pid} signal killed KILL\n"
    os.close(pidfd)


@pytest.mark.parametrize("case", ["cgroup", "prefix", "younger", "empty", "init", "garbage"])
def test_the_hook_ends_nothing_else(tmp_path: Path, case: str) -> None:
    room = Room("", [], tmp_path, socket.socket(), {"PATH": os.environ["PATH"]})
    sleep = room.spawn(["sleep", "60"])
    cgroup = _cgroup(sleep.pid)
    arguments = {"cgroup": ["/nowhere"], "empty": [""], "init": []}.get(case, [cgroup])
    if case == "prefix":
        arguments = [cgroup[:-1]]  # /a/containe is not above /a/container
    pid_file = tmp_path / "exec.pid"
    pid_file.write_text(f"{sleep.pid}x" if case == "garbage" else f"{sleep.pid}")
    if case == "younger":
        born = Path(f"/proc/{sleep.pid}").stat().st_mtime_ns
        os.utime(pid_file, ns=(born - 1, born - 1))
    assert room.hook(*arguments) == 0
    with pytest.raises(subprocess.TimeoutExpired):
        sleep.wait(0.1)
    pid = "-" if case == "init" else pid_file.read_text()
    assert room.text("exit") == f"- {pid} signal killed KILL\n"
    sleep.kill()
    sleep.wait()
    room.notify.close()


def test_the_hook_kills_below_the_cgroup_too_and_although_the_record_is_there(
    tmp_path: Path,
) -> None:
    room = Room("", [], tmp_path, socket.socket(), {"PATH": os.environ["PATH"]})
    sleep = room.spawn(["sleep", "60"])
    cgroup = _cgroup(sleep.pid)
    (tmp_path / "exec.pid").write_text(f"{sleep.pid}\n")
    (tmp_path / "exit").write_text("before\n")
    assert room.hook(cgroup.rpartition("/")[0] or cgroup) == 0
    assert sleep.wait(10) == -signal.SIGKILL
    assert room.text("exit") == "before\n"
    room.notify.close()
