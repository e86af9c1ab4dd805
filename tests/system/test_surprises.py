"""What others do behind the daemon's back: the runtime's state removed, strangers' signals,
systemctl, cgroups. Wait returns, State and Kill tell the end, Delete works, the events are those of
any end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import task_types_pb2
from tests.system.taskclient import Rig, eventually, exec_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host

pytestmark = pytest.mark.system

UNKNOWN, NOT_FOUND = 2, 5
FINISHED = (NOT_FOUND, "process already finished: not found")
RUNNING, STOPPED = task_types_pb2.RUNNING, task_types_pb2.STOPPED
SIGKILL = 9
BOX, X = "box", "x"
UNIT, EXEC_UNIT = "sdshim-default-box.service", "sdshim-default-box:x.service"
RUNC = ["runc", "--root", "/run/containerd/runc/default"]
STATE = "/run/containerd/runc/default/box"
OBEDIENT = "trap 'exit 143' TERM; echo up; while :; do sleep 0.01; done"


def _cgroups(host: Host) -> list[str]:
    """The container's cgroup in each hierarchy, systemd's first."""
    path = host.run(["systemctl", "show", "-P", "ControlGroup", UNIT]).stdout.strip()
    below = f"{path}/container"
    if host.cgroup == "v2":
        return [f"/sys/fs/cgroup{below}"]
    listed = host.run(["sh", "-c", f"ls -d /sys/fs/cgroup/*{below}"]).stdout.split()
    return sorted(listed, key=lambda folder: "/systemd/" not in folder)


def _pid(rig: Rig, exec_id: str = "") -> str:
    return str(rig.call("State", id=BOX, exec_id=exec_id).pid)


def _runc_delete(rig: Rig) -> None:
    rig.host.run([*RUNC, "delete", "--force", BOX])


def _runc_kill(rig: Rig) -> None:
    rig.host.run([*RUNC, "kill", BOX, "KILL"])


def _state_removed_then_killed(rig: Rig) -> None:
    rig.host.run(["rm", "-r", STATE])
    rig.call("Kill", id=BOX, signal=SIGKILL)


def _state_removed_then_shot(rig: Rig) -> None:
    rig.host.run(["rm", "-r", STATE])
    _shot(rig)


def _shot(rig: Rig) -> None:
    rig.host.run(["kill", "-9", _pid(rig)])


def _unit_stopped(rig: Rig) -> None:
    rig.host.run(["systemctl", "stop", UNIT])


def _unit_killed(rig: Rig) -> None:
    rig.host.run(["systemctl", "kill", "-s", "KILL", UNIT])


def _cgroup_killed(rig: Rig) -> None:
    folder = _cgroups(rig.host)[0]
    script = f"kill -9 $(cat {folder}/cgroup.procs) 2>/dev/null || true"  # init takes the others
    if rig.host.cgroup == "v2":
        script = f"echo 1 >{folder}/cgroup.kill"
    rig.host.run(["sh", "-c", script])


def _cgroup_removed(rig: Rig) -> None:
    """Its processes are moved out, and live on for a moment."""
    for folder in _cgroups(rig.host):
        v1_root = "/".join(folder.split("/")[:5])
        to = "/sys/fs/cgroup/init.scope" if rig.host.cgroup == "v2" else v1_root
        move = f"echo $p >{to}/cgroup.procs 2>/dev/null"  # some have ended by then
        each = f"for p in $(cat {folder}/cgroup.procs); do {move}; done"
        rig.host.run(["sh", "-c", f"until rmdir {folder}; do {each}; true; done"])
    _shot(rig)


@pytest.fixture
def waits(rig: Rig) -> dict[str, Any]:
    """A running container with an exec, and a Wait for each."""
    bundle = rig.bundle(BOX, "sh", "-c", OBEDIENT)
    rig.call("Create", id=BOX, bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id=BOX)
    rig.call("Exec", id=BOX, exec_id=X, spec=exec_spec("sleep", "1000"))
    rig.call("Start", id=BOX, exec_id=X)
    bundle.read_line("stdout")
    return {who: rig.begin("Wait", id=BOX, exec_id=who) for who in ("", X)}


def _told(rig: Rig) -> list[str]:
    """Topics with the exec's id, if there is one."""
    return [
        event.topic.removeprefix("/tasks/") + (" x" if getattr(event.body, "id", "") == X else "")
        for event in rig.events.all(BOX)
    ]


@pytest.mark.parametrize(
    ("surprise", "status"),
    [
        (_runc_delete, 137),
        (_runc_kill, 137),
        (_state_removed_then_killed, 137),
        (_state_removed_then_shot, 137),
        (_shot, 137),
        (_unit_stopped, 143),
        (_unit_killed, 137),
        (_cgroup_killed, 137),
        (_cgroup_removed, 137),
    ],
)
def test_an_end_behind_the_daemons_back_is_an_end_like_any_other(
    rig: Rig, waits: dict[str, Any], surprise: Callable[[Rig], None], status: int
) -> None:
    pids = {who: _pid(rig, who) for who in waits}
    surprise(rig)
    assert waits[X].result(10).exit_status == 137
    assert waits[""].result(10).exit_status == status
    for who, wanted in (("", status), (X, 137)):
        assert rig.refused("Kill", id=BOX, exec_id=who, signal=SIGKILL) == FINISHED
        state = rig.call("State", id=BOX, exec_id=who)
        assert (state.status, state.exit_status, str(state.pid)) == (STOPPED, wanted, pids[who])
    assert [p.pid for p in rig.call("Pids", id=BOX).processes] == [int(pids[""])]
    assert rig.refused("Exec", id=BOX, exec_id="late", spec=exec_spec("true"))[0] == UNKNOWN
    assert rig.call("Delete", id=BOX, exec_id=X).exit_status == 137
    assert rig.call("Delete", id=BOX).exit_status == status
    assert not rig.unit_exists(BOX)
    rig.events.until(BOX, "delete")
    assert _told(rig) == [
        *("create", "start", "exec-added", "exec-started"),
        *("exit x", "exit", "delete"),
    ]


def _exec_shot(rig: Rig) -> None:
    rig.host.run(["kill", "-9", _pid(rig, X)])


def _subreaper_shot(rig: Rig) -> None:
    rig.host.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", EXEC_UNIT])


def _exec_unit_stopped(rig: Rig) -> None:
    rig.host.run(["systemctl", "stop", EXEC_UNIT])


@pytest.mark.parametrize(
    ("surprise", "status"), [(_exec_shot, 137), (_subreaper_shot, 137), (_exec_unit_stopped, 143)]
)
def test_the_end_of_an_exec_behind_the_daemons_back_is_its_own_alone(
    rig: Rig, waits: dict[str, Any], surprise: Callable[[Rig], None], status: int
) -> None:
    pid = _pid(rig, X)
    surprise(rig)
    assert waits[X].result(10).exit_status == status
    assert rig.refused("Kill", id=BOX, exec_id=X, signal=SIGKILL) == FINISHED
    assert rig.call("State", id=BOX, exec_id=X).status == STOPPED
    eventually(lambda: not rig.host.path(f"/proc/{pid}").exists(), "its process is gone")
    assert rig.call("State", id=BOX).status == RUNNING
    assert not waits[""].done()
    assert rig.call("Delete", id=BOX, exec_id=X).exit_status == status
    rig.events.until(BOX, "exit")
    assert _told(rig) == ["create", "start", "exec-added", "exec-started", "exit x"]
    rig.call("Exec", id=BOX, exec_id=X, spec=exec_spec("sleep", "1000"))
    assert rig.call("Start", id=BOX, exec_id=X).pid > 0


@pytest.mark.parametrize(
    "surprise", [_runc_delete, _runc_kill, _state_removed_then_killed, _shot, _unit_killed]
)
def test_the_end_of_a_created_container_behind_the_daemons_back(
    rig: Rig, surprise: Callable[[Rig], None]
) -> None:
    rig.created(BOX)
    wait = rig.begin("Wait", id=BOX)
    surprise(rig)
    assert wait.result(10).exit_status == 137
    assert rig.refused("Kill", id=BOX, signal=SIGKILL) == FINISHED
    assert rig.call("State", id=BOX).status == STOPPED
    assert rig.refused("Start", id=BOX) == (UNKNOWN, "cannot start a stopped process")
    assert rig.call("Delete", id=BOX).exit_status == 137
    rig.events.until(BOX, "delete")
    assert _told(rig) == ["create", "exit", "delete"]


def test_a_start_without_the_runtimes_state_fails_in_its_words_and_delete_works(rig: Rig) -> None:
    rig.created(BOX)
    rig.host.run(["rm", "-r", STATE])
    code, text = rig.refused("Start", id=BOX)
    assert code == UNKNOWN
    assert text == "OCI runtime start failed: container does not exist"
    assert rig.call("State", id=BOX).status == task_types_pb2.CREATED
    assert rig.call("Delete", id=BOX).exit_status == 137


def test_an_exec_without_the_runtimes_state_fails_in_its_words(rig: Rig) -> None:
    rig.running(BOX)
    rig.host.run(["rm", "-r", STATE])
    rig.call("Exec", id=BOX, exec_id=X, spec=exec_spec("true"))
    code, text = rig.refused("Start", id=BOX, exec_id=X)
    assert code == UNKNOWN
    assert text == "OCI runtime exec failed: exec failed: container does not exist"
    assert rig.call("State", id=BOX).status == RUNNING
    assert rig.call("Delete", id=BOX, exec_id=X).exit_status == 0


def test_an_end_while_no_daemon_is_there_is_found_by_the_next(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    rig.call("Exec", id=BOX, exec_id=X, spec=exec_spec("sleep", "1000"))
    rig.call("Start", id=BOX, exec_id=X)
    script = f"systemctl stop sdshim.socket sdshim.service && {' '.join(RUNC)} delete --force {BOX}"
    host.run(["sh", "-c", f"{script}; systemctl start sdshim.socket sdshim.service"])
    line = rig.connect()
    assert line.call("Wait", id=BOX, exec_id=X).exit_status == 137
    assert line.call("Wait", id=BOX).exit_status == 137
    assert line.fails("Kill", id=BOX, signal=SIGKILL) == FINISHED
    assert line.call("Delete", id=BOX).exit_status == 137
    rig.events.until(BOX, "delete")
    assert _told(rig)[-3:] == ["exit x", "exit", "delete"]
