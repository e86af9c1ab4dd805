"""The daemon is killed around an OOM kill: /tasks/oom comes once, and before the exit."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.conftest import rig
from tests.system.taskclient import Rig, eventually
from tests.system.test_oom import HOG, KILLED, _say, _talking

if TYPE_CHECKING:
    from tests.host import Host

__all__ = ["rig"]
pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.controllers]

MOMENTS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05)
"""Seconds from the word to the container; its memory is full after some 10 ms."""


@pytest.mark.parametrize("pause", MOMENTS)
@pytest.mark.parametrize("whose", ["init", "child"])
def test_an_oom_kill_is_told_once_and_before_the_exit(
    rig: Rig, host: Host, whose: str, pause: float
) -> None:
    script = f"read x; exec {HOG}" if whose == "init" else f"read x; {HOG}; echo $?; read x"
    bundle = _talking(rig, "torn", script)
    before = daemon_pid(host)
    _say(bundle)
    time.sleep(pause)
    kill_daemon(host)
    if whose == "child":
        assert bundle.read_line("stdout").strip() == str(KILLED).encode()
        rig.events.until("torn", "oom")
        rig.call("Kill", id="torn", signal=signal.SIGKILL)
    assert rig.call("Wait", id="torn").exit_status == KILLED
    eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")
    rig.events.until("torn", "exit")
    assert rig.call("Delete", id="torn").exit_status == KILLED
    rig.events.until("torn", "delete")
    assert rig.events.of("torn") == ["create", "start", "oom", "exit", "delete"]
