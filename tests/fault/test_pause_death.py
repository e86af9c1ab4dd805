"""The daemon is killed in the middle of Pause, Resume and Update: each is done again, once."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import task_types_pb2
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.conftest import rig
from tests.system.taskclient import Rig, eventually
from tests.system.test_update import _any

if TYPE_CHECKING:
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
