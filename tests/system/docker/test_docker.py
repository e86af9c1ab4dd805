"""Docker with this runtime: what its users do, and the answers that the stock runtime gives.

`either` runs a test with both runtimes: the same words hold for both.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import kill_daemon, restart_daemon
from tests.system.client import RUNTIME
from tests.system.docker.dockerd import FOREVER, STOCK, Docker

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.roots("trixie", "forky"), pytest.mark.timeout(120)]

DETACH = b"\x10\x11"  # Ctrl-P Ctrl-Q


# --- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("true", 0),
        ("exit 7", 7),
        ("sh -c 'kill -9 $$'; exit $?", 137),
    ],
)
def test_run_prints_the_output_and_ends_as_the_container(
    either: Docker, script: str, status: int
) -> None:
    done = either.run("sh", "-c", f"echo hello; {script}")
    assert (done.returncode, done.stdout) == (status, "hello\n")


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        ("/nosuch", 127, 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
        ("/etc", 126, 'exec: "/etc": is a directory'),
    ],
)
def test_a_program_that_cannot_be_run_is_told_by_126_and_127(
    either: Docker, program: str, status: int, text: str
) -> None:
    done = either.run(program)
    assert done.returncode == status
    assert "failed to create shim task: OCI runtime create failed: " in done.stderr
    assert text in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-v", "/tmp:/etc/passwd/x"], "not a directory"),
        (["--nosuch"], "unknown flag: --nosuch"),
        (["--runtime", "io.containerd.nosuch.v1"], 'binary not installed "containerd-shim-nosuch'),
    ],
)
def test_what_keeps_a_container_from_being_made_is_told_by_125(
    either: Docker, options: list[str], text: str
) -> None:
    done = either.run("true", options=options)
    assert done.returncode == 125
    assert text in done.stderr


def test_megabytes_go_in_and_come_out(docker: Docker) -> None:
    size = 3_000_000
    done = docker.run("tee", "/dev/stderr", options=["-i"], input="x" * size)
    assert (len(done.stdout), len(done.stderr), done.returncode) == (size, size, 0)


def test_a_child_in_the_background_does_not_hold_back_the_end(docker: Docker) -> None:
    docker.start("c1", "sleep 1000 & exit 3")
    assert docker.wait("c1") == 3


def test_many_at_once(docker: Docker) -> None:
    def life(number: int) -> tuple[int, str]:
        done = docker.run("sh", "-c", f"echo {number}; exit {number}", timeout=60)
        return done.returncode, done.stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(life, range(16))) == [(n, f"{n}\n") for n in range(16)]


# What stands in a process's own files: signals, capabilities, limits, groups.
_PROCESS = "grep -E '^(Sig(Blk|Ign)|Cap|NoNew|Seccomp:|Groups|Umask)' /proc/self/status; ulimit -a"
SAME = {
    "a process": ([], f"{_PROCESS}; cat /proc/self/oom_score_adj; ip -o link"),
    "hardened": (["--cap-drop=ALL", "--security-opt=no-new-privileges"], _PROCESS),
    "unconfined": (["--security-opt=seccomp=unconfined"], _PROCESS),
    "privileged": (["--privileged"], f"{_PROCESS}; ls /dev | wc -l"),
    "limits": (["--ulimit=nofile=77", "--oom-score-adj=100"], "ulimit -n; cat /proc/self/oom_*"),
    "an init": (["--init", "--cgroupns=private"], "cat /proc/1/comm /proc/self/cgroup"),
    "the host's": (
        ["--pid=host", "--network=host"],
        "cat /proc/1/comm; hostname; ip -o link show lo",
    ),
    "read-only": (["--read-only", "--tmpfs=/t"], "touch /t/x /x; echo $?"),
    "a user": (["--user=app"], "id; touch /x"),
    "a number as user": (["--user=33:44", "--group-add=55"], "id"),
    "mounts": (
        ["--device=/dev/fuse", "--shm-size=1m", "-v", "/tmp:/v:ro"],
        "ls /dev; df -k /dev/shm | tail -1; touch /v/x",
    ),
    "environment": (
        ["-eA=b c", "-w/usr", "--hostname=hh", "--sysctl=kernel.msgmax=9000"],
        "env | sort; pwd; hostname; cat /etc/hosts; sysctl -n kernel.msgmax",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_inside_it_is_as_with_the_stock_runtime(host: Host, name: str) -> None:
    options, script = SAME[name]

    def inside(runtime: str) -> tuple[int, str, str]:
        done = Docker(host, runtime).run("sh", "-c", script, options=options)
        return done.returncode, done.stdout, done.stderr

    ours = inside(RUNTIME)
    assert ours == inside(STOCK)
    assert ours[1]


# --- exec ---------------------------------------------------------------------------------------

EXECS = {
    "status": ([], ["sh", "-c", "echo out; exit 9"]),
    "a user": (["--user=app"], ["id"]),
    "environment": (["-eA=b", "-w/usr"], ["sh", "-c", "echo $A; pwd"]),
    "privileged": (["--privileged"], ["grep", "CapEff", "/proc/self/status"]),
    "a process": ([], ["sh", "-c", _PROCESS]),
}
NO_EXECS = {
    "not in path": ([], ["nosuch"]),
    "missing": ([], ["/nosuch"]),
    "not executable": ([], ["/etc/passwd"]),
    "no folder": (["-w/nosuch"], ["pwd"]),
    "no user": (["--user=nosuch"], ["true"]),
}


def test_exec_answers_as_with_the_stock_runtime(host: Host) -> None:
    answers = {}
    for runtime in (RUNTIME, STOCK):
        docker = Docker(host, runtime)
        docker.start("c1", FOREVER)
        done = {
            name: docker.exec("c1", *command, options=options)
            for name, (options, command) in {**EXECS, **NO_EXECS}.items()
        }
        docker.clear()
        codes = {name: one.returncode for name, one in done.items()}
        answers[runtime] = (codes, {name: done[name].stdout for name in EXECS})
        assert codes["status"] == 9
        assert {codes[name] for name in ("not in path", "not executable")} <= {126, 127}
        assert 'exec: "nosuch": executable file not found' in done["not in path"].stdout
    assert answers[RUNTIME] == answers[STOCK]


def test_exec_reads_its_input_and_may_be_left_alone(either: Docker) -> None:
    either.start("c1", "echo ready; until [ -e /go ]; do sleep 0.05; done; exit 4")
    assert (
        either.exec("c1", "wc", "-c", options=["-i"], input="x" * 1_000_000).stdout == "1000000\n"
    )
    either.exec("c1", "touch", "/go", options=["--detach"])
    assert either.wait("c1") == 4
    gone = either.exec("c1", "true")
    assert (gone.returncode, "is not running" in gone.stderr) == (1, True)


def test_a_health_check_is_an_exec_now_and_then(docker: Docker) -> None:
    check = ["--health-cmd", "test -e /ok", "--health-interval=100ms", "--health-retries=1"]
    since = str(time.time())
    docker.start("c1", FOREVER, *check)
    seen = []
    # Docker sends each change of the health as an event.
    with docker.follow("events", "--since", since, "--filter", "event=health_status") as lines:
        for line in lines:
            seen.append("unhealthy" not in line)
            if len(seen) == 2:
                break
            docker.exec("c1", "touch", "/ok")
    assert seen == [False, True]
    assert docker.state("c1")["Health"]["Log"][-1]["ExitCode"] == 0


# --- the life of a container --------------------------------------------------------------------


def test_its_end_and_its_output_stay_to_be_read(docker: Docker) -> None:
    docker.start("c1", "echo out; echo err >&2; exit 3")
    assert docker.wait("c1") == 3
    logs = docker.call("logs", "c1")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    state = docker.state("c1")
    found = [state[key] for key in ("Status", "ExitCode", "OOMKilled", "Pid", "Error")]
    assert found == ["exited", 3, False, 0, ""]
    assert docker.call("start", "--attach", "c1", check=False).returncode == 3
    assert docker.says("logs", "c1") == "out\nout"


@pytest.mark.parametrize(
    ("script", "options", "status"),
    [
        ("trap 'exit 5' TERM", [], 5),
        ("trap 'exit 6' USR1", ["--stop-signal=USR1"], 6),
        ("trap '' TERM", ["--stop-timeout=1"], 137),
    ],
)
def test_stop_asks_and_then_kills(
    either: Docker, script: str, options: list[str], status: int
) -> None:
    either.start("c1", f"{script}; {FOREVER}", *options)
    either.until_logged("c1", "ready")
    either.call("stop", "c1")
    assert either.state("c1")["ExitCode"] == status


def test_kill_sends_what_it_is_told(either: Docker) -> None:
    either.start("c1", f"trap 'echo usr1' USR1; {FOREVER}")
    either.until_logged("c1", "ready")
    either.call("kill", "--signal=USR1", "c1")
    either.until_logged("c1", "usr1")
    either.call("kill", "c1")
    assert either.wait("c1") == 137
    refused = either.call("kill", "c1", check=False)
    assert (refused.returncode, "is not running" in refused.stderr) == (1, True)


def test_restart_and_start_run_it_again(docker: Docker) -> None:
    docker.start("c1", FOREVER)
    docker.until_logged("c1", "ready")
    docker.call("restart", "--time=0", "c1")
    assert docker.exec("c1", "echo", "fine").stdout == "fine\n"
    docker.call("kill", "c1")
    docker.call("start", "c1")
    assert docker.exec("c1", "echo", "fine").stdout == "fine\n"


def test_a_restart_policy(docker: Docker) -> None:
    since = str(time.time())
    docker.start("c1", "echo again; exit 3", "--restart=on-failure:2")
    with docker.follow("events", "--since", since, "--filter", "event=die") as lines:
        dead = [next(lines) for _ in range(3)]
    assert all("exitCode=3" in line for line in dead)
    assert docker.wait("c1") == 3
    assert docker.says("inspect", "-f", "{{.RestartCount}}", "c1") == "2"
    assert docker.says("logs", "c1") == "again\nagain\nagain"


def test_pause_and_unpause(docker: Docker) -> None:
    docker.start("c1", FOREVER)
    docker.call("pause", "c1")
    assert docker.state("c1")["Status"] == "paused"
    refused = docker.exec("c1", "true")
    assert (refused.returncode, "is paused" in refused.stderr) == (1, True)
    docker.call("unpause", "c1")
    assert docker.exec("c1", "echo", "fine").stdout == "fine\n"
    docker.call("pause", "c1")
    docker.call("kill", "c1")
    assert docker.wait("c1") == 137


def test_top_lists_execs_too(docker: Docker) -> None:
    docker.start("c1", "echo ready; exec sleep 1001")
    docker.until_logged("c1", "ready")
    docker.exec("c1", "sh", "-c", "touch /up; exec sleep 1002", options=["--detach"])
    docker.exec("c1", "sh", "-c", "until grep -q 1002 /proc/[0-9]*/cmdline; do sleep 0.05; done")
    found = docker.says("top", "c1", "-o", "pid,args").splitlines()
    assert sorted(line.split(None, 1)[1] for line in found[1:]) == ["sleep 1001", "sleep 1002"]


def test_files_are_copied_in_and_out(docker: Docker) -> None:
    docker.start("c1", FOREVER)
    docker.call("cp", "/etc/hostname", "c1:/tmp/in")
    assert docker.exec("c1", "cat", "/tmp/in").stdout == docker.host.run(["hostname"]).stdout
    docker.call("cp", "c1:/etc/group", "/tmp/out")
    assert "alice" in docker.host.path("/tmp/out").read_text()


def test_the_bridge_and_a_published_port(docker: Docker) -> None:
    page = "mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w"
    docker.start("web", page, "--network=bridge", "--publish=127.0.0.1:8081:80")
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    ask = "until wget -qO- http://{}/; do sleep 0.05; done"
    fetch = ["sh", "-c", ask.format(docker.says("inspect", "-f", address, "web"))]
    assert docker.run(*fetch, options=["--network=bridge"]).stdout == "page\n"
    outside = ["busybox", "sh", "-c", ask.format("127.0.0.1:8081")]
    assert docker.host.run(outside).stdout == "page\n"


# --- terminals ----------------------------------------------------------------------------------


def test_a_terminal_outlives_a_restart_of_the_daemon_and_can_be_left(docker: Docker) -> None:
    with docker.screen(*docker.run_argv("sh", options=["-it", "--name", "tty"])) as screen:
        screen.until(b"# ")
        screen.type(b"stty size; echo on''e\n")
        assert b"30 100" in screen.until(b"one")
        for end in (restart_daemon, kill_daemon):
            assert end(docker.host)
            screen.type(b"echo tw''o\n")
            screen.until(b"two")
        screen.resize(77, 22)
        screen.type(b"until [ \"$(stty size)\" = '22 77' ]; do sleep 0.05; done; echo thr''ee\n")
        screen.until(b"three")
        screen.type(DETACH)
        assert screen.end() == 0
    assert docker.state("tty")["Status"] == "running"
    with docker.screen("attach", "tty") as screen:
        screen.type(b"echo fo''ur; exit 9\n")
        screen.until(b"four")
        assert screen.end() == 9
    assert docker.wait("tty") == 9


def test_exec_on_a_terminal(docker: Docker) -> None:
    docker.start("c1", FOREVER)
    with docker.screen("exec", "-it", "c1", "sh") as screen:
        screen.until(b"# ")
        screen.type(b"tty; stty size; exit 5\n")
        assert b"/dev/pts/" in screen.until(b"30 100")
        assert screen.end() == 5
    with docker.screen("exec", "-it", "c1", "cat") as screen:
        screen.type(b"hello\n")
        screen.until(b"hello\r\n")  # the terminal's echo
        screen.until(b"hello\r\n")
        screen.type(b"\x03")
        assert screen.end() == 130
