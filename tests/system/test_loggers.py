"""Log URIs: files and programs that take the output of containers and execs (protocol 6.3, 6.4)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import ShimError
from sdshim.pb import runc_pb2, task_types_pb2
from sdshim.pb.wellknown import pack
from tests.fault.strikes import kill_daemon
from tests.system.jobs import Job, both
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

UNKNOWN, INVALID = 2, 3
SIGKILL = 9
HOME = "/tmp/loggers"
FAILED = "failed to create init process I/O: "
COPY = "exec cat <&3 >/tmp/loggers/out"


@pytest.fixture
def home(host: Host) -> Iterator[Path]:
    """A folder on the host, seen from here."""
    host.run(["rm", "-rf", HOME])
    host.run(["mkdir", "-p", HOME])
    yield host.path(HOME)
    host.run(["rm", "-rf", HOME])


@pytest.fixture
def program(home: Path) -> Callable[..., str]:
    """Make an executable from lines of sh; the URI that names it."""

    def make(*lines: str, name: str = "logger", query: str = "", scheme: str = "binary") -> str:
        path = home / name
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return f"{scheme}://{HOME}/{name}" + (f"?{query}" if query else "")

    return make


def job(rig: Rig, where: str, uri: str, *command: str, terminal: bool = False) -> Job:
    """A process with a logger."""
    made = Job(rig, where, *command, terminal=terminal)
    made.streams = {"stdout": uri, "stderr": uri}
    return made


def fails(made: Job) -> str:
    """What the call says that cannot get its logger."""
    with pytest.raises(ShimError) as caught:
        made.begin()
    assert caught.value.code == UNKNOWN
    assert str(caught.value).startswith(FAILED)
    return str(caught.value)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


# --- file://


@both
def test_a_file_gets_both_streams_in_the_order_they_were_written(
    rig: Rig, home: Path, where: str
) -> None:
    (home / "a b").mkdir()
    (home / "a b" / "x%y.log").write_text("before\n")
    script = "for n in 1 2 3; do echo out $n; echo err $n >&2; done; exit 3"
    made = job(rig, where, f"file://{HOME}/a%20b/x%25y.log", "sh", "-c", script)
    assert made.run() == 3
    made.call("Delete")
    written = [f"{stream} {n}" for n in (1, 2, 3) for stream in ("out", "err")]
    assert _lines(home / "a b" / "x%y.log") == ["before", *written]


def test_a_file_and_its_folders_are_made(rig: Rig, home: Path) -> None:
    made = job(rig, "init", f"file://ignored{HOME}/new/deep er/log?x=y#z", "echo", "hi")
    made.run()
    made.call("Delete")
    file = home / "new" / "deep er" / "log"
    assert file.read_text() == "hi\n"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o644, 0o755)


@both
def test_a_container_cannot_cut_its_log(rig: Rig, home: Path, where: str) -> None:
    """What opens /dev/stdout with `>` would truncate a file that was its stdout."""
    script = "echo a; echo b >/proc/self/fd/1; echo c >/proc/self/fd/2; echo d"
    made = job(rig, where, f"file://{HOME}/log", "sh", "-c", script)
    made.run()
    made.call("Delete")
    assert _lines(home / "log") == ["a", "b", "c", "d"]


@both
def test_a_terminal_writes_to_a_file(rig: Rig, home: Path, where: str) -> None:
    made = job(rig, where, f"file://{HOME}/log", "sh", "-c", "tty; echo err >&2", terminal=True)
    assert made.run() == 0
    made.call("Delete")
    assert (home / "log").read_bytes() == b"/dev/pts/0\r\nerr\r\n"


@pytest.mark.parametrize(
    ("uri", "code", "text"),
    [
        (f"file://{HOME}", UNKNOWN, f"{FAILED}open {HOME}: is a directory"),
        (f"file://{HOME}/f/x", UNKNOWN, f"{FAILED}mkdir {HOME}/f: not a directory"),
        (f"file://{HOME}/fifo", UNKNOWN, f"{FAILED}open {HOME}/fifo: no such device or address"),
        ("file:relative", INVALID, "stdout: 'file:relative' has no absolute path"),
        ("file:///a%zz", INVALID, "invalid URL escape '%zz'"),
        ("foo:///x", UNKNOWN, f"{FAILED}unknown STDIO scheme foo"),
        (f"binary://{HOME}/no", UNKNOWN, f"fork/exec {HOME}/no: no such file or directory"),
        (f"binary://{HOME}/f", UNKNOWN, f"fork/exec {HOME}/f: permission denied"),
        (f"binary-v2://{HOME}", UNKNOWN, f"fork/exec {HOME}: permission denied"),
    ],
)
def test_what_cannot_take_output_is_refused_and_nothing_is_left(
    rig: Rig, home: Path, uri: str, code: int, text: str
) -> None:
    (home / "f").write_text("a file\n")
    os.mkfifo(home / "fifo")
    bundle = rig.bundle("box", "true")
    refused = rig.refused("Create", id="box", bundle=bundle.path, stdout=uri, stderr=uri)
    assert refused[0] == code
    assert text in refused[1]


# --- binary://


@both
def test_a_logger_gets_its_arguments_environment_and_descriptors_and_nothing_else(
    rig: Rig, home: Path, program: Callable[..., str], where: str
) -> None:
    uri = program(
        f"pwd >{HOME}/cwd; cd {HOME}; printf '%s|' \"$@\" >args",
        "tr '\\0' '\\n' </proc/$$/environ >environ",
        "for fd in 0 1 2 3 4 5; do readlink /proc/$$/fd/$fd; done >fds",
        "cat <&3 >out 5>&- & cat <&4 >err 5>&- & exec 5>&-; wait; echo end >>out",
        query="a=b&c=d+e%20f&a=z&x&%zz=1&&k;l=1",
    )
    made = job(rig, where, uri, "sh", "-c", "echo out; echo err >&2; exit 4")
    assert made.run() == 4
    made.call("Delete")
    assert (home / "args").read_text() == "a|b|c|d e f|x||"
    name = "e" if where == "exec" else "box"
    assert sorted(_lines(home / "environ")) == [
        f"CONTAINER_ID={name}",
        "CONTAINER_NAMESPACE=default",
    ]
    assert (home / "cwd").read_text().strip() == made.bundle.path
    null, fifos = _lines(home / "fds")[:1], _lines(home / "fds")[3:]  # 1 is where fds are told
    assert null == ["/dev/null"]
    assert [path.rpartition("/")[2] for path in fifos] == ["out", "err", "ready"]
    assert (home / "out").read_text() == "out\nend\n"
    assert (home / "err").read_text() == "err\n"


@both
def test_a_logger_is_a_unit_of_the_namespaces_slice(
    rig: Rig, host: Host, program: Callable[..., str], where: str
) -> None:
    made = job(rig, where, program("exec 5>&-", COPY), "sleep", "1000")
    made.begin()
    names = ["ActiveState", "Slice", "TimeoutStopUSec", "KillMode", "ExitType"]
    shown = host.run(["systemctl", "show", "-p", ",".join(names), made.logger]).stdout.splitlines()
    values = ["active", "sdshim-default.slice", "12s", "mixed", "cgroup"]
    assert sorted(shown) == sorted(f"{n}={v}" for n, v in zip(names, values, strict=True))
    after = host.run(["systemctl", "show", "-P", "After", f"{made.unit}.service"]).stdout
    assert made.logger in after, "at shutdown the container goes first"


def test_the_logger_is_ready_before_the_container_is_made(
    rig: Rig, home: Path, program: Callable[..., str]
) -> None:
    state = "/run/containerd/runc/default/box"
    uri = program(f"sleep 0.3; ls {state} >{HOME}/seen; printf x >&5", COPY)
    assert job(rig, "init", uri, "echo", "hi").run() == 0
    assert (home / "seen").read_text() == ""
    rig.call("Delete", id="box")
    assert (home / "out").read_text() == "hi\n"


@both
def test_the_second_form_is_not_ready_by_an_end_of_file(
    rig: Rig, program: Callable[..., str], where: str
) -> None:
    made = job(rig, where, program("exec 5>&-", COPY, scheme="binary-v2"), "echo", "hi")
    assert "closed fd 5 without a byte" in fails(made)


@both
def test_the_second_form_is_ready_by_a_byte(
    rig: Rig, home: Path, program: Callable[..., str], where: str
) -> None:
    made = job(rig, where, program("printf x >&5", COPY, scheme="binary-v2"), "echo", "hi")
    assert made.run() == 0
    made.call("Delete")
    assert (home / "out").read_text() == "hi\n"


def test_a_logger_that_forks_goes_on(rig: Rig, home: Path, program: Callable[..., str]) -> None:
    uri = program(f"(sleep 0.2; exec 5>&-; cat <&3 >{HOME}/out; echo end >>{HOME}/out) &")
    made = job(rig, "init", uri, "sh", "-c", "sleep 0.3; echo hi")
    assert made.run() == 0
    made.call("Delete")
    assert (home / "out").read_text() == "hi\nend\n"


@both
@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["exit 3"], "it has ended with status 3"),
        (["kill -9 $$"], "it has ended by signal 9"),
        ([], "it has ended with status 0"),
    ],
    ids=["exit 3", "killed", "empty"],
)
def test_a_logger_that_ends_early_is_told_and_nothing_is_left(
    rig: Rig, program: Callable[..., str], where: str, lines: list[str], text: str
) -> None:
    made = job(rig, where, program(*lines), "true")
    assert text in fails(made)
    if where == "exec":  # it stays created, as after any failed Start
        assert made.call("State").status == task_types_pb2.CREATED
        made.call("Delete")


def test_a_program_without_its_interpreter_is_told(rig: Rig, home: Path) -> None:
    (home / "logger").write_text("#!/does/not/exist\n")
    (home / "logger").chmod(0o755)
    assert "it has ended with status 127" in fails(job(rig, "init", f"binary://{HOME}/logger"))


@both
def test_a_logger_that_never_gets_ready_does_not_hang_the_call(
    rig: Rig, program: Callable[..., str], configured: Callable[[str], None], where: str
) -> None:
    configured("logger_timeout = 1.0\n")
    made = job(rig, where, program("trap '' TERM; while :; do sleep 1; done"), "true")
    assert "it is not ready within 1 s" in fails(made)


def test_the_containers_user_gets_its_side_of_the_fifos(
    rig: Rig, host: Host, program: Callable[..., str]
) -> None:
    uri = program("exec 5>&-", COPY)
    options = pack(runc_pb2.Options(io_uid=1234, io_gid=5678))
    made = Job(rig, "init", "true", options=options)
    made.streams |= {"stdout": uri, "stderr": uri}
    made.begin()
    # The group: the OCI runtime gives the streams to the user that the process runs as.
    argv = ["sh", "-c", "cd /run/sdshim/t/default/box/*; stat -c '%n %g' out err ready"]
    assert host.run(argv).stdout.splitlines() == ["out 5678", "err 5678", "ready 0"]


# --- the end


@both
def test_a_slow_logger_gets_every_last_byte(
    rig: Rig, home: Path, program: Callable[..., str], where: str
) -> None:
    uri = program("exec 5>&-; trap '' TERM; sleep 2", COPY)
    made = job(rig, where, uri, "sh", "-c", "head -c 60000 /dev/zero; echo last")
    assert made.run() == 0
    made.call("Delete")
    data = (home / "out").read_bytes()
    assert len(data) == 60005
    assert data.endswith(b"last\n")


@pytest.fixture
def short_stop(host: Host) -> Iterator[None]:
    """SIGKILL comes 1 s after SIGTERM: loggers have the drop-ins of their namespace too."""
    folder = host.path("/etc/systemd/system/sdshim-default-.service.d")
    folder.mkdir(parents=True)
    (folder / "stop.conf").write_text("[Service]\nTimeoutStopSec=1\n")
    host.run(["systemctl", "daemon-reload"])
    yield
    (folder / "stop.conf").unlink()
    folder.rmdir()
    host.run(["systemctl", "daemon-reload"])


@pytest.mark.usefixtures("short_stop")
@pytest.mark.parametrize(
    ("trap", "left"), [(f"echo bye >{HOME}/end; exit", "bye\n"), ("", "")], ids=["ends", "ignores"]
)
def test_a_logger_that_does_not_end_by_itself_is_stopped(
    rig: Rig, home: Path, program: Callable[..., str], trap: str, left: str
) -> None:
    (home / "end").touch()
    uri = program(f"trap '{trap}' TERM", "exec 5>&-; while :; do sleep 0.1; done")
    made = job(rig, "init", uri, "echo", "never read")
    made.run()
    made.call("Delete")
    assert (home / "end").read_text() == left


@both
def test_a_logger_that_dies_is_no_broken_pipe(
    rig: Rig, home: Path, host: Host, program: Callable[..., str], where: str
) -> None:
    uri = program("exec 5>&-", f"exec cat <&3 >>{HOME}/out")
    made = job(rig, where, uri, "sh", "-c", "echo 1; read x; echo 2 && exit 6")
    made.fifos("stdin")
    made.start()
    _until(home, ["1"])
    host.run(["systemctl", "kill", "-s", "KILL", made.logger])
    eventually(lambda: _state(host, made.logger) == "failed", "a failed unit")
    made.stdin.write_text("go on\n")
    assert made.wait() == 6
    made.call("Delete")
    assert not _state(host, made.logger)


def test_a_logger_that_has_died_can_be_started_again(
    rig: Rig, home: Path, host: Host, program: Callable[..., str]
) -> None:
    uri = program("exec 5>&-", f"exec cat <&3 >>{HOME}/out")
    made = job(rig, "init", uri, "sh", "-c", "echo 1; read x; echo 2")
    made.fifos("stdin")
    made.start()
    _until(home, ["1"])
    host.run(["systemctl", "kill", "-s", "KILL", made.logger])
    eventually(lambda: _state(host, made.logger) == "failed", "a failed unit")
    host.run(["systemctl", "start", made.logger])
    made.stdin.write_text("go on\n")
    assert made.wait() == 0
    made.call("Delete")
    assert _lines(home / "out") == ["1", "2"]


def _until(home: Path, lines: list[str]) -> None:
    path = home / "out"
    eventually(lambda: path.exists() and _lines(path) == lines, f"{lines} from the logger")


def _state(host: Host, unit: str) -> str:
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", unit]
    words = host.run(argv).stdout.split()
    return words[2] if words else ""


@both
def test_a_daemon_killed_at_every_step_changes_nothing(
    rig: Rig, home: Path, host: Host, program: Callable[..., str], where: str
) -> None:
    made = job(
        rig, where, program("exec 5>&-", COPY), "sh", "-c", "echo 1; sleep 1; echo 2; exit 9"
    )
    made.begin()
    kill_daemon(host)
    made.go()
    kill_daemon(host)
    end = made.rig.begin("Wait", **made.fields)
    kill_daemon(host)
    assert end.result(15).exit_status == 9
    kill_daemon(host)
    made.call("Delete")
    assert (home / "out").read_text() == "1\n2\n"


@both
def test_a_daemon_killed_while_it_waits_for_a_logger_goes_on(
    rig: Rig, home: Path, host: Host, program: Callable[..., str], where: str
) -> None:
    """The byte that the logger wrote meanwhile is heard by the next daemon, once started."""
    uri = program(f"echo run >>{HOME}/runs; sleep 0.5; printf x >&5; exec 5>&-", COPY)
    made = job(rig, where, uri, "echo", "hi")
    method, fields = made.first()
    begun = rig.begin(method, **fields)
    eventually(lambda: (home / "runs").exists(), "the logger's start")
    kill_daemon(host)
    begun.result(15)
    made.go()
    assert made.wait() == 0
    made.call("Delete")
    assert (home / "out").read_text() == "hi\n"
    assert (home / "runs").read_text() == "run\n"


@pytest.fixture
def no_daemon(host: Host) -> Iterator[Callable[[], None]]:
    """End the daemon for the rest of the test."""
    units = ["sdshim.socket", "sdshim.service"]

    def end() -> None:
        host.run(["systemctl", "stop", *units])

    yield end
    host.run(["systemctl", "start", *units])


def test_the_launchers_delete_ends_loggers_without_a_daemon(
    rig: Rig, host: Host, program: Callable[..., str], no_daemon: Callable[[], None]
) -> None:
    uri = program("exec 5>&-; trap exit TERM; while :; do sleep 0.1; done")
    made = job(rig, "exec", uri, "sleep", "1000")
    made.begin()
    other = rig.bundle("other", "sleep", "1000")
    rig.call("Create", id="other", bundle=other.path, stdout=uri, stderr=uri)
    no_daemon()
    rig.give_up(rig._bundles[0])
    over = ("", "inactive", "failed")
    eventually(lambda: _state(host, made.logger) in over, "the end of the logger of the exec")
    assert _state(host, "sdshim-default-other::log.service") == "active"
    rig.give_up(other)
    eventually(lambda: _state(host, "sdshim-default-other::log.service") in over, "the other's end")


# --- ctr


def test_ctr_run_with_log_uris(ctr: Ctr, home: Path, program: Callable[..., str]) -> None:
    """The second is what nerdctl writes for `run -d`."""
    for number, uri in enumerate(
        (f"file://{HOME}/out", program("exec 5>&-", COPY, query="_NERDCTL_INTERNAL_LOGGING=%2Fx"))
    ):
        done = ctr.run(
            f"log-{number}", "sh", "-c", "echo a; exit 5", options=["--rm", "--log-uri", uri]
        )
        assert (done.returncode, done.stdout) == (5, ""), done.stderr
        assert (home / "out").read_text() == "a\n"
        (home / "out").unlink()


def test_ctr_exec_with_a_log_uri(ctr: Ctr, home: Path) -> None:
    ctr.start("box", "sleep", "1000")
    try:
        uri = f"file://{HOME}/out"
        argv = [
            "task",
            "exec",
            "--exec-id",
            "e",
            "--log-uri",
            uri,
            "box",
            "sh",
            "-c",
            "echo hi; exit 4",
        ]
        assert ctr.call(*argv, check=False).returncode == 4
        assert (home / "out").read_text() == "hi\n"
    finally:
        ctr.remove("box")


def test_the_users_of_ctr_are_told_why(ctr: Ctr, home: Path) -> None:
    done = ctr.run("nope", "true", options=["--log-uri", f"binary://{HOME}/nope"])
    assert done.returncode != 0
    assert f"failed to start binary process: fork/exec {HOME}/nope: no such file" in done.stderr
    ctr.remove("nope")
