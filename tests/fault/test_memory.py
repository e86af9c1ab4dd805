"""The daemon is killed for want of memory, in a cgroup of its own: a death like any other."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.fault.daemons import limited
from tests.fault.marks import fault_on
from tests.fault.strikes import daemon_pid
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = fault_on("trixie", "v1")  # where there is a memory controller

GROUP = "/sys/fs/cgroup/memory/system.slice/sdshim.service"
EATER = f"echo 1000 >/proc/$1/oom_score_adj; echo $$ >{GROUP}/cgroup.procs; exec tail /dev/zero"


def test_a_daemon_that_the_kernel_kills_loses_nothing(rig: Rig, host: Host) -> None:
    with limited(host, "MemoryMax=100M"):
        rig.running("box")
        end = rig.begin("Wait", id="box")
        before = daemon_pid(host)
        inside = host.run(["systemctl", "show", "-P", "MainPID", "sdshim.service"]).stdout.strip()
        host.run(["sh", "-c", EATER, "sh", inside], check=False)
        eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")
        shown = ["journalctl", "-o", "cat", "--no-pager", "-u", "sdshim.service"]
        assert "code=killed, status=9/KILL" in host.run(shown).stdout
        assert not end.done()
        rig.call("Kill", id="box", signal=signal.SIGKILL)
        assert end.result(10).exit_status == 137
        rig.call("Delete", id="box")
        rig.events.until("box", "delete")
        assert rig.events.of("box") == ["create", "start", "exit", "delete"]
