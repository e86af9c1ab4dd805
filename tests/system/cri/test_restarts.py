"""Pods under a restart of containerd and a SIGKILL of the daemon."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.system.cri.pods import GRACEFUL, HANDLERS, MARKS, ready
from tests.tools import cri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.cri.pods import Pods

pytestmark = MARKS


@pytest.mark.parametrize("handler", HANDLERS)
def test_pods_live_on_through_a_restart_of_containerd(pods: Pods, host: Host, handler: str) -> None:
    pod = pods.run(handler)
    running = pod.run("running", GRACEFUL)
    ended = pod.run("ended", "exit 7")
    dies = pod.run("dies", "while ! [ -e /tmp/now ]; do sleep 0.05; done; exit 9")
    created = pod.create("created", "exit 4")
    running.logged("ready")
    ended.exited()
    pid = running.pid()
    rootfs = host.path(f"/proc/{dies.pid()}/root")
    host.run(["systemctl", "stop", "containerd"])
    (rootfs / "tmp/now").touch()
    host.run(["systemctl", "start", "containerd"])
    ready(pods.cri)
    assert pod.status().state == cri.READY
    assert (running.status().state, running.pid()) == (cri.RUNNING, pid)
    assert ended.status().exit_code == 7
    assert dies.exited().exit_code == 9
    assert running.exec("echo", "hello") == (0, "hello\n")
    created.call("StartContainer")
    assert created.exited().exit_code == 4
    running.call("StopContainer", timeout=60)
    assert running.status().exit_code == 3
    assert running.logged("bye")  # its log was taken up again


def test_no_call_is_lost_when_the_daemon_is_killed(pods: Pods, host: Host) -> None:
    pod = pods.run()
    living = pod.run("living", GRACEFUL)
    living.logged("ready")
    slow = pods.cri.start("ExecSync", container_id=living.id, cmd=["sh", "-c", "sleep 1; exit 6"])
    starts = [pod.create(f"c{n}", f"exit {n}") for n in range(4)]
    calls = []
    for container in starts:
        calls.append(pods.cri.start("StartContainer", container_id=container.id))
        _kill_daemon(host)
    for call in calls:
        call.result()
    assert [container.exited().exit_code for container in starts] == [0, 1, 2, 3]
    assert slow.result().exit_code == 6
    assert living.exec("echo", "hello") == (0, "hello\n")
    _kill_daemon(host)
    living.call("StopContainer", timeout=60)
    assert living.status().exit_code == 3


def _kill_daemon(host: Host) -> None:
    host.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "sdshim.service"])
    host.run(["systemctl", "start", "sdshim.service"])


def test_a_pod_lives_its_whole_life_under_sigkills_of_the_daemon(pods: Pods, host: Host) -> None:
    with _kills(host) as count:
        pod = pods.run("as-runc")
        quick, long = pod.run("quick", "echo line; exit 5"), pod.run("long", GRACEFUL)
        assert quick.exited().exit_code == 5
        assert [line.split(" ", 1)[1] for line in quick.logged("line")] == ["stdout F line"]
        assert long.exec("sh", "-c", "echo hello; exit 6") == (6, "hello\n")
        assert long.logged("ready")
        long.call("StopContainer", timeout=60)
        assert long.status().exit_code == 3
        pod.remove()
    assert count


@contextmanager
def _kills(host: Host) -> Iterator[list[float]]:
    """SIGKILLs as soon as the daemon is up again; when they were sent."""
    sent: list[float] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.1):
            sent.append(time.monotonic())
            _kill_daemon(host)

    killer = threading.Thread(target=kill, name="kills")
    killer.start()
    try:
        yield sent
    finally:
        over.set()
        killer.join()
