"""/run without space or without inodes: new work is refused, all that runs can end and be removed.

The host's whole /run is full, not only our part of it: systemd, the OCI runtime and the exit hook
find no room either.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import Code
from tests.fault.daemons import next_daemon_waits
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.conftest import rig
from tests.system.taskclient import eventually, exec_spec, no_traceback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]
pytestmark = [
    pytest.mark.system,
    pytest.mark.fault,
    pytest.mark.roots("trixie"),
    pytest.mark.cgroup("v1"),
]

WHATS = ("space", "inodes")
FILL = """
used=$(df --output={used} /run | tail -n1)
mount -o remount,{limit}=$((used + 100)){unit} /run
mkdir /run/fill
{fill}
"""
SPACE = "cat /dev/zero >/run/fill/1 2>/dev/null || :"
INODES = "cd /run/fill; seq 200 | xargs touch 2>/dev/null || :"
FREE = "rm -rf /run/fill; mount -o remount,size=50%,nr_inodes=100k /run"


@contextlib.contextmanager
def full_run(host: Host, what: str) -> Iterator[None]:
    """/run has nothing left of `what`."""
    if what == "space":
        script = FILL.format(used="used", limit="size", unit="k", fill=SPACE)
    else:
        script = FILL.format(used="iused", limit="nr_inodes", unit="", fill=INODES)
    host.run(["sh", "-c", script])
    try:
        yield
    finally:
        host.run(["sh", "-c", FREE])


@pytest.mark.parametrize("what", WHATS)
def test_new_work_is_refused_and_what_runs_ends_as_ever(rig: Rig, host: Host, what: str) -> None:
    new = rig.bundle("new", "sleep", "1000")
    rig.created("waits")
    for name in ("killed", "other"):
        rig.running(name)
    ends = {name: rig.begin("Wait", id=name) for name in ("killed", "other")}
    daemon = daemon_pid(host)
    with full_run(host, what), no_traceback(host):
        code, text = rig.refused("Create", id="new", bundle=new.path)
        assert code == Code.RESOURCE_EXHAUSTED
        assert "No space left on device" in text
        more: dict[str, Any] = {"exec_id": "e", "spec": exec_spec("true")}
        code, text = rig.refused("Exec", id="other", **more)
        assert code == Code.RESOURCE_EXHAUSTED
        assert "No space left on device" in text
        rig.call("Kill", id="killed", signal=signal.SIGKILL)
        assert ends["killed"].result(10).exit_status == 137
        rig.events.until("killed", "exit")
        assert rig.call("Delete", id="killed").exit_status == 137
        rig.events.until("killed", "delete")
        rig.call("Pause", id="other")
        rig.call("Resume", id="other")
        rig.call("Kill", id="waits", signal=signal.SIGKILL)
        assert rig.call("Wait", id="waits").exit_status == 137
        rig.call("Delete", id="waits")
        for _ in range(600):  # more than the call log has set aside room for
            rig.call("Kill", id="other", signal=0)
        assert not ends["other"].done()
    assert daemon_pid(host) == daemon
    rig.running("later")
    rig.call("Exec", id="other", **more)
    rig.call("Start", id="other", exec_id="e")
    rig.call("Kill", id="other", signal=signal.SIGKILL)
    assert ends["other"].result(10).exit_status == 137


@pytest.mark.parametrize("what", WHATS)
def test_an_exit_while_no_daemon_is_there_is_told_by_systemd(
    rig: Rig, host: Host, what: str
) -> None:
    line = "read -r status; exit $status"
    bundle = rig.bundle("ends", "sh", "-c", line)
    fifo = bundle.fifo("stdin")
    rig.call("Create", id="ends", bundle=bundle.path, stdin=fifo)
    rig.call("Start", id="ends")
    end = rig.begin("Wait", id="ends")
    with next_daemon_waits(host) as go, full_run(host, what):
        kill_daemon(host)
        (bundle.outside / "stdin").write_text("7\n")
        state = ["systemctl", "show", "-P", "ActiveState", "sdshim-default-ends.service"]
        eventually(lambda: host.run(state).stdout.strip() == "failed", "its end")
        go.touch()
        assert end.result(15).exit_status == 7
        rig.events.until("ends", "exit")
        kill_daemon(host)
        assert rig.call("Delete", id="ends").exit_status == 7
        rig.events.until("ends", "delete")
    assert rig.events.of("ends") == ["create", "start", "exit", "delete"]
