"""Docker beside systemd: its containers as units, their limits, restarts of either daemon."""

from __future__ import annotations

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import kill_daemon, restart_daemon
from tests.system.docker import dockerd
from tests.system.docker.dockerd import (
    FOREVER,
    NAMED,
    OPTIONS,
    OPTIONS_FILE,
    WITH_OPTIONS,
    Docker,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.roots("trixie", "forky"), pytest.mark.timeout(120)]

MIB = 1 << 20
LIMITS = ("memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.cfs_quota_us")


# --- units --------------------------------------------------------------------------------------


def _shown(docker: Docker, name: str, *properties: str) -> list[str]:
    unit = docker.unit(name)
    return [
        docker.host.run(["systemctl", "show", "-P", one, unit]).stdout.strip() for one in properties
    ]


def test_a_container_is_a_unit_that_systemctl_can_stop(docker: Docker) -> None:
    docker.start("c1", f"trap 'exit 4' TERM; {FOREVER}")
    docker.until_logged("c1", "ready")
    pid = str(docker.state("c1")["Pid"])
    assert _shown(docker, "c1", "MainPID", "Slice") == [pid, "sdshim-moby.slice"]
    assert pid in docker.host.run(["systemctl", "status", docker.unit("c1")]).stdout
    docker.host.run(["systemctl", "stop", docker.unit("c1")])
    assert docker.wait("c1") == 4


def test_the_two_cgroup_drivers_and_a_parent(docker: Docker) -> None:
    docker.start("c1", FOREVER, "--cgroup-parent=/mine")
    assert "/mine/" in docker.exec("c1", "cat", "/proc/1/cgroup").stdout or (
        docker.host.cgroup == "v2"  # a cgroup namespace of its own
    )
    docker.clear()
    dockerd.configure(docker.host, driver="systemd")
    docker.host.run(["systemctl", "restart", "docker"])
    try:
        docker.start("c1", FOREVER)
        docker.start("c2", FOREVER, "--cgroup-parent=mine-all.slice")
        assert _shown(docker, "c1", "Slice") == ["system.slice"]
        pid = docker.state("c2")["Pid"]
        (group,) = _shown(docker, "c2", "ControlGroup")
        assert group == f"/mine.slice/mine-all.slice/{docker.unit('c2')}"
        assert f"{group}/container" in docker.host.run(["cat", f"/proc/{pid}/cgroup"]).stdout
        docker.clear()
    finally:
        dockerd.configure(docker.host)
        docker.host.run(["systemctl", "restart", "docker"])
        docker.host.run(["systemctl", "stop", "mine.slice"])


def test_runtimes_of_daemon_json_with_and_without_options(host: Host) -> None:
    docker = Docker(host, NAMED)
    try:
        assert docker.run("echo", "plain").stdout == "plain\n"
        docker = Docker(host, WITH_OPTIONS)
        docker.start("c1", FOREVER)
        weight, line = _shown(docker, "c1", "CPUWeight", "ExecStart")
        assert (weight, "/usr/local/bin/told" in line) == ("50", True)
        host.path(OPTIONS_FILE).write_text("oci_runtime = 7\n")
        done = docker.run("true")
        assert done.returncode == 125
        assert f"file '{OPTIONS_FILE}': oci_runtime must be text, not 7" in done.stderr
    finally:
        host.path(OPTIONS_FILE).write_text(OPTIONS)
        docker.clear()


# --- limits -------------------------------------------------------------------------------------


def _limits(docker: Docker, name: str) -> list[str]:
    """Memory, pids and cpu quota that the container sees for itself."""
    files = [f"/sys/fs/cgroup/{file}" for file in LIMITS]
    return docker.exec(name, "cat", *files).stdout.split()


@pytest.mark.cgroup("v1")
def test_limits_and_their_update(docker: Docker) -> None:
    properties = ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec")
    docker.start("c1", FOREVER, "--memory=64m", "--pids-limit=40", "--cpus=0.5")
    assert _limits(docker, "c1") == [str(64 * MIB), "40", "50000"]
    assert _shown(docker, "c1", *properties) == [str(64 * MIB), "40", "500ms"]
    new = ["--memory=96m", "--memory-swap=96m", "--pids-limit=50", "--cpus=0.7"]
    docker.call("update", *new, "c1")
    assert _limits(docker, "c1") == [str(96 * MIB), "50", "70000"]
    assert _shown(docker, "c1", *properties) == [str(96 * MIB), "50", "700ms"]


@pytest.mark.cgroup("v1")
def test_six_mebibytes_are_enough_for_a_small_program(docker: Docker) -> None:
    """Docker's least; runc before 1.2 copies 11 MB of itself when it makes a container."""
    for _ in range(3):
        done = docker.run("echo", "hi", options=["--memory=6m"])
        assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr


@pytest.mark.cgroup("v1")
def test_a_limit_of_processes(docker: Docker) -> None:
    script = "for i in 1 2 3 4 5 6 7; do sleep 1000 & done; wait"
    done = docker.run("sh", "-c", script, options=["--pids-limit=5"])
    assert "can't fork: Resource temporarily unavailable" in done.stderr
    assert done.returncode == 2


@pytest.mark.cgroup("v1")
def test_an_out_of_memory_kill_is_told(either: Docker) -> None:
    memory = ["--memory=20m", "--memory-swap=20m"]
    either.start("c1", "exec tail /dev/zero", *memory)
    assert either.wait("c1") == 137
    assert either.state("c1")["OOMKilled"]
    either.start("c2", "tail /dev/zero; exit 3", *memory)
    assert either.wait("c2") == 3


def test_statistics(docker: Docker) -> None:
    limit = docker.host.cgroup == "v1"
    docker.start("c1", FOREVER, *(["--memory=64m"] if limit else []))
    docker.until_logged("c1", "ready")
    shown = docker.says("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}")
    name, used, _, most, pids = shown.split()
    if limit:
        assert (name, most) == ("c1", "64MiB")
        assert float(re.sub("[KM]iB$", "", used)) > 0
        assert int(pids) >= 1


# --- restarts -----------------------------------------------------------------------------------


def _stop(host: Host) -> None:
    host.run(["systemctl", "stop", "docker.service", "docker.socket"])


def _kill(host: Host) -> None:
    # Nothing starts it again before the test does.
    host.run(["systemctl", "mask", "--runtime", "docker.service"])
    host.run(["systemctl", "kill", "--signal=KILL", "docker.service"])
    host.run(["systemctl", "stop", "docker.service", "docker.socket"])
    host.run(["systemctl", "unmask", "--runtime", "docker.service"])


@pytest.mark.parametrize("end", [_stop, _kill], ids=["stopped", "killed"])
def test_containers_run_on_without_dockerd(docker: Docker, end: Callable[[Host], None]) -> None:
    host = docker.host
    docker.start("runs", FOREVER)
    docker.start("ends", "until [ -e /go ]; do sleep 0.05; done; exit 5")
    docker.start("again", "until [ -e /go ]; do sleep 0.05; done; exit 6", "--restart=on-failure:1")
    pids = [str(docker.state(name)["Pid"]) for name in ("runs", "ends", "again")]
    end(host)
    for pid in pids[1:]:
        script = f"touch /proc/{pid}/root/go; tail --pid={pid} -s 0.05 -f /dev/null"
        host.run(["sh", "-c", script])
    host.run(["systemctl", "start", "docker.service"])
    assert docker.wait("ends") == 5
    assert docker.wait("again") == 6
    assert docker.says("inspect", "-f", "{{.RestartCount}}", "again") == "1"
    assert str(docker.state("runs")["Pid"]) == pids[0]
    assert docker.exec("runs", "echo", "fine").stdout == "fine\n"
    docker.call("stop", "--time=0", "runs")
    assert docker.state("runs")["ExitCode"] == 137


def test_a_run_outlives_the_daemon_of_ours(docker: Docker) -> None:
    script = "echo ready; read word; echo $word; exit 8"
    argv = docker.run_argv("sh", "-c", script, options=["--rm", "-i", "--name", "c1"])
    command = shlex.join(["docker", *argv])
    gate = "until docker exec c1 true; do sleep 0.05; done; touch /tmp/up; "
    gate += "until [ -e /tmp/go ]; do sleep 0.05; done; echo late"
    whole = ["bash", "-c", f"{{ {gate}; }} 2>/dev/null | {command}"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(docker.host.run, whole, check=False, timeout=60)
        docker.host.run(["sh", "-c", "until [ -e /tmp/up ]; do sleep 0.05; done"])
        for end in (kill_daemon, restart_daemon):
            assert end(docker.host)
            assert docker.exec("c1", "true").returncode == 0
        docker.host.path("/tmp/go").touch()
        done = running.result()
    docker.host.run(["rm", "/tmp/go", "/tmp/up"])
    assert (done.returncode, done.stdout) == (8, "ready\nlate\n")
