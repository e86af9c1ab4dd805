"""What is done to the daemon and to what it depends on, from outside the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from tests.host import Host


def daemon_pid(host: Host) -> int:
    """The daemon's pid outside, 0 while there is none. Its children share its cgroup."""
    procs = host.cgroup_path / "system.slice/sdshim.service/cgroup.procs"
    try:
        for pid in procs.read_text().split():
            if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    except OSError:
        pass
    return 0


def kill_daemon(host: Host) -> bool:
    """SIGKILL to the daemon, if it is up."""
    pid = daemon_pid(host)
    if not pid:
        return False
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return False
    return True


def restart_daemon(host: Host) -> bool:
    """What an upgrade does."""
    host.run(["systemctl", "restart", "--no-block", "sdshim.service"])
    return True


def await_another(host: Host, pid: int) -> None:
    """A daemon runs that is not the one of that pid."""
    eventually(lambda: daemon_pid(host) not in (0, pid), "the next daemon", timeout=30)
