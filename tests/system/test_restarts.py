"""Restarts around running containers: containerd's, the daemon's, and of all but the kernel.

Restarts under load are counted by `make fault` (tests/fault/storm.py); what the manager's own verbs
and a restart of the bus do to operations in flight is in test_verbs.py.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from sdshim.pb import options_pb2, task_types_pb2
from sdshim.pb.wellknown import pack
from tests.host import HostError, guest
from tests.system.client import Ctr, events
from tests.system.conftest import booted
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

RUNNING = task_types_pb2.RUNNING
WAITS = "until [ -e /go ]; do sleep 0.01; done;"


def _pid(ctr: Ctr, task: str) -> str:
    lines = ctr.call("task", "ls").stdout.splitlines()[1:]
    return next(line.split()[1] for line in lines if line.split()[0] == task)


def _kill_containerd(host: Host) -> None:
    """SIGKILL; it does not come back by itself."""
    host.run(["systemctl", "kill", "--signal=KILL", "containerd"])
    state = ["systemctl", "show", "-P", "ActiveState", "containerd"]
    eventually(lambda: host.run(state).stdout.strip() != "active", "containerd is dead")
    host.run(["systemctl", "stop", "containerd"])


# --- containerd


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_restart_of_containerd_keeps_running_and_stopped_tasks_and_execs(
    ctr: Ctr, killed: bool
) -> None:
    host = ctr.host
    ctr.start("runs", "sleep", "1000")
    ctr.start("stopped", "sh", "-c", "exit 5")
    ctr.start("stopping", "sh", "-c", f"{WAITS} exit 6")
    # ctr leaves the FIFOs of an exec that it does not wait for
    exec_ = ("task", "exec", "--detach", "--fifo-dir", "/tmp/fifos", "--exec-id")
    ctr.call(*exec_, "lives", "runs", "sleep", "1000")
    ctr.call(*exec_, "over", "runs", "sh", "-c", "exit 4")
    try:
        ctr.await_status("stopped", "STOPPED")
        pid = _pid(ctr, "stopping")
        if killed:
            _kill_containerd(host)
        else:
            host.run(["systemctl", "stop", "containerd"])
        # It ends while containerd is away.
        host.run(["sh", "-c", f"touch /proc/{pid}/root/go; tail --pid={pid} -s 0.05 -f /dev/null"])
        host.run(["systemctl", "start", "containerd"])
        assert ctr.status("runs") == "RUNNING"
        ctr.await_status("stopping", "STOPPED")
        if host.containerd_version >= (1, 7):
            assert ctr.status("stopped") == "STOPPED"
        assert ctr.delete("stopping") == 6
        assert ctr.delete("stopped") == 5
        with events(host) as seen:
            kill = ("task", "kill", "-s", "SIGKILL")
            ctr.call(*kill, "--exec-id", "lives", "runs")
            seen.read(
                lambda: any(body.get("id") == "lives" for body in seen.bodies("exit", "runs")),
                20,
                "exit of the exec",
            )
            ended = {
                name: ctr.call("task", "rm", "--exec-id", name, "runs", check=False).returncode
                for name in ("lives", "over")
            }
            assert ended == {"lives": 137, "over": 4}  # which ctr ends with itself
            ctr.call(*kill, "runs")
            seen.read(lambda: len(seen.bodies("exit", "runs")) == 2, 20, "exit of the container")
        assert ctr.delete("runs") == 137
    finally:
        ctr.remove("runs", "stopped", "stopping")
        host.run(["rm", "-rf", "/tmp/fifos"])


@pytest.mark.parametrize("daemon_dies", [False, True], ids=["daemon lives", "daemon dies"])
def test_what_happens_while_containerd_is_away_is_told_once_when_it_is_back(
    rig: Rig, host: Host, daemon_dies: bool
) -> None:
    """Of containers that run on, end and are deleted meanwhile, each event once and in order."""
    rig.running("runs")
    rig.created("starts", "sh", "-c", "exit 3")
    rig.running("ends", "sleep", "1000")
    for id_, last in (("runs", "start"), ("starts", "create"), ("ends", "start")):
        rig.events.until(id_, last)
    rig.do(rig.events.stop())
    rig.call("Start", id="starts")
    assert rig.call("Wait", id="starts").exit_status == 3
    rig.call("Delete", id="starts")
    rig.call("Kill", id="ends", signal=9)
    assert rig.call("Wait", id="ends").exit_status == 137
    if daemon_dies:
        pid = rig.daemon_pid()
        host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "sdshim.service"])
        eventually(lambda: rig.daemon_pid() not in (0, pid), "the next daemon")
    assert rig.call("State", id="runs").status == RUNNING
    rig.do(rig.events.come_back())
    rig.events.until("starts", "delete", timeout=30)
    rig.events.until("ends", "exit", timeout=30)
    rig.call("Kill", id="runs", signal=9)
    rig.events.until("runs", "exit")
    assert rig.events.of("starts") == ["create", "start", "exit", "delete"]
    assert rig.events.of("ends") == ["create", "start", "exit"]
    assert rig.events.of("runs") == ["create", "start", "exit"]


# --- while a container is being stopped


def test_a_container_that_waits_out_its_stop_holds_back_neither_daemon_nor_containerd(
    rig: Rig, host: Host
) -> None:
    """No ordering dependency: their starts have nothing to wait for."""
    bundle = rig.bundle("box", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    options = pack(options_pb2.Options(unit_properties={"TimeoutStopSec": "10min"}))
    rig.call("Create", id="box", bundle=bundle.path, stdout=bundle.fifo("stdout"), options=options)
    rig.call("Start", id="box")
    end = rig.begin("Wait", id="box")
    assert bundle.read_line("stdout") == b"up\n"
    unit = "sdshim-default-box.service"
    stop = host.popen(["systemctl", "stop", unit], stdin=subprocess.DEVNULL)

    def state() -> str:
        return host.run(["systemctl", "show", "-P", "ActiveState", unit]).stdout.strip()

    eventually(lambda: state() == "deactivating", "it is being stopped")
    for service in ("sdshim.service", "containerd.service"):
        host.run(["systemctl", "restart", service])
        host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", service])
        host.run(["systemctl", "restart", service])
        assert host.run(["systemctl", "is-active", service]).stdout.strip() == "active"
        assert rig.call("State", id="box").status == RUNNING
        assert state() == "deactivating"
    host.run(["ctr", "version"])
    assert stop.poll() is None
    assert not end.done()
    rig.call("Kill", id="box", signal=9)
    assert end.result(10).exit_status == 137
    assert stop.wait(10) == 0
    assert rig.call("Delete", id="box").exit_status == 137
    rig.events.until("box", "delete")
    assert rig.events.of("box") == ["create", "start", "exit", "delete"]


# --- all but the kernel


def _asked(host: Host, *words: str) -> str:
    """What systemctl says; nothing when it was cut off: a question that PID 1 has taken before it
    executes itself anew is answered by nobody, and systemctl waits on."""
    try:
        return host.run(["systemctl", *words], check=False, timeout=5).stdout.strip()
    except HostError:
        return ""


def _soft_reboots(host: Host) -> int:
    return int(_asked(host, "show", "-P", "SoftRebootsCount") or 0)


@pytest.mark.roots("trixie", "forky")  # systemd 254 and newer
@pytest.mark.cgroup("v2")
def test_a_soft_reboot_stops_containers_in_order_and_leaves_nothing_stale(host: Host) -> None:
    """What has ended before it or by it is kept for containerd, which finds it with its end."""
    name = f"{host.root.name}/{host.cgroup}"
    with booted(name, images=None, containerd_config=_kept) as other:
        ctr = Ctr(other)
        tell = "trap 'sleep 0.3; exit 3' TERM; echo >/set; while :; do sleep 0.01; done"
        ctr.start("stops", "sh", "-c", tell)
        ctr.start("before", "sh", "-c", "exit 5")
        ctr.await_status("before", "STOPPED")
        set_ = other.path(f"/proc/{_pid(ctr, 'stops')}/root/set")
        eventually(set_.exists, "its trap is set")
        # PID 1 ends what comes from outside as well: do not wait.
        target = ["soft-reboot.target", "--job-mode=replace-irreversibly"]
        other.run(["systemctl", "--no-block", "start", *target])
        eventually(lambda: _soft_reboots(other) == 1, "it is up again", timeout=60)
        # Not `running`: what ended with 3 and 5 are failed units until they are deleted.
        up = ("running", "degraded")
        eventually(lambda: _asked(other, "is-system-running") in up, "all is started", timeout=60)
        assert ctr.status("stops") == ctr.status("before") == "STOPPED"
        log = ["journalctl", "-u", "sdshim", "-o", "json", "--output-fields=MESSAGE", "--no-pager"]
        lines = [json.loads(line)["MESSAGE"] for line in other.run(log).stdout.splitlines()]
        told = next(
            n for n, text in enumerate(lines) if "default/stops exited with status 3" in text
        )
        stopped = next(n for n, text in enumerate(lines) if text.startswith("Stopping sdshim"))
        assert told < stopped
        assert ctr.run("after", "sh", "-c", "exit 4").returncode == 4
        assert ctr.delete("stops") == 3
        assert ctr.delete("before") == 5
        ctr.call("container", "rm", "stops", "before")
        assert not other.run(["sdshim", "doctor"]).stdout
        assert not other.leftovers(wait=5)


def _kept(version: tuple[int, ...]) -> str:
    """containerd's metadata where they outlive a soft reboot; the test host's own is unmounted."""
    return f'{guest.containerd_config(version)}root = "/run/containerd-root"\n'
