"""A Wait on a connection that outlives its task is answered: the launcher's `delete` has ended the
task while no daemon was there, and the next daemon finds the call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.core.errors import Code, ShimError
from tests.fault.marks import fault_on
from tests.system.taskclient import dead_daemon, exec_spec

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = fault_on("self", "v2")


def test_the_waits_for_a_task_that_was_given_up_without_a_daemon_are_answered(
    rig: Rig, host: Host
) -> None:
    bundle = rig.running("box", "sleep", "1000")
    rig.call("Exec", id="box", exec_id="x", spec=exec_spec("sleep", "1000"))
    rig.call("Start", id="box", exec_id="x")
    waits = [rig.begin("Wait", id="box"), rig.begin("Wait", id="box", exec_id="x")]
    rig.call("State", id="box")  # the Waits are with the daemon
    with dead_daemon(host):
        assert rig.give_up(bundle).exit_status == 137
    for wait in waits:
        try:
            assert wait.result(20).exit_status == 137
        except ShimError as error:  # it was asked again when the task was gone
            assert error.code is Code.NOT_FOUND
    assert rig.events.of("box") == ["create", "start", "exec-added", "exec-started"]
