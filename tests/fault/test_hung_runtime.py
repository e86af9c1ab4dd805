"""An OCI runtime that hangs costs its own task only, and for a while: an error names it, everything
else goes on, the task can be deleted; a restart of the daemon in the middle changes nothing.
SDSHIM_FAULT_FULL=1: in every command."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import Code, UnknownError
from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import pack
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.conftest import nobody_notices, rig
from tests.system.taskclient import HOME, eventually, exec_spec, spec_of
from tests.system.test_update import _any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host import Host
    from tests.system.taskclient import Bundle, Rig

__all__ = ["nobody_notices", "rig"]
pytestmark = [
    pytest.mark.system,
    pytest.mark.fault,
    pytest.mark.timeout(60),
    pytest.mark.roots("forky"),
]

COMMANDS = ("start", "pause", "resume", "update", "delete")
FULL = bool(os.environ.get("SDSHIM_FAULT_FULL"))
HANGS = f"{HOME}/hangs"
SCRIPT = f"""#!/bin/sh
for word; do
    case $word in create | start | delete | pause | resume | update | exec)
        [ -e {HANGS}.$word ] && echo $$ >{HANGS}.pid && exec sleep 1000
        exec runc "$@"
    esac
done
"""
CONFIG = "runtime_timeout = 1.5\ncreate_timeout = 1.5\nstop_timeout = 1.0\n"


class Runtime:
    """An OCI runtime that hangs in the commands that are told to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text(SCRIPT)
        path.chmod(0o755)

    def hang(self, command: str) -> None:
        self._path.with_suffix(f".{command}").touch()

    def work(self) -> None:
        """It hangs no more."""
        for path in self._path.parent.glob("hangs.*"):
            path.unlink()

    def pid(self) -> int:
        """The hanging one's pid in the host."""
        path = self._path.with_suffix(".pid")
        eventually(lambda: path.exists() and bool(path.read_text()), "the runtime hangs")
        return int(path.read_text())


@pytest.fixture(scope="module")
def impatient(host: Host) -> Iterator[None]:
    host.run(["mkdir", "-p", "/etc/sdshim"])
    host.path("/etc/sdshim/config.toml").write_text(CONFIG)
    host.run(["systemctl", "restart", "sdshim.service"])
    yield
    host.path("/etc/sdshim/config.toml").unlink()
    host.run(["systemctl", "restart", "sdshim.service"])


@pytest.fixture
def patient(host: Host, impatient: None) -> Iterator[None]:
    """What makes a container or an exec may take its time."""
    path = host.path("/etc/sdshim/config.toml")
    path.write_text(CONFIG.replace("create_timeout = 1.5", "create_timeout = 40.0"))
    host.run(["systemctl", "restart", "sdshim.service"])
    yield
    path.write_text(CONFIG)
    host.run(["systemctl", "restart", "sdshim.service"])


@pytest.fixture
def runtime(rig: Rig, impatient: None) -> Iterator[Runtime]:
    made = Runtime(rig.host.path(HANGS))
    yield made
    made.work()  # (the rig still needs it)


def _bundle(
    rig: Rig, *command: str, notes: dict[str, str] | None = None
) -> tuple[Bundle, dict[str, Any]]:
    spec = spec_of(*(command or ("sleep", "1000"))) | {"annotations": notes or {}}
    bundle = rig.bundle("hung", spec=spec)
    options = pack(runc_pb2.Options(binary_name=HANGS))
    return bundle, {"id": "hung", "bundle": bundle.path, "options": options}


def _gone(host: Host, pid: int) -> None:
    eventually(lambda: not host.path(f"/proc/{pid}").exists(), "the hanging runtime is gone")


def _end(rig: Rig) -> None:
    rig.call("Kill", id="hung", signal=signal.SIGKILL)
    assert rig.call("Wait", id="hung").exit_status == 137
    rig.call("Delete", id="hung")
    rig.events.until("hung", "delete")


@pytest.mark.usefixtures("nobody_notices")
@pytest.mark.parametrize("notify", ["false", "true"])  # systemd ends it, or the daemon
def test_a_create_that_hangs_fails_and_leaves_nothing(
    rig: Rig, host: Host, runtime: Runtime, notify: str
) -> None:
    runtime.hang("create")
    bundle, fields = _bundle(rig, notes={"io.sdshim.notify": notify})
    code, text = rig.refused("Create", **fields)
    assert code == Code.UNKNOWN
    assert "OCI runtime create failed" in text
    assert f"{HANGS} did not end within 1.5 s (create_timeout) and was killed" in text
    _gone(host, runtime.pid())
    assert not rig.unit_exists("hung")
    assert rig.give_up(bundle).exit_status == 255


@pytest.mark.usefixtures("nobody_notices")
@pytest.mark.parametrize("command", COMMANDS if FULL else ["start", "resume", "delete"])
def test_a_command_that_hangs_is_killed_and_the_task_can_be_deleted(
    rig: Rig, host: Host, runtime: Runtime, command: str
) -> None:
    _, fields = _bundle(rig)
    rig.call("Create", **fields)
    more: dict[str, Any] = {}
    if command == "update":
        more["resources"] = _any({"pids": {"limit": 20}} if host.cgroup == "v1" else {})
    if command != "start":
        rig.call("Start", id="hung")
    if command == "resume":
        rig.call("Pause", id="hung")
    if command == "delete":
        rig.call("Kill", id="hung", signal=signal.SIGKILL)
        rig.call("Wait", id="hung")
    runtime.hang(command)
    code, text = rig.refused(command.capitalize(), id="hung", **more)
    assert code == Code.DEADLINE_EXCEEDED
    assert f"{HANGS} did not end within 1.5 s and was killed" in text
    _gone(host, runtime.pid())
    runtime.work()
    if command == "delete":
        rig.call("Delete", id="hung")
        return
    rig.call(command.capitalize(), id="hung", **more)
    if command == "pause":
        rig.call("Resume", id="hung")
    _end(rig)


def _exec_that_hangs(rig: Rig, runtime: Runtime) -> None:
    """A running container and an exec whose Start will hang."""
    _, fields = _bundle(rig)
    rig.call("Create", **fields)
    rig.call("Start", id="hung")
    runtime.hang("exec")
    rig.call("Exec", id="hung", exec_id="e", spec=exec_spec("true"))


@pytest.mark.usefixtures("nobody_notices")
def test_an_exec_that_hangs_fails_and_its_container_goes_on(
    rig: Rig, host: Host, runtime: Runtime
) -> None:
    _exec_that_hangs(rig, runtime)
    code, text = rig.refused("Start", id="hung", exec_id="e")
    assert code == Code.UNKNOWN
    assert "OCI runtime exec failed" in text
    assert f"{HANGS} did not end within 1.5 s (create_timeout) and was killed" in text
    _gone(host, runtime.pid())
    runtime.work()
    rig.call("Start", id="hung", exec_id="e")
    assert rig.call("Wait", id="hung", exec_id="e").exit_status == 0
    _end(rig)


@pytest.mark.parametrize("cut", [False, True] if FULL else [True])
def test_an_exec_that_hangs_while_its_container_is_killed_holds_that_up_only_for_a_while(
    rig: Rig, host: Host, runtime: Runtime, patient: None, cut: bool
) -> None:
    _exec_that_hangs(rig, runtime)
    start = rig.begin("Start", id="hung", exec_id="e")
    pid, daemon = runtime.pid(), daemon_pid(host)
    ends = [rig.begin("Wait", id="hung", exec_id=who) for who in ("", "e")]
    rig.call("Kill", id="hung", signal=signal.SIGKILL)
    if cut:
        kill_daemon(host)
        eventually(lambda: daemon_pid(host) not in (0, daemon), "a new daemon")
    with pytest.raises(UnknownError, match=f"exec failed: {HANGS} did not end with its container"):
        start.result(15)
    assert ends[0].result(15).exit_status == 137
    ends[1].result(15)
    _gone(host, pid)
    rig.call("Delete", id="hung")
    rig.events.until("hung", "delete")
    assert rig.events.of("hung") == ["create", "start", "exec-added", "exit", "delete"]


@pytest.mark.parametrize("command", ["start", "pause", "update"] if FULL else ["start", "pause"])
def test_the_next_daemon_goes_on_waiting_and_ends_it_too(
    rig: Rig, host: Host, runtime: Runtime, command: str
) -> None:
    _, fields = _bundle(rig)
    rig.call("Create", **fields)
    more: dict[str, Any] = {"resources": _any({})} if command == "update" else {}
    if command != "start":
        rig.call("Start", id="hung")
    runtime.hang(command)
    call = rig.begin(command.capitalize(), id="hung", **more)
    pid, daemon = runtime.pid(), daemon_pid(host)
    runtime.work()
    kill_daemon(host)
    eventually(lambda: daemon_pid(host) not in (0, daemon), "a new daemon")
    call.result(15)  # it killed the one that hung, and did it again
    _gone(host, pid)
    if command == "pause":
        rig.call("Resume", id="hung")
    _end(rig)


def test_what_hangs_is_no_matter_to_the_launchers_delete(
    rig: Rig, host: Host, runtime: Runtime
) -> None:
    bundle, fields = _bundle(rig)
    rig.call("Create", **fields)
    runtime.hang("start")
    call = rig.begin("Start", id="hung")
    runtime.pid()
    assert rig.give_up(bundle).exit_status == 137
    assert call.exception(15) is not None
    assert not rig.unit_exists("hung")
