"""Pause and Resume: the freezer, the events, what a paused container refuses, how it may end."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import task_types_pb2
from tests.system.taskclient import Rig, dead_daemon, eventually, exec_spec, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Bundle

pytestmark = pytest.mark.system

UNKNOWN = 2
PAUSED, RUNNING, STOPPED = (
    task_types_pb2.PAUSED,
    task_types_pb2.RUNNING,
    task_types_pb2.STOPPED,
)


def _paused(rig: Rig, id_: str, *command: str, spec: Any = None) -> Bundle:
    bundle = rig.running(id_, *command, spec=spec)
    rig.call("Pause", id=id_)
    return bundle


def _cpu_ticks(host: Host, pid: int) -> int:
    fields = host.run(["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))  # user and system time, of waited-for children too


def _unit(id_: str) -> str:
    return f"sdshim-default-{id_}.service"


def _cgroup(host: Host, id_: str) -> str:
    shown = host.run(["systemctl", "show", "-P", "ControlGroup", _unit(id_)]).stdout.strip()
    return f"{shown}/container"


def _is_frozen(host: Host, id_: str) -> bool:
    path = f"/sys/fs/cgroup/freezer{_cgroup(host, id_)}/freezer.state"
    if host.cgroup == "v2":
        path = f"/sys/fs/cgroup{_cgroup(host, id_)}/cgroup.events"
    text = host.run(["cat", path]).stdout
    return "FROZEN" in text or "frozen 1" in text


def test_a_paused_container_stands_still_and_goes_on_after_resume(rig: Rig, host: Host) -> None:
    rig.running("still", "sh", "-c", "while :; do :; done")
    pid = rig.call("State", id="still").pid
    rig.call("Pause", id="still")
    state = rig.call("State", id="still")
    assert (state.status, state.pid, state.exit_status) == (PAUSED, pid, 0)
    assert _is_frozen(host, "still")
    before = _cpu_ticks(host, pid)
    host.run(["sleep", "0.2"])
    assert _cpu_ticks(host, pid) == before
    assert [p.pid for p in rig.call("Pids", id="still").processes] == [pid]
    rig.call("Resume", id="still")
    assert rig.call("State", id="still").status == RUNNING
    eventually(lambda: _cpu_ticks(host, pid) > before, "it goes on")
    rig.events.until("still", "resumed")
    assert rig.events.of("still") == ["create", "start", "paused", "resumed"]


def test_pause_and_resume_again_and_again(rig: Rig) -> None:
    rig.running("often")
    for _ in range(10):
        rig.call("Pause", id="often")
        assert rig.call("State", id="often").status == PAUSED
        rig.call("Resume", id="often")
        assert rig.call("State", id="often").status == RUNNING
    rig.call("Kill", id="often", signal=signal.SIGKILL)
    assert rig.call("Wait", id="often").exit_status == 137
    rig.events.until("often", "exit")
    assert rig.events.of("often") == ["create", "start", *["paused", "resumed"] * 10, "exit"]


def test_an_exec_is_paused_with_its_container(rig: Rig) -> None:
    rig.running("both")
    for exec_id in ("runs", "waits"):
        rig.call("Exec", id="both", exec_id=exec_id, spec=exec_spec("sleep", "1000"))
    pid = rig.call("Start", id="both", exec_id="runs").pid
    rig.call("Pause", id="both")
    for exec_id, number in (("runs", pid), ("waits", 0)):
        state = rig.call("State", id="both", exec_id=exec_id)
        assert (state.status, state.pid) == (PAUSED, number)
    code, text = rig.refused("Start", id="both", exec_id="waits")
    assert code == UNKNOWN
    assert text.startswith("OCI runtime exec failed: ")
    assert "paused" in text
    rig.call("Resume", id="both")
    assert rig.call("State", id="both", exec_id="runs").status == RUNNING
    assert rig.call("State", id="both", exec_id="waits").status == task_types_pb2.CREATED
    assert rig.call("Start", id="both", exec_id="waits").pid > 0


@pytest.mark.parametrize("everyone", [False, True], ids=["init", "all"])
@pytest.mark.parametrize("shared", [False, True], ids=["own pids", "shared pids"])
def test_a_paused_container_can_be_killed(rig: Rig, *, everyone: bool, shared: bool) -> None:
    script = "sleep 1000 & sleep 1000 & echo up; wait"
    spec = spec_of("sh", "-c", script)
    if shared:
        spaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]
    bundle = rig.bundle("prey", spec=spec)
    rig.call("Create", id="prey", bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id="prey")
    bundle.read_line("stdout")
    rig.call("Pause", id="prey")
    rig.call("Kill", id="prey", signal=signal.SIGKILL, all=everyone)
    assert rig.call("Wait", id="prey").exit_status == 137
    assert rig.call("State", id="prey").status == STOPPED
    bundle.read("stdout")  # its end comes when the last holder is dead
    assert rig.call("Delete", id="prey").exit_status == 137
    rig.events.until("prey", "delete")
    assert rig.events.of("prey") == ["create", "start", "paused", "exit", "delete"]


def test_another_signal_arrives_after_resume(rig: Rig) -> None:
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
    bundle = rig.bundle("later", "sh", "-c", script)
    rig.call("Create", id="later", bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id="later")
    bundle.read_line("stdout")
    rig.call("Pause", id="later")
    rig.call("Kill", id="later", signal=signal.SIGTERM)
    assert rig.call("State", id="later").status == PAUSED
    rig.call("Resume", id="later")
    assert rig.call("Wait", id="later").exit_status == 9


def test_a_strangers_sigkill_ends_a_paused_container_once(rig: Rig, host: Host) -> None:
    _paused(rig, "shot", "sh", "-c", "sleep 1000 & wait")
    pid = rig.call("State", id="shot").pid
    host.run(["kill", "-9", str(pid)])
    if host.cgroup == "v1":  # there the frozen die when they are thawed
        path = f"/sys/fs/cgroup/freezer{_cgroup(host, 'shot')}/freezer.state"
        host.run(["sh", "-c", f"echo THAWED >{path}"])
    assert rig.call("Wait", id="shot").exit_status == 137
    assert rig.call("State", id="shot").status == STOPPED
    assert rig.refused("Resume", id="shot") == (UNKNOWN, "cannot resume a stopped container")
    rig.call("Delete", id="shot")
    rig.events.until("shot", "delete")
    assert rig.events.of("shot") == ["create", "start", "paused", "exit", "delete"]


def test_a_paused_container_can_be_given_up(rig: Rig) -> None:
    bundle = _paused(rig, "given")
    assert rig.give_up(bundle).exit_status == 137
    assert not rig.unit_exists("given")


@pytest.mark.cgroup("v2")  # systemd freezes on cgroup v2 only
def test_a_frozen_unit_is_paused_and_resume_thaws_it(rig: Rig, host: Host) -> None:
    rig.running("frosty")
    host.run(["systemctl", "freeze", _unit("frosty")])
    assert rig.call("State", id="frosty").status == PAUSED
    error = rig.refused("Exec", id="frosty", exec_id="x", spec=exec_spec("true"))
    assert error == (UNKNOWN, "cannot exec in a paused state")
    rig.call("Resume", id="frosty")
    assert rig.call("State", id="frosty").status == RUNNING
    rig.call("Pause", id="frosty")
    host.run(["systemctl", "freeze", _unit("frosty")])
    rig.call("Resume", id="frosty")
    assert rig.call("State", id="frosty").status == RUNNING
    assert not _is_frozen(host, "frosty")


@pytest.mark.cgroup("v2")  # systemd freezes on cgroup v2 only
def test_an_exit_in_a_frozen_unit_is_reported(rig: Rig, host: Host) -> None:
    rig.running("iced")
    host.run(["systemctl", "freeze", _unit("iced")])
    rig.call("Kill", id="iced", signal=signal.SIGKILL)
    assert rig.call("Wait", id="iced").exit_status == 137
    assert rig.call("Delete", id="iced").exit_status == 137


TRAPPED = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
"""Ends at SIGTERM, which never comes to a frozen process."""


@pytest.fixture
def patient(host: Host) -> Iterator[str]:
    """The unit of the container `calm` has no TimeoutStop: what systemd would end by SIGKILL after
    its time would never end. Its id."""
    drop_ins = host.path(f"/run/systemd/system/{_unit('calm')}.d")
    drop_ins.mkdir()
    (drop_ins / "patient.conf").write_text("[Service]\nTimeoutStopSec=infinity\n")
    host.run(["systemctl", "daemon-reload"])
    yield "calm"
    shutil.rmtree(drop_ins)
    host.run(["systemctl", "daemon-reload"])


def _trapped(rig: Rig, id_: str) -> None:
    bundle = rig.bundle(id_, "sh", "-c", TRAPPED)
    rig.call("Create", id=id_, bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id=id_)
    bundle.read_line("stdout")


def test_a_paused_container_goes_on_when_its_unit_is_stopped(
    rig: Rig, host: Host, patient: str
) -> None:
    _trapped(rig, patient)
    for _ in range(2):  # what was resumed and paused again too
        rig.call("Pause", id=patient)
        rig.call("Resume", id=patient)
    rig.call("Pause", id=patient)
    host.run(["systemctl", "stop", _unit(patient)])
    assert rig.call("Wait", id=patient).exit_status == 9
    rig.events.until(patient, "exit")
    assert rig.events.of(patient)[-3:] == ["paused", "resumed", "exit"]
    assert rig.call("Delete", id=patient).exit_status == 9


def test_a_start_of_its_unit_leaves_a_paused_container_paused(rig: Rig, host: Host) -> None:
    _paused(rig, "still")
    host.run(["systemctl", "start", _unit("still")])  # nothing to do, but a job
    assert _is_frozen(host, "still")
    assert rig.call("State", id="still").status == PAUSED


def test_a_unit_stopped_while_no_daemon_was_there_goes_on_with_the_next(
    rig: Rig, host: Host, patient: str
) -> None:
    _trapped(rig, patient)
    rig.call("Pause", id=patient)
    with dead_daemon(host):
        host.run(["systemctl", "stop", "--no-block", _unit(patient)])
        state = ["systemctl", "show", "-P", "ActiveState", _unit(patient)]
        eventually(lambda: host.run(state).stdout.strip() == "deactivating", "it is being stopped")
        assert _is_frozen(host, patient)
    assert rig.call("Wait", id=patient).exit_status == 9
    rig.events.until(patient, "exit")
    assert rig.events.of(patient) == ["create", "start", "paused", "resumed", "exit"]


def test_a_stop_that_came_before_the_pause_is_seen(rig: Rig, host: Host, patient: str) -> None:
    script = "trap : TERM; echo up; while :; do sleep 0.01; done"
    bundle = rig.bundle(patient, "sh", "-c", script)
    rig.call("Create", id=patient, bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id=patient)
    bundle.read_line("stdout")
    host.run(["systemctl", "stop", "--no-block", _unit(patient)])
    rig.call("Pause", id=patient)
    rig.events.until(patient, "resumed")
    rig.call("Kill", id=patient, signal=signal.SIGKILL)
    assert rig.call("Wait", id=patient).exit_status == 137
