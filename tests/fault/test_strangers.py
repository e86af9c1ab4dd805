"""Names and pids that are somebody else's by the time the daemon is back: they are let alone, and
the task whose they were is told of as it ended."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from sdshim.pb import task_types_pb2
from tests.system.conftest import rig
from tests.system.taskclient import Rig, dead_daemon, eventually, exec_spec, no_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Bundle

__all__ = ["rig"]
pytestmark = [
    pytest.mark.system,
    pytest.mark.fault,
    pytest.mark.roots("self"),
    pytest.mark.cgroup("v2"),
    pytest.mark.timeout(60),
]

UNIT, EXEC_UNIT = "sdshim-default-box.service", "sdshim-default-box:e.service"
INNOCENT = "innocent.service"
ENDS = ("sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done")
STOPPED = task_types_pb2.STOPPED


def _show(host: Host, unit: str, *names: str) -> list[str]:
    argv = ["systemctl", "show", *(f"--property={name}" for name in names), unit]
    return sorted(str(host.run(argv).stdout).split())


@contextlib.contextmanager
def _stranger(host: Host, unit: str, *properties: str) -> Iterator[None]:
    """A unit of that name is somebody else's; it is touched by nobody in this block."""
    named = [f"--property={one}" for one in properties]
    host.run(["systemd-run", "--quiet", "--collect", f"--unit={unit}", *named, "sleep", "1000"])
    about = ("InvocationID", "ActiveState", "MainPID", "MemoryMax", "TasksMax", "Job")
    before = _show(host, unit, *about)
    try:
        yield
        assert _show(host, unit, *about) == before
    finally:
        host.run(["systemctl", "stop", unit], check=False)
    gone = ["LoadState=not-found"]
    eventually(lambda: _show(host, unit, "LoadState") == gone, "nobody holds it")


def _end(host: Host, unit: str) -> None:
    """Stop a unit, and take it from systemd's memory."""
    host.run(["systemctl", "stop", unit])
    host.run(["systemctl", "reset-failed", unit], check=False)
    assert _show(host, unit, "LoadState") == ["LoadState=not-found"]


def _running(rig: Rig) -> Bundle:
    """A container that ends with 9 when it is stopped."""
    bundle = rig.bundle("box", *ENDS)
    rig.call("Create", id="box", bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id="box")
    bundle.read_line("stdout")
    return bundle


@pytest.mark.parametrize(
    "properties",
    [[], [f"Environment=SDSHIM_TOKEN={'f' * 32}", "Slice=sdshim-default.slice"]],
    ids=["no token", "another token"],
)
def test_a_unit_that_took_the_name_lives_on(rig: Rig, host: Host, properties: list[str]) -> None:
    _running(rig)
    pid = rig.call("State", id="box").pid
    end = rig.begin("Wait", id="box")
    with contextlib.ExitStack() as stack:
        with dead_daemon(host):
            _end(host, UNIT)
            stack.enter_context(_stranger(host, UNIT, *properties))
        assert end.result(15).exit_status == 9
        state = rig.call("State", id="box")
        assert (state.status, state.exit_status, state.pid) == (STOPPED, 9, pid)
        with dead_daemon(host):  # now it has ended for the record too
            pass
        assert rig.refused("Kill", id="box", signal=9)[0] == 5
        assert rig.call("Delete", id="box").exit_status == 9
        rig.events.until("box", "delete")
        assert rig.events.of("box") == ["create", "start", "exit", "delete"]


def test_a_unit_that_took_an_execs_name_lives_on(rig: Rig, host: Host) -> None:
    _running(rig)
    rig.call("Exec", id="box", exec_id="e", spec=exec_spec(*ENDS))
    rig.call("Start", id="box", exec_id="e")
    with contextlib.ExitStack() as stack:
        with dead_daemon(host):
            host.run(["systemctl", "kill", "--signal=KILL", EXEC_UNIT])
            _end(host, EXEC_UNIT)
            stack.enter_context(_stranger(host, EXEC_UNIT))
        assert rig.call("Wait", id="box", exec_id="e").exit_status == 137
        assert rig.call("Delete", id="box", exec_id="e").exit_status == 137
        rig.call("Exec", id="box", exec_id="e", spec=exec_spec("true"))
        assert rig.refused("Start", id="box", exec_id="e")[0] == 6  # the name is taken
        assert rig.call("Delete", id="box", exec_id="e").exit_status == 0
    rig.call("Kill", id="box", signal=9)
    assert rig.call("Wait", id="box").exit_status == 137


def test_a_task_that_the_launcher_has_cleaned_up_takes_no_stranger_along(
    rig: Rig, host: Host
) -> None:
    bundle = _running(rig)
    state = host.path("/run/sdshim/t/default/box")
    with contextlib.ExitStack() as stack:
        with no_daemon(host):
            assert rig.give_up(bundle).exit_status == 137
            stack.enter_context(_stranger(host, UNIT))
        eventually(lambda: not state.exists(), "the daemon has taken its remains away")


@contextlib.contextmanager
def _no_bus(host: Host) -> Iterator[None]:
    """dbus-daemon is gone in this block; the daemon lives on."""
    host.run(["systemctl", "stop", "dbus.socket", "dbus.service"])
    try:
        yield
    finally:
        host.run(["systemctl", "start", "dbus.socket", "dbus.service"])


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "ours"])
def test_a_unit_that_took_the_name_while_the_bus_was_away_lives_on(
    rig: Rig, host: Host, taken: bool
) -> None:
    """The daemon's references go with the bus: so what ends meanwhile is gone at once. A unit that
    does not is still its own afterwards."""
    _running(rig)
    end = rig.begin("Wait", id="box")
    with contextlib.ExitStack() as stack:
        with _no_bus(host):
            if taken:
                _end(host, UNIT)
                stack.enter_context(_stranger(host, UNIT))
        if not taken:
            rig.call("Kill", id="box", signal=15)
        assert end.result(15).exit_status == 9
        assert rig.call("Delete", id="box").exit_status == 9
        rig.events.until("box", "delete")
        assert rig.events.of("box") == ["create", "start", "exit", "delete"]


def test_a_container_that_the_runtime_knows_by_our_id_lives_on(rig: Rig, host: Host) -> None:
    """Made by somebody else with the same root: Create fails, and takes nothing of it along."""
    bundle = rig.bundle("box", "sleep", "1000")
    runc = ["runc", "--root", "/run/containerd/runc/default"]
    host.run(["cp", "-a", bundle.path, "/tmp/strange"])
    host.run(["sed", "-i", "s,/default/box,/strange,", "/tmp/strange/config.json"])
    command = " ".join([*runc, "run", "--detach", "--bundle", "/tmp/strange", "box"])
    host.run(["sh", "-c", f"{command} >/dev/null 2>&1"])  # it would hold our pipes
    try:
        before = host.run([*runc, "state", "box"]).stdout
        assert '"status": "running"' in before
        assert "exist" in rig.refused("Create", id="box", bundle=bundle.path)[1]
        assert rig.give_up(bundle).exit_status == 255
        assert host.run([*runc, "state", "box"]).stdout == before
    finally:
        host.run([*runc, "delete", "--force", "box"])
        host.run(["rm", "-r", "/tmp/strange"])


def _innocent(host: Host) -> str:
    """The pid of a process that nobody may touch."""
    (shown,) = _show(host, INNOCENT, "MainPID")
    return shown.removeprefix("MainPID=")


@pytest.mark.parametrize("recorded", [True, False], ids=["exit recorded", "no exit record"])
@pytest.mark.parametrize("exec_id", ["", "e"], ids=["init", "exec"])
def test_a_pid_that_is_another_process_by_now_is_not_touched(
    rig: Rig, host: Host, exec_id: str, recorded: bool
) -> None:
    """Its process has ended without a daemon. Without the hook's record nobody tells how: what
    systemd knows is of another pid than that of the file, and not believed."""
    status = 137 if recorded else 255
    _running(rig)
    unit, about = UNIT, {"id": "box", "exec_id": exec_id}
    if exec_id:
        unit = EXEC_UNIT
        rig.call("Exec", id="box", exec_id="e", spec=exec_spec("sleep", "1000"))
        rig.call("Start", id="box", exec_id="e")
    pid = rig.call("State", **about).pid
    with _stranger(host, INNOCENT):
        with dead_daemon(host):
            host.run(["kill", "-9", str(pid)])
            eventually(lambda: _show(host, unit, "ActiveState") == ["ActiveState=failed"], "end")
            where = f"/run/sdshim/t/default/box/*{'/x/e/*' if exec_id else ''}"
            for name in ("exec.pid", "main.pid") if exec_id else ("init.pid",):
                host.run(["sh", "-c", f"echo {_innocent(host)} >$(echo {where})/{name}"])
            if not recorded:
                host.run(["sh", "-c", f"rm {where}/exit"])
        assert rig.refused("Kill", signal=9, **about)[0] == 5
        assert rig.call("Wait", **about).exit_status == status
        state = rig.call("State", **about)
        assert (state.status, state.pid) == (STOPPED, pid)
        assert rig.refused("Kill", signal=9, all=True, **about)[0] == 5
        assert rig.call("Delete", **about).exit_status == status
    if exec_id:
        rig.call("Kill", id="box", signal=9)
        assert rig.call("Wait", id="box").exit_status == 137
