"""Readiness of a container: the OCI spec that gives it a NOTIFY_SOCKET, and which of the words it
says there are passed on to systemd (pure).

The container speaks to a socket of the daemon's, not to systemd: a process in another pid
namespace would name pids that mean something else here (MAINPID=), could keep descriptors in PID 1
(FDSTORE=), or have itself killed (WATCHDOG=trigger). What is passed on says something about the
unit and leaves its life, which is containerd's, alone.
"""

from __future__ import annotations

from typing import Any

FOLDER, SOCKET = "notify", "socket"
"""In the task's state folder; the folder is what the container sees."""
INSIDE = "/run/host/notify"
"""Where it sees it. /run/host is the place for what a container manager gives to its payload
(systemd's container interface); /run/systemd/notify is that of a systemd inside."""
VARIABLE = "NOTIFY_SOCKET"
MAX_MESSAGE = 4096
"""Bytes of one message, as in systemd."""
MAX_STATUS = 256
READY, BARRIER = "READY=1", "BARRIER=1"
_STATUS = "STATUS="


def with_socket(spec: dict[str, Any], state_dir: str) -> dict[str, Any]:
    """The spec of a container that is to reach the socket in `state_dir`; done twice it is the
    same. A spec without a process gets the mount only."""
    mount = {
        "destination": INSIDE,
        "type": "bind",
        "source": f"{state_dir}/{FOLDER}",
        "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
    }
    # Last: a mount of the spec's own on /run is below it then.
    mounts = [one for one in _list(spec.get("mounts")) if not _is_at(one, INSIDE)]
    changed = {**spec, "mounts": [*mounts, mount]}
    process = spec.get("process")
    if isinstance(process, dict):
        kept = [one for one in _list(process.get("env")) if not _is_variable(one)]
        env = [*kept, f"{VARIABLE}={INSIDE}/{SOCKET}"]
        changed["process"] = {**process, "env": env}
    return changed


def passed_on(message: bytes) -> str:
    """What of a container's message systemd is told; empty for nothing.

    `READY=1`, and `STATUS=` with its text made fit for a terminal. Everything else is dropped: the
    container's own pids, descriptors and watchdog mean nothing outside; `STOPPING=1` would have
    systemd kill after TimeoutStopSec, and a unit that is `RELOADING=1` cannot be frozen.
    """
    lines = message.decode(errors="replace").split("\n")
    kept = [READY] if READY in lines else []
    for line in lines:
        if line.startswith(_STATUS):
            text = line.removeprefix(_STATUS)[:MAX_STATUS]
            shown = "".join(char if char.isprintable() else "?" for char in text)
            kept.append(f"{_STATUS}{shown}")
    return "\n".join(kept)


def wants_answer(message: bytes) -> bool:
    """Whether the sender waits until systemd has dealt with what it said (sd_notify_barrier)."""
    return BARRIER.encode() in message.split(b"\n")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_at(mount: object, place: str) -> bool:
    return isinstance(mount, dict) and mount.get("destination") == place


def _is_variable(entry: object) -> bool:
    return isinstance(entry, str) and entry.startswith(f"{VARIABLE}=")
