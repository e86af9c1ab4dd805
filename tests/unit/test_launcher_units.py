"""The unit's sh lines: `create` becomes the OCI runtime, `exit-hook` leaves one line."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from sdshim.core.exitrecord import parse_record
from sdshim.launcher.cleanup import parse_exit
from tests.unit.test_launcher_kit import LAUNCHER, forks, tracer

if TYPE_CHECKING:
    from collections.abc import Iterator


class Unit:
    """A state directory and what systemd gives to ExecStart: /dev/null, /dev/null, a file."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        self.state.mkdir()
        self.root = root
        self.tracer: list[str] = []
        self.env = {"PATH": f"{root}:/usr/bin:/bin"}

    def create(self, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> int:
        with (self.state / "stderr").open("ab") as errors:
            return subprocess.run(
                [*self.tracer, "/bin/sh", str(LAUNCHER / "create"), str(self.state), *arguments],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self.env,
                timeout=10,
                check=False,
            ).returncode

    def hook(self, state: Path | str, *arguments: str, **env: str) -> int:
        return subprocess.run(
            [*self.tracer, "/bin/sh", str(LAUNCHER / "exit-hook"), str(state), *arguments],
            env=env,
            timeout=10,
            check=False,
        ).returncode

    @property
    def stderr(self) -> str:
        return (self.state / "stderr").read_text()


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit(tmp_path)


PRIVATE = """
NOTIFY_SOCKET LISTEN_FDS LISTEN_PID LISTEN_FDNAMES WATCHDOG_USEC WATCHDOG_PID INVOCATION_ID
JOURNAL_STREAM SYSTEMD_EXEC_PID MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE MAINPID MANAGERPID
PIDFILE SDSHIM_TOKEN LIBMOUNT_FORCE_MOUNT2 CREDENTIALS_DIRECTORY RUNTIME_DIRECTORY STATE_DIRECTORY
"""


def test_the_runtime_gets_its_arguments_byte_for_byte_in_the_same_process(unit: Unit) -> None:
    arguments = ["a b", "", "$HOME", "*", "-x", "\n", "--", "ä\\n"]
    out = unit.state / "out"
    out.touch()
    code = unit.create(
        "-", "-", str(out), "-", "--", "sh", "-c", 'printf "%s\\0" "$@"; exit 7', "sh", *arguments
    )
    assert (code, unit.stderr) == (7, "")
    assert out.read_bytes().decode().split("\0")[:-1] == arguments


def test_nothing_of_the_units_environment_reaches_the_runtime_and_its_hooks(unit: Unit) -> None:
    unit.env |= dict.fromkeys(PRIVATE.split(), "x") | {"HTTP_PROXY": "kept"}
    out = unit.state / "out"
    out.touch()
    assert unit.create("-", "-", str(out), "-", "--", "env") == 0
    names = {line.split("=")[0] for line in out.read_text().splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "HTTP_PROXY"}


def test_fifos_are_opened_in_place_and_inherited(unit: Unit) -> None:
    paths = [unit.root / name for name in ("in", "out", "err")]
    held = []
    for path in paths:
        os.mkfifo(path)
        held.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    os.write(held[0], b"hello\n")
    command = "read x; echo got $x; echo bad >&2; readlink /proc/self/fd/0"
    code = unit.create("-", *map(str, paths), "--", "sh", "-c", command)
    assert (code, unit.stderr) == (0, "")
    assert os.read(held[1], 999) == f"got hello\n{paths[0]}\n".encode()
    assert os.read(held[2], 999) == b"bad\n"
    for fd in held:
        os.close(fd)


def test_fd_0_does_not_inherit_the_daemons_nonblocking_flag(unit: Unit) -> None:
    fifo = unit.root / "in"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    out = unit.state / "out"
    out.touch()
    command = "grep flags: /proc/self/fdinfo/0"
    assert unit.create("-", str(fifo), str(out), "-", "--", "sh", "-c", command) == 0
    assert not int(out.read_text().split()[1], 8) & os.O_NONBLOCK
    os.close(fd)


def test_files_are_appended_to_and_never_made(unit: Unit) -> None:
    log = unit.root / "log"
    log.write_text("before\n")
    code = unit.create("-", "-", str(log), str(log), "--", "sh", "-c", "echo out; echo err >&2")
    assert (code, log.read_text()) == (0, "before\nout\nerr\n")
    missing = unit.root / "missing"
    assert unit.create("-", "-", str(missing), "-", "--", "true") == 1
    assert unit.stderr == f"open {missing}: no such file or directory\n"
    assert not missing.exists()


def test_a_dash_is_dev_null_and_an_equals_sign_keeps_the_units_own(unit: Unit) -> None:
    command = "echo lost >&2; readlink /proc/self/fd/0 /proc/self/fd/1"
    assert unit.create("-", "-", "-", "-", "--", "sh", "-c", command) == 0
    assert unit.stderr == ""
    assert unit.create("-", "=", "=", "=", "--", "sh", "-c", "echo kept >&2") == 0
    assert unit.stderr == "kept\n"


@pytest.mark.parametrize(
    ("runtime", "code", "text"),
    [
        ("xrunc", 127, 'exec: "xrunc": executable file not found in $PATH'),
        ("/nowhere/runc", 127, 'exec: "/nowhere/runc": stat /nowhere/runc: no such file'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
        ("/tmp", 126, 'exec: "/tmp": permission denied'),
    ],
)
def test_a_runtime_that_cannot_run_is_one_clear_line_in_the_state_directory(
    unit: Unit, runtime: str, code: int, text: str
) -> None:
    fifo = unit.root / "err"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    assert unit.create("-", "-", "-", str(fifo), "--", runtime, "create", "c1") == code
    assert unit.stderr.startswith(text)
    assert unit.stderr.count("\n") == 1
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)  # the container's stream got nothing
    os.close(fd)


def test_the_runtime_is_out_of_the_units_own_cgroup_before_it_runs(unit: Unit) -> None:
    sup = unit.root / "cgroup" / "sup"
    sup.parent.mkdir()
    assert unit.create(str(sup), "-", "-", "-", "--", "true") == 0
    assert (sup / "cgroup.procs").read_text() == "0\n"
    assert unit.create("/proc/nowhere", "-", "-", "-", "--", "true") == 1
    assert "cannot make the cgroup /proc/nowhere" in unit.stderr


def test_wrong_arguments_are_a_usage_line(unit: Unit) -> None:
    assert unit.create("-", "-", "-", "-", "runc") == 2
    assert unit.stderr.startswith("usage: create STATE_DIR")


def test_create_and_the_hook_start_no_process_of_their_own(unit: Unit) -> None:
    trace = unit.root / "trace"
    unit.tracer = tracer(trace)
    fifo = unit.root / "err"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    assert unit.create("-", "-", "-", str(fifo), "--", "true") == 0
    assert forks(trace) == []
    os.close(fd)
    assert unit.hook(unit.state, **FULL) == 0
    assert forks(trace) == []


# The exit hook

FULL = {
    "INVOCATION_ID": "f00",
    "SERVICE_RESULT": "signal",
    "EXIT_CODE": "killed",
    "EXIT_STATUS": "KILL",
}


@pytest.mark.parametrize("newline", ["", "\n"])
def test_the_exit_is_one_line_that_both_readers_understand(unit: Unit, newline: str) -> None:
    (unit.state / "init.pid").write_text(f"4711{newline}")
    assert unit.hook(unit.state, **FULL) == 0
    text = (unit.state / "exit").read_text()
    assert text == "f00 4711 signal killed KILL\n"
    parsed = parse_record(text)
    assert parsed is not None
    assert parsed.exit_status(0).status == 137
    assert parse_exit(text) == (137, 4711)


def test_what_systemd_did_not_set_is_a_dash(unit: Unit) -> None:
    assert unit.hook(unit.state, SERVICE_RESULT="exit-code") == 0
    text = (unit.state / "exit").read_text()
    assert text == "- - exit-code - -\n"
    assert parse_exit(text) == (None, 0)


def test_the_first_complete_line_stands_and_a_cut_one_is_written_again(unit: Unit) -> None:
    (unit.state / "exit").write_text("f00 1 succ")
    assert unit.hook(unit.state, **FULL) == 0
    assert (unit.state / "exit").read_text() == "f00 - signal killed KILL\n"
    assert unit.hook(unit.state, SERVICE_RESULT="success") == 0
    assert (unit.state / "exit").read_text() == "f00 - signal killed KILL\n"


def test_a_state_directory_that_is_gone_needs_no_record(
    unit: Unit, capfd: pytest.CaptureFixture[str]
) -> None:
    assert unit.hook(unit.root / "gone", **FULL) == 0
    assert unit.hook("", **FULL) == 0
    assert capfd.readouterr() == ("", "")


def test_a_record_that_cannot_be_written_fails_so_that_systemd_keeps_the_unit(unit: Unit) -> None:
    (unit.state / "exit").mkdir()
    assert unit.hook(unit.state, **FULL) != 0


@pytest.mark.parametrize(
    ("code", "value", "status"),
    [("exited", "7", 7), ("dumped", "ABRT", 134), ("killed", "HUP", 129)],
)
def test_both_readers_of_the_record_agree(unit: Unit, code: str, value: str, status: int) -> None:
    env = FULL | {"EXIT_CODE": code, "EXIT_STATUS": value}
    assert unit.hook(unit.state, **env) == 0
    text = (unit.state / "exit").read_text()
    parsed = parse_record(text)
    assert parsed is not None
    assert parsed.exit_status(0).status == parse_exit(text)[0] == status


@pytest.mark.parametrize("key", ["low 0\nmax 9\noom 1\n", "oom_kill_disable 0\nunder_oom 0\n"])
def test_an_end_by_the_oom_killer_is_in_the_record_and_in_the_units_status(
    unit: Unit, key: str
) -> None:
    counters = unit.root / "counters"
    counters.write_text(f"{key}oom_kill 2\n")
    notify = unit.root / "systemd-notify"
    notify.write_text('#!/bin/sh\nprintf "%s" "$*" >"${0%/*}/said"\n')
    notify.chmod(0o755)
    env = FULL | {"PATH": unit.env["PATH"], "NOTIFY_SOCKET": "/x"}
    assert unit.hook(unit.state, "-", str(counters), **env) == 0
    assert (unit.state / "exit").read_text() == "f00 - oom-kill killed KILL\n"
    assert (unit.state / "oom").read_text() == counters.read_text()
    said = (unit.root / "said").read_text()
    assert said.startswith("--status=OOM: ")
    assert said.endswith(" 2 so far")


@pytest.mark.parametrize(
    ("kills", "status", "result"),
    [(0, "KILL", "signal"), (1, "TERM", "signal"), (1, "KILL", "oom-kill")],
)
def test_another_end_is_not_the_oom_killers(
    unit: Unit, kills: int, status: str, result: str
) -> None:
    counters = unit.root / "counters"
    counters.write_text(f"oom_kill {kills}\n")
    assert unit.hook(unit.state, "-", str(counters), **(FULL | {"EXIT_STATUS": status})) == 0
    assert (unit.state / "exit").read_text() == f"f00 - {result} killed {status}\n"


@pytest.mark.parametrize(("told", "result"), [("1", "oom-kill"), ("2", "signal")])
def test_an_end_that_a_client_wished_is_not_the_oom_killers(
    unit: Unit, told: str, result: str
) -> None:
    counters = unit.root / "counters"
    counters.write_text("oom_kill 2\n")
    (unit.state / "killed").write_text(told)
    assert unit.hook(unit.state, "-", str(counters), **FULL) == 0
    assert (unit.state / "exit").read_text() == f"f00 - {result} killed KILL\n"


# The runtime's program as stdin


def _with_program(unit: Unit, program: Path | str, link: str, *arguments: str) -> int:
    unit.env["SDSHIM_SEALED"] = link
    with Path(program).open("rb") as file:
        return unit.create("-", "-", "-", "-", "--", *arguments, stdin=file)


def test_the_runtime_is_run_from_the_program_at_its_input_and_bears_its_name(unit: Unit) -> None:
    link = unit.root / "programs"
    link.symlink_to("/proc/self/fd/9")
    told = unit.root / "told"
    command = f'{{ echo "$0"; readlink /proc/$$/exe /proc/$$/fd/0; env; }} >{told}'
    shell = os.path.realpath("/bin/sh")
    assert _with_program(unit, shell, str(link), "/bin/cat", "-c", command) == 0
    lines = told.read_text().splitlines()
    assert lines[:3] == [str(link), shell, "/dev/null"]
    assert not [line for line in lines if line.startswith("SDSHIM_")]


@pytest.mark.parametrize("link", ["/nowhere", "/proc/self/fd/9"])
def test_without_a_program_at_its_input_the_runtime_is_run_as_it_is(unit: Unit, link: str) -> None:
    told = unit.root / "told"
    command = f"readlink /proc/$$/exe /proc/$$/fd/0 >{told}; [ ! -e /proc/self/fd/9 ] >>{told}"
    assert _with_program(unit, os.devnull, link, "/bin/sh", "-c", command) == 0
    assert told.read_text().splitlines() == [os.path.realpath("/bin/sh"), "/dev/null"]


# Loggers


def test_one_path_for_both_outputs_is_opened_once(unit: Unit) -> None:
    log = unit.root / "log"
    log.touch()
    command = "echo out; echo err >&2; exec 3>&1; cat /proc/self/fdinfo/[23] | grep pos:"
    assert unit.create("-", "-", str(log), str(log), "--", "sh", "-c", command) == 0
    assert log.read_text() == "out\nerr\npos:\t8\npos:\t8\n"


@pytest.fixture
def fifos(unit: Unit) -> Iterator[dict[str, int]]:
    """What the daemon holds while a logger starts."""
    held = {}
    for name in ("out", "err", "ready"):
        os.mkfifo(unit.state / name)
        held[name] = os.open(unit.state / name, os.O_RDWR | os.O_NONBLOCK)
    yield held
    for fd in held.values():
        os.close(fd)


def _run(unit: Unit, script: str, *arguments: str) -> str:
    done = subprocess.run(
        ["/bin/sh", str(LAUNCHER / script), str(unit.state), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=unit.env | dict.fromkeys(PRIVATE.split(), "x"),
        text=True,
        timeout=10,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("name", ["logger", "log=ger"])
def test_a_logger_has_two_variables_and_five_descriptors(
    unit: Unit, fifos: dict[str, int], name: str
) -> None:
    program = unit.root / name
    program.write_text(
        "#!/bin/sh\nread line <&3; tr '\\0' '\\n' </proc/$$/environ >$1"
        '; echo "$line|$2" >>$1; echo /proc/$$/fd/? >>$1; pwd >>$1; printf x >&5\n'
    )
    program.chmod(0o755)
    os.write(fifos["out"], b"hello\n")
    said = unit.root / "said"
    words = ["e1", "my-ns", str(unit.root), "--", str(program), str(said), "a b$"]
    assert _run(unit, "log", *words) == ""
    assert os.read(fifos["ready"], 9) == b"x"
    environment = {"CONTAINER_ID=e1", "CONTAINER_NAMESPACE=my-ns"}
    lines = said.read_text().splitlines()
    extra = set(lines[: lines.index("hello|a b$")]) - environment
    assert all(line.startswith("PWD=") for line in extra) and len(extra) <= ("=" in name)
    fds, folder = lines[lines.index("hello|a b$") + 1 :]
    assert [path.rpartition("/")[2] for path in fds.split()][:6] == list("012345")
    assert folder == str(unit.root)


def test_the_words_of_a_logger_that_cannot_be_run_are_kept(unit: Unit) -> None:
    assert "/nowhere" in _run(unit, "log", "id", "ns", "/nowhere", "--", "/bin/true")
    assert "usage" in _run(unit, "log", "id")


def test_a_file_is_appended_to_and_ready_once_it_is_open(unit: Unit, fifos: dict[str, int]) -> None:
    file = unit.root / "a $b"
    file.write_text("before\n")
    os.write(fifos["out"], b"after\n")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(_run, unit, "append", str(file))
        while file.read_text() != "before\nafter\n":
            assert not running.done()
        os.close(fifos.pop("out"))
        assert running.result() == ""
    (unit.root / "folder").mkdir()
    fifos["out"] = os.open(unit.state / "out", os.O_RDWR | os.O_NONBLOCK)
    assert "directory" in _run(unit, "append", str(unit.root / "folder")).lower()
