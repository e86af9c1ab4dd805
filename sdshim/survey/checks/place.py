"""Containers and drop-ins that take something of what makes a container its unit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import names
from sdshim.core.diagnosis import Finding, Level
from sdshim.core.errors import ShimError
from sdshim.runtime.bundle import load_spec
from sdshim.survey.facts import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdshim.survey.facts import Facts

NOTIFY = "/run/systemd/notify"
"""systemd's notification socket (257 and newer: a link to a folder beside it)."""
UNIT_FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
IMPLIES_MOUNT_NAMESPACE = frozenset(
    [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "ExtensionDirectories",
        "ExtensionImages",
        "InaccessiblePaths",
        "LogNamespace",
        "MountAPIVFS",
        "MountFlags",
        "MountImages",
        "NetworkNamespacePath",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootEphemeral",
        "RootImage",
        "TemporaryFileSystem",
    ]
)
"""systemd.exec(5): what puts a service into a mount namespace of its own. The daemon cannot have
one; what is in a container's unit goes back to the host's (launcher/hostmounts.sh)."""
STOPS_CONTAINERS = frozenset(
    [
        "DynamicUser",
        "PrivateDevices",
        "PrivatePIDs",
        "PrivateUsers",
        "RootDirectory",
        "RootImage",
        "User",
    ]
)
"""What takes from the OCI runtime what it needs: root, capabilities, its own files. Each tried."""
_OFF = ("", "0", "no", "n", "false", "f", "off", "all", "default", "root", "/")


def foreign_cgroups(facts: Facts) -> Iterator[Finding]:
    """Containers in a cgroup that somebody else made (kubelet's cgroupfs driver)."""
    found = [
        (entry.name, entry.record.identity.cgroup)
        for entry in facts.tasks
        if entry.record and not entry.record.identity.owns_cgroup
    ]
    if found:
        name, path = found[0]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        text = (
            f"{name}{more} runs in a cgroup of somebody else ({path}): limits of the unit and its "
            "slice do not reach it, systemctl status lists no process of it"
        )
        advice = "kubelet: cgroupDriver: systemd, and SystemdCgroup = true for the handler"
        yield Finding("foreign-cgroups", Level.WARNING, "cgroups", text, advice)


def host_run(facts: Facts) -> Iterator[Finding]:
    """A container that has the host's /run can speak to systemd as its unit, and to containerd."""
    for entry in facts.tasks:
        if entry.record is None:
            continue
        try:
            spec = load_spec(Path(entry.record.identity.bundle))
        except ShimError:
            continue
        for mount in spec.get("mounts") or ():
            source = str(mount.get("source", "")) if isinstance(mount, dict) else ""
            if _holds_notify(source):
                text = f"{entry.name} is given the host's {source}: it can tell systemd anything"
                text += " of its own unit (status, main process), and reach root's sockets"
                advice = "mount what it needs of /run only"
                yield Finding("host-run", Level.WARNING, entry.name, text, advice)
                break


def _holds_notify(source: str) -> bool:
    path = source.rstrip("/").replace("/var/run", "/run", 1)
    return source.startswith("/") and (path == NOTIFY or NOTIFY.startswith(f"{path}/"))


def mount_namespace(facts: Facts) -> Iterator[Finding]:
    """What gives the daemon a mount namespace of its own."""
    for path, key in _settings("service.d", f"{SERVICE}.d", keys=IMPLIES_MOUNT_NAMESPACE):
        text = f"{path} sets {key}=, which puts the daemon into a mount namespace"
        text += ": what it mounts and unmounts there the host does not see"
        advice = (
            f"remove {key}= there, then systemctl daemon-reload and systemctl restart {SERVICE}"
        )
        yield Finding("mount-namespace", Level.FAULT, f"{path}:{key}", text, advice)
    pid = facts.daemon.get("MainPID")
    if isinstance(pid, int) and pid and _namespace(pid) not in ("", _namespace(1)):
        text = f"{SERVICE} (pid {pid}) runs in a mount namespace of its own"
        advice = f"systemctl cat {SERVICE}; systemctl restart {SERVICE}"
        yield Finding("mount-namespace", Level.FAULT, SERVICE, text, advice)


def drop_ins(facts: Facts) -> Iterator[Finding]:
    """Drop-ins with which no container starts."""
    for path, key in _settings(
        "service.d", f"{names.PREFIX}*{names.SUFFIX}.d", keys=STOPS_CONTAINERS
    ):
        text = f"{path} sets {key}=, which takes from the OCI runtime what it needs"
        text += ": no container starts"
        advice = f"remove {key}= there, then systemctl daemon-reload; it belongs in the OCI spec"
        yield Finding("drop-ins", Level.FAULT, f"{path}:{key}", text, advice)


def _settings(*folders: str, keys: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """(file, key) of drop-ins in folders of these names that set one of the keys."""
    seen = set()
    for top in UNIT_FOLDERS:
        units = Path(top, "systemd/system")
        if units.resolve() in seen:  # /lib is /usr/lib
            continue
        seen.add(units.resolve())
        for place in (one for name in folders for one in sorted(units.glob(name))):
            for path in sorted(place.glob("*.conf")):
                for key in _set(path.read_text(errors="replace"), keys):
                    yield path, key


def _set(text: str, keys: frozenset[str]) -> list[str]:
    """Those of the keys that a unit file sets and does not switch off."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*(.*?)\s*", line)
        if match and match[1] in keys:
            found[match[1]] = match[2].lower() not in _OFF
    return [key for key, on in found.items() if on]


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return ""
