"""The launcher's `delete`, which containerd runs for a task that it gives up, and kills after 5 s.

In whatever state the daemon is: it ends the incarnation that its bundle names, tells how that has
ended, and touches no newer one of the same id. SDSHIM_FAULT_FULL=1: with every state of the task.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import Code
from sdshim.pb import task_types_pb2
from sdshim.pb import task_v2_pb2 as pb
from tests.fault.daemons import next_daemon_waits
from tests.fault.marks import fault_on
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.taskclient import HOME, Bundle, eventually, no_traceback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = fault_on("self", "v2")

UNITS = ["sdshim.socket", "sdshim.service"]


@contextlib.contextmanager
def _up(host: Host) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _hung(host: Host) -> Iterator[None]:
    pid = daemon_pid(host)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _restarting(host: Host) -> Iterator[None]:
    before = daemon_pid(host)
    kill_daemon(host)
    yield
    eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")


@contextlib.contextmanager
def _late(host: Host) -> Iterator[None]:
    with next_daemon_waits(host):
        kill_daemon(host)
        yield


@contextlib.contextmanager
def _stopped(host: Host) -> Iterator[None]:
    host.run(["systemctl", "stop", *UNITS])
    try:
        yield
    finally:
        host.run(["systemctl", "reset-failed", *UNITS], check=False)  # tests start it often
        host.run(["systemctl", "start", *UNITS])


@contextlib.contextmanager
def _masked(host: Host) -> Iterator[None]:
    host.run(["systemctl", "mask", "--runtime", "--now", *UNITS])
    try:
        yield
    finally:
        host.run(["systemctl", "unmask", "--runtime", *UNITS])
        host.run(["systemctl", "start", *UNITS])


DAEMONS = {
    "up": _up,
    "hung": _hung,
    "restarting": _restarting,
    "late": _late,
    "stopped": _stopped,
    "masked": _masked,
}
TASKS = {"created": 137, "running": 137, "paused": 137, "ended": 7}
ALL = [(daemon, task) for daemon in DAEMONS for task in TASKS]
SHORT = [
    ("up", "paused"),
    ("hung", "running"),
    ("hung", "ended"),
    ("restarting", "created"),
    ("late", "paused"),
    ("stopped", "running"),
    ("stopped", "ended"),
    ("masked", "created"),
]
PAIRS = ALL if os.environ.get("SDSHIM_FAULT_FULL") else SHORT


def _task(rig: Rig, state: str) -> Bundle:
    if state == "created":
        return rig.created("task")
    if state == "ended":
        return rig.stopped("task")
    bundle = rig.running("task")
    if state == "paused":
        rig.call("Pause", id="task")
    return bundle


def _delete(rig: Rig, bundle: Bundle) -> pb.DeleteResponse:
    """As containerd does it: killed after 5 s."""
    answer = rig.launcher(bundle, "delete", within=5)
    return pb.DeleteResponse.FromString(answer)


def _is_gone(rig: Rig) -> None:
    eventually(lambda: not rig.unit_exists("task"), "the unit is gone")
    folder = rig.host.path("/run/sdshim/t/default/task")
    eventually(lambda: not folder.exists(), "its state is gone")
    assert not rig.host.path("/run/containerd/runc/default/task").exists()


@pytest.mark.parametrize(("daemon", "task"), PAIRS)
def test_a_task_that_is_given_up_is_ended_and_its_end_is_told(
    rig: Rig, host: Host, daemon: str, task: str
) -> None:
    bundle = _task(rig, task)
    pid = rig.call("State", id="task").pid
    seen = {"ended": "exit", "paused": "paused", "running": "start", "created": "create"}
    rig.events.until("task", seen[task])
    told = rig.events.of("task")
    with no_traceback(host):
        with DAEMONS[daemon](host):
            answer = _delete(rig, bundle)
            assert answer.exit_status == TASKS[task]
            assert not host.path(f"/proc/{pid}").exists()
            if daemon not in ("up", "restarting"):
                assert not host.path("/run/containerd/runc/default/task").exists()
        _is_gone(rig)
        assert rig.connect().fails("State", id="task")[0] == Code.NOT_FOUND
    assert answer.pid == pid
    again = _delete(rig, bundle)
    assert (again.pid, again.exit_status) == (pid, TASKS[task])
    assert rig.events.of("task") == told  # containerd says the rest itself


@pytest.mark.parametrize("daemon", ["up", "hung", "restarting", "stopped"])
def test_a_newer_task_of_the_same_id_is_not_touched(rig: Rig, host: Host, daemon: str) -> None:
    first = rig.stopped("task")
    rig.call("Delete", id="task")
    (first.outside / "sdshim.deleted").unlink()
    kept = first.outside.rename(first.outside.with_name("old"))
    old = Bundle(f"{HOME}/b/default/old", kept, "default", "task")
    rig.running("task")
    before = rig.call("State", id="task")
    with no_traceback(host), DAEMONS[daemon](host):
        assert _delete(rig, old).exit_status == 137  # nobody knows any more
        assert host.path(f"/proc/{before.pid}").exists()
    line = rig.connect()
    assert line.call("State", id="task") == before
    assert before.status == task_types_pb2.RUNNING
    line.call("Kill", id="task", signal=signal.SIGKILL)
    assert line.call("Wait", id="task").exit_status == 137
    line.call("Delete", id="task")
    rig.events.until("task", "delete", 2)
    shutil.rmtree(kept)
