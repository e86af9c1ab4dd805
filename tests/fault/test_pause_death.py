"""The daemon is killed in the middle of Pause, Resume and Update: each is done again, once."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import task_types_pb2
from tests.fault.drill import drilled, up
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.conftest import rig
from tests.system.taskclient import Rig, eventually
from tests.system.test_update import _any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.drill import Drill
    from tests.host import Host

__all__ = ["rig"]
pytestmark = [pytest.mark.system, pytest.mark.fault]

MOMENTS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04)


@pytest.mark.parametrize("pause", MOMENTS)
@pytest.mark.parametrize("method", ["Pause", "Resume", "Update"])
def test_what_was_cut_is_done_again(rig: Rig, host: Host, method: str, pause: float) -> None:
    rig.running("cut")
    if method == "Resume":
        rig.call("Pause", id="cut")
    fields: dict[str, Any] = {}
    if method == "Update":
        fields["resources"] = _any({"pids": {"limit": 20}} if host.cgroup == "v1" else {})
    before = daemon_pid(host)
    call = rig.begin(method, id="cut", **fields)
    time.sleep(pause)
    kill_daemon(host)
    call.result(15)
    eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")
    paused = method == "Pause"
    wanted = task_types_pb2.PAUSED if paused else task_types_pb2.RUNNING
    assert rig.call("State", id="cut").status == wanted
    if paused:
        rig.call("Resume", id="cut")
    rig.call("Kill", id="cut", signal=signal.SIGKILL)
    assert rig.call("Wait", id="cut").exit_status == 137
    rig.events.until("cut", "exit")
    between = [] if method == "Update" else ["paused", "resumed"]
    assert rig.events.of("cut") == ["create", "start", *between, "exit"]


@pytest.fixture(scope="module")
def drill(host: Host) -> Iterator[Drill]:
    with drilled(host) as made:
        yield made


def _about_to_end(rig: Rig, status: int) -> None:
    """A paused container whose next instruction is its end."""
    script = f"trap 'exit {status}' TERM; echo up; while :; do sleep 1000 & wait; done"
    bundle = rig.bundle("brief", "sh", "-c", script)
    rig.call("Create", id="brief", bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id="brief")
    bundle.read_line("stdout")
    rig.call("Pause", id="brief")
    rig.call("Kill", id="brief", signal=signal.SIGTERM)


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
@pytest.mark.parametrize("point", ["", "runtime.spawned", "runtime.ended", "exit.known"])
@pytest.mark.parametrize("status", [7, 143])
def test_resume_of_what_ends_at_once_comes_before_its_end(
    rig: Rig, host: Host, drill: Drill, status: int, point: str
) -> None:
    _about_to_end(rig, status)
    end = rig.begin("Wait", id="brief")
    drill.arm([(point, 1, 1)] if point else [])
    try:
        rig.begin("Resume", id="brief").result(15)
        assert end.result(15).exit_status == status
        assert not drill.left()
    finally:
        drill.disarm()
        up(host)
    assert rig.refused("Resume", id="brief")[1] == "cannot resume a stopped container"
    assert rig.call("Delete", id="brief").exit_status == status
    rig.events.until("brief", "delete")
    told = ["create", "start", "paused", "resumed", "exit", "delete"]
    assert rig.events.of("brief") == told


@contextlib.contextmanager
def _runtime_is_busy(host: Host) -> Iterator[None]:
    """A command of the OCI runtime seems to go on: what the daemon waits for before it goes on with
    a Resume that was cut."""
    (lock,) = host.path("/run/sdshim/t/default/brief").glob("*/runtime.lock")
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
@pytest.mark.parametrize("status", [7, 143])
def test_a_cut_resume_that_finds_the_exit_told_is_done(
    rig: Rig, host: Host, drill: Drill, status: int
) -> None:
    """The other order: the next daemon knows the end before it goes on with Resume."""
    _about_to_end(rig, status)
    drill.arm([("runtime.ended", 1, 1)])
    try:
        call = rig.begin("Resume", id="brief")
        eventually(lambda: not drill.left(), "it has died")
        with _runtime_is_busy(host):
            rig.events.until("brief", "exit")
        call.result(15)
    finally:
        drill.disarm()
        up(host)
    assert rig.call("Wait", id="brief").exit_status == status
    assert rig.events.of("brief") == ["create", "start", "paused", "resumed", "exit"]


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
def test_an_earlier_resume_makes_no_resume_of_a_later_sigkill(rig: Rig, host: Host) -> None:
    pid = rig.running("brief") and rig.call("State", id="brief").pid
    rig.call("Pause", id="brief")
    rig.call("Resume", id="brief")
    rig.call("Pause", id="brief")
    host.run(["kill", "-9", str(pid)])
    assert rig.call("Wait", id="brief").exit_status == 137
    rig.events.until("brief", "exit")
    assert rig.events.of("brief") == ["create", "start", "paused", "resumed", "paused", "exit"]
