"""What is done to the daemon and to what it depends on, from outside the host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fault.field import Field
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


def strike_kill(field: Field) -> bool:
    """SIGKILL to the daemon as soon as there is one: also to one that is just starting."""
    eventually(lambda: daemon_pid(field.host) != 0, "a daemon", timeout=30)
    return kill_daemon(field.host)


def strike_restart(field: Field) -> bool:
    """`systemctl restart sdshim`, as an upgrade does it, to its end."""
    field.host.run(["systemctl", "restart", "sdshim.service"], timeout=60)
    return True


def strike_stop(field: Field) -> bool:
    """Stop, then start: what the store holds is kept from systemd 254 on."""
    field.host.run(["systemctl", "stop", "sdshim.service"], timeout=60)
    field.host.run(["systemctl", "start", "sdshim.service"], timeout=60)
    return True


def strike_containerd(field: Field) -> bool:
    """`systemctl restart containerd`, or its death by SIGKILL, by turns."""
    with field.containerd_away() as number:
        if number % 2:
            field.host.run(["systemctl", "restart", "containerd.service"], timeout=60)
        else:
            command = "systemctl kill --signal=KILL containerd; systemctl restart containerd"
            field.host.run(["sh", "-c", command], timeout=60)
    return True


def strike_dbus(field: Field) -> bool:
    """`systemctl restart dbus`: every connection to the bus is closed."""
    field.host.run(["systemctl", "restart", "dbus.service"], timeout=60)
    field.host.run(["systemctl", "reset-failed", "dbus.service"])  # or it is too often in a row
    return True


def strike_reexec(field: Field) -> bool:
    """systemd starts anew, with its state."""
    field.host.run(["systemctl", "daemon-reexec"], timeout=60)
    return True


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that is done again and again under load."""

    name: str
    count: int
    strike: Callable[[Field], bool]
    pause: float
    """Seconds between two strikes, at most."""
    systemd: int = 0
    """The oldest systemd that can do it."""
    flows: bool = False
    """Instead of workers a container that floods a FIFO, and somebody at a terminal."""


SCENARIOS: Final = (
    Scenario("SIGKILL of the daemon", 100, strike_kill, 1.6),
    Scenario("SIGKILL while streams flow", 20, strike_kill, 1.0, flows=True),
    Scenario("systemctl restart sdshim", 50, strike_restart, 1.6),
    Scenario("containerd's restart or SIGKILL", 20, strike_containerd, 3.0),
    Scenario("systemctl restart dbus", 10, strike_dbus, 3.0),
    Scenario("systemctl daemon-reexec", 10, strike_reexec, 3.0),
    Scenario("systemctl stop and start sdshim", 10, strike_stop, 3.0, systemd=254),
)


def await_another(host: Host, pid: int) -> None:
    """A daemon runs that is not the one of that pid."""
    eventually(lambda: daemon_pid(host) not in (0, pid), "the next daemon", timeout=30)
