"""`systemctl freeze` and `thaw`: containerd hears of each once, whoever froze and whether or not a
daemon was there. systemd freezes on cgroup v2 only; that it refuses on v1 is in test_verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sdshim.pb import task_types_pb2
from tests.system.taskclient import Rig, dead_daemon

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.cgroup("v2"), pytest.mark.timeout(60)]

BOX, UNIT = "box", "sdshim-default-box.service"
PAUSED, RUNNING = task_types_pb2.PAUSED, task_types_pb2.RUNNING
SIGKILL = 9


def _verb(host: Host, verb: str, unit: str = UNIT) -> None:
    host.run(["systemctl", verb, unit])


def _told(rig: Rig, topic: str, times: int) -> None:
    events = rig.events
    assert events.wait_for(lambda: events.of(BOX).count(topic) == times, 10), events.of(BOX)


def _events(rig: Rig, *expected: str) -> None:
    """The events since the start, all of them; the task ends for it."""
    if rig.call("State", id=BOX).status != task_types_pb2.STOPPED:
        rig.call("Kill", id=BOX, signal=SIGKILL)
        assert rig.call("Wait", id=BOX).exit_status == 137
    rig.events.until(BOX, "exit")
    assert rig.events.of(BOX) == ["create", "start", *expected, "exit"]


@pytest.mark.parametrize("unit", [UNIT, "sdshim-default.slice"])
def test_each_freeze_and_each_thaw_is_one_event(rig: Rig, host: Host, unit: str) -> None:
    rig.running(BOX)
    for number in (1, 2, 3):
        _verb(host, "freeze", unit)
        _told(rig, "paused", number)
        assert rig.call("State", id=BOX).status == PAUSED
        _verb(host, "thaw", unit)
        _told(rig, "resumed", number)
        assert rig.call("State", id=BOX).status == RUNNING
    _events(rig, *["paused", "resumed"] * 3)


def test_our_own_pause_and_resume_are_told_once(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    for way in ("api", "both", "api", "resume of a freeze"):
        if way in ("api", "both"):
            rig.call("Pause", id=BOX)
        if way != "api":
            _verb(host, "freeze")
        rig.call("Resume", id=BOX)
        assert rig.call("State", id=BOX).status == RUNNING
    _events(rig, *["paused", "resumed"] * 4)


def test_what_happened_while_the_daemon_was_dead_is_told_by_the_next(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    with dead_daemon(host):
        _verb(host, "freeze")
    rig.events.until(BOX, "paused")
    assert rig.call("State", id=BOX).status == PAUSED
    with dead_daemon(host):  # and nothing twice
        pass
    with dead_daemon(host):
        _verb(host, "thaw")
    rig.events.until(BOX, "resumed")
    with dead_daemon(host):
        pass
    assert rig.call("State", id=BOX).status == RUNNING
    _events(rig, "paused", "resumed")


def test_the_end_of_a_frozen_container_is_no_resume(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    pid = rig.call("State", id=BOX).pid
    _verb(host, "freeze")
    rig.events.until(BOX, "paused")
    host.run(["kill", "-9", str(pid)])
    assert rig.call("Wait", id=BOX).exit_status == 137
    _events(rig, "paused")


def test_a_frozen_unit_can_be_stopped_at_once_or_when_it_is_thawed(rig: Rig, host: Host) -> None:
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
    bundle = rig.bundle(BOX, "sh", "-c", script)
    rig.call("Create", id=BOX, bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id=BOX)
    bundle.read_line("stdout")
    _verb(host, "freeze")
    rig.events.until(BOX, "paused")
    if host.systemd_version < 257:  # 252 thaws, 257 refuses
        _verb(host, "stop")
    else:
        refused = host.run(["systemctl", "stop", UNIT], check=False)
        assert "Cannot perform operation on frozen unit" in refused.stderr
        assert rig.call("State", id=BOX).status == PAUSED
        _verb(host, "thaw")
        _verb(host, "stop")
    assert rig.call("Wait", id=BOX).exit_status == 9
    _events(rig, "paused", "resumed")
