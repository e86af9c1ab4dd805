"""Events that containerd has not taken yet when their process is gone and the daemon dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import await_another, daemon_pid, kill_daemon
from tests.system.conftest import rig
from tests.system.taskclient import exec_spec

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]

pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(60)]


@pytest.mark.parametrize("own_delete", [True, False], ids=["deleted", "gone with its container"])
def test_events_of_an_exec_outlive_its_container(rig: Rig, host: Host, own_delete: bool) -> None:
    rig.running("box")
    rig.events.until("box", "start")
    rig.do(rig.events.hold())
    rig.call("Exec", id="box", exec_id="e", spec=exec_spec("sh", "-c", "exit 3"))
    rig.call("Start", id="box", exec_id="e")
    assert rig.call("Wait", id="box", exec_id="e").exit_status == 3
    if own_delete:
        rig.call("Delete", id="box", exec_id="e")
    rig.call("Kill", id="box", signal=9)
    rig.call("Wait", id="box")
    rig.call("Delete", id="box")
    pid = daemon_pid(host)
    assert kill_daemon(host)
    await_another(host, pid)
    rig.do(rig.events.release())
    rig.events.until("box", "delete")
    execs = ["exec-added", "exec-started", "exit"]
    assert rig.events.of("box") == ["create", "start", *execs, "exit", "delete"]
