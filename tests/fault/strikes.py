"""What is done to the daemon and to what it depends on, from outside the host."""

from __future__ import annotations

import os
import select
import signal
import time
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
    """SIGKILL to the daemon, if it is up; it is dead on return, so the next one that is seen is
    another (a start asked for sooner would share the fate of this one's)."""
    pid = daemon_pid(host)
    if not pid:
        return False
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def restart_daemon(host: Host) -> bool:
    """What an upgrade does."""
    host.run(["systemctl", "restart", "--no-block", "sdshim.service"])
    return True


def strike_kill(field: Field, pause: float) -> None:
    """SIGKILL to the daemon a while after it has begun to serve; every fourth one comes early and
    may hit it while it takes over. (Were it always so, a busy machine would see nothing else.)"""
    while True:
        eventually(lambda: daemon_pid(field.host) != 0, "a daemon", timeout=30)
        if field.tally.done["kills"] % 4 != 3:
            field.host.run(["systemctl", "start", "sdshim.service"])  # returns when it serves
        time.sleep(pause)
        if kill_daemon(field.host):
            return


def strike_restart(field: Field, pause: float) -> None:
    """`systemctl restart sdshim`, as an upgrade does it, to its end."""
    time.sleep(pause)
    field.host.run(["systemctl", "restart", "sdshim.service"], timeout=60)


def strike_stop(field: Field, pause: float) -> None:
    """Stop, then start: what the store holds is kept from systemd 254 on."""
    time.sleep(pause)
    field.host.run(["systemctl", "stop", "sdshim.service"], timeout=60)
    field.host.run(["systemctl", "start", "sdshim.service"], timeout=60)


def strike_containerd(field: Field, pause: float) -> None:
    """`systemctl restart containerd`, or its death by SIGKILL, by turns."""
    time.sleep(pause)
    with field.containerd_away() as number:
        command = "systemctl restart containerd"
        if number % 2 == 0:
            command = f"systemctl kill --signal=KILL containerd; {command}"
        field.host.run(["sh", "-c", command], timeout=60)


def strike_dbus(field: Field, pause: float) -> None:
    """`systemctl restart dbus`: every connection to the bus is closed."""
    time.sleep(pause)
    field.host.run(["systemctl", "restart", "dbus.service"], timeout=60)
    field.host.run(["systemctl", "reset-failed", "dbus.service"])  # or it is too often in a row


def strike_reexec(field: Field, pause: float) -> None:
    """systemd starts anew, with its state."""
    time.sleep(pause)
    field.host.run(["systemctl", "daemon-reexec"], timeout=60)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that is done again and again under load."""

    name: str
    count: int
    strike: Callable[[Field, float], None]
    """Strikes after a pause."""
    pause: float
    """Seconds, at most."""
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
