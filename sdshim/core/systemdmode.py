"""A container whose first process is systemd: when it is one, and what its OCI spec needs. Pure.

After podman-run(1), --systemd: file systems in memory where systemd wants to write, its cgroup to
manage, and the words of systemd's container interface in its environment. What the spec has
already at one of these places stays. On cgroup v2 the container sees its own cgroup alone (a
cgroup namespace) and may write to it. On hybrid v1 too, but there only systemd's own hierarchy may
be written to: in a controller's the container could lift its own limits, namespace or not.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.model import RuntimeOptions
    from sdshim.core.names import TaskKey

ANNOTATION = "io.sdshim.systemd"
MODES = ("true", "false", "always")
"""Of the annotation; `true`, the default, looks at the command."""
COMMANDS = ("/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init")
"""What is systemd beside any program called `systemd`."""
STOP_SIGNAL = "SIGRTMIN+3"
"""systemd(1): halt. SIGTERM would make it start anew."""
TMPFS = ("/run", "/run/lock", "/tmp", "/var/log/journal")
CGROUP = "/sys/fs/cgroup"
_NAMED = f"{CGROUP}/systemd"
"""systemd's own hierarchy on v1."""
_PLAIN = ["nosuid", "nodev", "noexec"]


def wanted(spec: Mapping[str, Any], notes: Mapping[str, str]) -> bool:
    """Whether a spec, with these annotations, is for systemd. Raises InvalidArgument for an
    annotation that says neither."""
    mode = notes.get(ANNOTATION, "true")
    if mode not in MODES:
        raise InvalidArgument(
            f"annotation {ANNOTATION}: {mode[:64]!r} is not one of {', '.join(MODES)}"
        )
    return mode == "always" or (mode == "true" and _is_systemd(spec.get("process")))


def _is_systemd(process: Any) -> bool:
    args = process.get("args") if isinstance(process, dict) else None
    first = args[0] if isinstance(args, list) and args else ""
    if not isinstance(first, str):
        return False
    return first in COMMANDS or posixpath.basename(first) == "systemd"


def prepare(spec: dict[str, Any], key: TaskKey, cgroup: str, *, unified: bool) -> dict[str, Any]:
    """The spec with what systemd needs; done twice it is the same. `cgroup` is the container's,
    from the hierarchy's root. Raises InvalidArgument for a spec that is none."""
    mounts = _part(spec, "mounts")
    namespaces = _part(spec, "linux", "namespaces")
    if not _is_bound(mounts):
        mounts = _with_cgroups(mounts, cgroup, unified=unified)
        if not any(_get(one, "type") == "cgroup" for one in namespaces):
            namespaces = [*namespaces, {"type": "cgroup"}]
    for place in TMPFS:
        mounts = _with_mount(mounts, _tmpfs(place))
    env = _part(spec, "process", "env")
    for name, value in (("container", "oci"), ("container_uuid", uuid(key))):
        if not any(isinstance(one, str) and one.startswith(f"{name}=") for one in env):
            env = [*env, f"{name}={value}"]
    return {
        **spec,
        "mounts": mounts,
        "process": {**(spec.get("process") or {}), "env": env},
        "linux": {**(spec.get("linux") or {}), "namespaces": namespaces},
    }


def stopped(options: RuntimeOptions) -> RuntimeOptions:
    """The options with the signal for `systemctl stop`, unless the client names one."""
    properties = {"KillSignal": STOP_SIGNAL, **options.unit_properties}
    return replace(options, unit_properties=properties)


def uuid(key: TaskKey) -> str:
    """Which the machine's id inside is made from where the image has none: the same for one id
    always, and the id's own first 32 digits where it has them, as docker's and podman's do."""
    if re.match(r"[0-9a-f]{32}", key.id):
        return key.id[:32]
    return hashlib.sha256(str(key).encode()).hexdigest()[:32]


def _part(spec: Mapping[str, Any], *path: str) -> list[Any]:
    """A list in the spec, empty without one. Raises InvalidArgument when it is something else."""
    found: Any = spec
    for name in path:
        if not isinstance(found, dict):
            raise InvalidArgument(f"{'.'.join(path)} of the OCI spec is no list in an object")
        found = found.get(name)
        if found is None:
            return []
    if not isinstance(found, list):
        raise InvalidArgument(f"{'.'.join(path)} of the OCI spec is no list")
    return found


def _get(mount: Any, name: str) -> str:
    value = mount.get(name) if isinstance(mount, dict) else None
    return value if isinstance(value, str) else ""


def _place(mount: Any) -> str:
    """Where a mount goes. /var/run is a link to /run in what has systemd, and Kubernetes puts its
    secrets there."""
    place = posixpath.normpath("/" + _get(mount, "destination").lstrip("/"))
    return place.removeprefix("/var") if f"{place}/".startswith("/var/run/") else place


def _is_bound(mounts: list[Any]) -> bool:
    """Whether the client brings cgroups of its own choice."""
    return any(
        _place(one) == CGROUP and not _get(one, "type").startswith("cgroup") for one in mounts
    )


def _with_cgroups(mounts: list[Any], cgroup: str, *, unified: bool) -> list[Any]:
    mode = "rw" if unified else "ro"
    options = [*_PLAIN, "relatime", mode]
    whole = {"destination": CGROUP, "type": "cgroup", "source": "cgroup", "options": options}
    places = [_place(one) for one in mounts]
    if CGROUP in places:
        mounts = [whole if place == CGROUP else m for m, place in zip(mounts, places, strict=True)]
    else:
        mounts = _with_mount(mounts, whole)
    if unified:
        return mounts
    own = {"type": "bind", "source": f"{_NAMED}{cgroup}", "options": ["bind", "rw", *_PLAIN]}
    return _with_mount(mounts, {"destination": _NAMED, **own})


def _tmpfs(place: str) -> dict[str, Any]:
    """In memory, with what the image has there."""
    options = ["rw", "rprivate", "nosuid", "nodev", "tmpcopyup"]
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options}


def _with_mount(mounts: list[Any], mount: dict[str, Any]) -> list[Any]:
    """The mount added, before the first one below it; nothing where the place is taken."""
    wished = _place(mount)
    places = [_place(one) for one in mounts]
    if wished in places:
        return mounts
    below = [n for n, place in enumerate(places) if place.startswith(f"{wished}/")]
    at = below[0] if below else len(mounts)
    return [*mounts[:at], mount, *mounts[at:]]
