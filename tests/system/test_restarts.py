"""Restarts around running containers: containerd's own."""

from __future__ import annotations

import pytest

from tests.system.client import Ctr, events

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_a_restart_of_containerd_keeps_running_and_stopped_tasks(ctr: Ctr) -> None:
    host = ctr.host
    ctr.start("runs", "sleep", "1000")
    ctr.start("stopped", "sh", "-c", "exit 5")
    ctr.start("stopping", "sh", "-c", "until [ -e /go ]; do sleep 0.01; done; exit 6")
    try:
        ctr.await_status("stopped", "STOPPED")
        pid = next(
            x for x in ctr.call("task", "ls").stdout.splitlines() if x.startswith("stopping")
        ).split()[1]
        host.run(["systemctl", "stop", "containerd"])
        # It ends while containerd is away.
        host.run(["sh", "-c", f"touch /proc/{pid}/root/go; tail --pid={pid} -s 0.05 -f /dev/null"])
        host.run(["systemctl", "start", "containerd"])
        assert ctr.status("runs") == "RUNNING"
        ctr.await_status("stopping", "STOPPED")
        if host.containerd_version >= (1, 7):
            assert ctr.status("stopped") == "STOPPED"
        assert ctr.delete("stopping") == 6
        assert ctr.delete("stopped") == 5
        with events(host) as seen:
            ctr.call("task", "kill", "-s", "SIGKILL", "runs")
            seen.until("runs", "exit")
        assert ctr.delete("runs") == 137
    finally:
        ctr.remove("runs", "stopped", "stopping")
