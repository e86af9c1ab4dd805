"""The daemon and what it stands on: bus, containerd, fd store, outbox, disk, permissions."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import sdshim
from sdshim.core import headroom
from sdshim.core.config import DEFAULT_PATH
from sdshim.core.diagnosis import Act, Finding, Level, Repair
from sdshim.core.table import ago
from sdshim.survey.facts import SERVICE, SOCKET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdshim.survey.facts import Facts

SLOW_BUS_S = 2.0
OUTBOX_WARNING_S, OUTBOX_FAULT_S = 15, 300
"""Age of the oldest event; containerd takes one in milliseconds."""
FREE_WARNING, FREE_FAULT = 0.10, 0.02


def bus(facts: Facts) -> Iterator[Finding]:
    """systemd must answer, and soon."""
    if facts.bus_error:
        text = f"systemd cannot be asked over the system bus: {facts.bus_error}"
        yield Finding("bus", Level.FAULT, "bus", text, "systemctl status dbus; journalctl -u dbus")
    elif facts.bus_seconds > SLOW_BUS_S:
        text = f"systemd took {facts.bus_seconds:.1f} s to answer a question over the bus"
        yield Finding("bus", Level.WARNING, "slow", text, "systemctl list-jobs; busctl status")


def runs(facts: Facts) -> Iterator[Finding]:
    """The daemon runs when there is work for it, answers, and is the one that is installed."""
    if facts.bus_error:
        return
    if facts.daemon.get("LoadState") != "loaded":
        text = f"{SERVICE} is not installed"
        yield Finding("daemon", Level.FAULT, SERVICE, text, "packaging/install.sh")
        return
    if facts.socket_state != "active":
        text = f"{SOCKET} is {facts.socket_state}: no container can be started"
        yield Finding("daemon", Level.FAULT, SOCKET, text, f"systemctl enable --now {SOCKET}")
    state = facts.daemon.get("ActiveState")
    waiting = len(facts.tasks)
    if state == "failed" or (waiting and state != "active"):
        text = f"{SERVICE} is {state}; calls for {waiting} tasks wait"
        advice = f"journalctl -u {SERVICE}; systemctl start {SERVICE}"
        yield Finding("daemon", Level.FAULT, SERVICE, text, advice, passing=state == "activating")
    elif state == "active" and facts.daemon_error:
        text = f"{SERVICE} runs and does not answer: {facts.daemon_error}"
        advice = f"journalctl -u {SERVICE}; systemctl restart {SERVICE} (no container notices)"
        yield Finding("daemon", Level.FAULT, SERVICE, text, advice, passing=True)
    elif state == "active" and _installed_us() > _microseconds(facts, "ExecMainStartTimestamp"):
        text = f"{SERVICE} was started before the sdshim that is installed now"
        advice = f"systemctl restart {SERVICE} (no container notices)"
        yield Finding("daemon", Level.WARNING, "old", text, advice)
    if facts.daemon.get("NeedDaemonReload"):
        text = f"the unit file of {SERVICE} or a drop-in has changed on disk"
        yield Finding("daemon", Level.WARNING, "reload", text, "systemctl daemon-reload")


def _installed_us() -> int:
    """When the installed package was turned to, in µs; 0 in a layout that does not tell."""
    link = _library() / "sdshim"
    return link.lstat().st_mtime_ns // 1000 if link.is_symlink() else 0


def _library() -> Path:
    """PREFIX/lib/sdshim: packaging/install.sh puts us into v/HASH/sdshim below it."""
    return Path(sdshim.__file__).resolve().parents[3]


def _microseconds(facts: Facts, name: str) -> int:
    value = facts.daemon.get(name)
    return value if isinstance(value, int) else 0


def containerds(facts: Facts) -> Iterator[Finding]:
    """Each containerd that has tasks here, and the configured one, must answer."""
    for view in facts.views:
        if view.error:
            text = f"containerd at {view.address} cannot be asked: {view.error}"
            advice = "systemctl status containerd; containerd_address in the configuration"
            yield Finding("containerd", Level.UNKNOWN, view.address, text, advice)


def fd_store(facts: Facts) -> Iterator[Finding]:
    """Beyond FileDescriptorStoreMax systemd closes what it is given: connections would be lost."""
    used = facts.daemon.get("NFileDescriptorStore")
    most = facts.daemon.get("FileDescriptorStoreMax")
    if not isinstance(used, int) or not isinstance(most, int):
        return
    if headroom.is_tight(used, most):
        full = not headroom.has_room(used, headroom.CONTAINER, most)
        level = Level.FAULT if full else Level.WARNING
        text = f"the daemon's fd store has {used} of {most} descriptors"
        text += ": new containers and execs are refused" if full else ""
        advice = (
            f"fewer containers on this node, or a larger FileDescriptorStoreMax= by systemctl edit "
            f"{SERVICE} (not above 8192, and below LimitNOFILE=)"
        )
        yield Finding("fd-store", level, "fd-store", text, advice)


def outbox(facts: Facts) -> Iterator[Finding]:
    """Events that a containerd does not take."""
    waiting: dict[str, list[int]] = {}
    for entry in facts.entries:
        if entry.record is None:
            continue
        address = entry.record.identity.containerd
        taken = facts.acknowledged.get(address, 0)
        times = [event.time_ns for event in entry.record.events if event.seq > taken]
        waiting.setdefault(address, []).extend(times)
    for address, times in waiting.items():
        seconds = (facts.now_ns - min(times)) / 1e9 if times else 0.0
        if seconds < OUTBOX_WARNING_S:
            continue
        level = Level.FAULT if seconds >= OUTBOX_FAULT_S else Level.WARNING
        oldest = ago(min(times), facts.now_ns)
        text = f"{len(times)} events wait for {address}, the oldest from {oldest}"
        advice = f"systemctl status containerd; journalctl -u {SERVICE}"
        yield Finding("outbox", level, address, text, advice)


def disk(facts: Facts) -> Iterator[Finding]:
    """State is written below /run: without room no container starts."""
    if not facts.run_dir.exists():
        return
    told = os.statvfs(facts.run_dir)
    for what, free, most in (
        ("space", told.f_bavail, told.f_blocks),
        ("inodes", told.f_favail, told.f_files),
    ):
        share = free / most if most else 1.0
        if share < FREE_WARNING:
            level = Level.FAULT if share < FREE_FAULT else Level.WARNING
            text = f"{share:.0%} of the {what} below {facts.run_dir} are free"
            yield Finding("disk", level, what, text, "df -h /run; df -i /run")


def permissions(facts: Facts) -> Iterator[Finding]:
    """Sockets and state are root's alone; what root runs and reads, only root may change."""
    run = facts.run_dir
    private = [(run, 0o700), *((run / name, 0o700) for name in "stec")]
    private += [(run / "sdshim.sock", 0o600), *((path, 0o600) for path in sorted(run.glob("s/*")))]
    for path, mode in private:
        yield from _private(path, mode)
    library = _library()
    programs = sorted((library.parents[1] / "bin").glob("*shim*"))
    for path in (Path(DEFAULT_PATH), library, *programs):
        yield from _not_writable(path)


def _private(path: Path, mode: int) -> Iterator[Finding]:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(facts.st_mode) or facts.st_uid != 0:
        text = f"{path} is {'a link' if stat.S_ISLNK(facts.st_mode) else 'not owned by root'}"
        advice = "find out who made it; then restart the node or move its containers away"
        yield Finding("permissions", Level.FAULT, str(path), text, advice)
    elif stat.S_IMODE(facts.st_mode) & ~mode:
        text = f"{path} has mode {stat.S_IMODE(facts.st_mode):04o}, not {mode:04o}"
        repair = Repair(Act.CHMOD, (f"{mode:04o}", str(path)))
        advice = "sdshim doctor --fix sets it"
        yield Finding("permissions", Level.FAULT, str(path), text, advice, repair)


def _not_writable(path: Path) -> Iterator[Finding]:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return
    if facts.st_uid != 0 or facts.st_mode & 0o022:
        mode = stat.S_IMODE(facts.st_mode)
        text = f"{path} (owner {facts.st_uid}, mode {mode:04o}) can be changed by others than root"
        advice = f"chown root: {path}; chmod go-w {path}"
        yield Finding("permissions", Level.FAULT, str(path), text, advice)
