"""The bundle: config.json read, checked, and given the unit's cgroup.

containerd makes the folder (0700) and config.json in it. The file is replaced atomically before
the unit starts; nothing else of the spec is touched.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import InvalidArgument, NotFound, ResourceExhausted, ShimError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.json"
TOKEN = "sdshim.token"
START = "sdshim.start"
DELETED = "sdshim.deleted"
MAX_CONFIG = 64 << 20
"""Bytes; far above any real spec, so that a corrupt bundle cannot eat the node's memory."""


def load_spec(bundle: Path) -> dict[str, Any]:
    """The OCI spec. Raises NotFound or InvalidArgument with the file's name and the fault."""
    path = bundle / CONFIG
    try:
        spec = json.loads(_read(path))
    except FileNotFoundError as error:
        raise NotFound(f"bundle has no {CONFIG}: {path}: not found") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not valid JSON", cause=str(error)) from error
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read", cause=str(error)) from error
    if not isinstance(spec, dict) or not isinstance(spec.get("linux", {}), dict):
        raise InvalidArgument(f"{path} is not an OCI runtime spec for Linux")
    _check_cgroup(path, cgroups_path(spec))
    return spec


def environment(bundle: Path) -> list[str]:
    """The `NAME=value` entries of the container's process; none when no spec can be read: then no
    runtime has read one either."""
    try:
        return entries(load_spec(bundle).get("process"))
    except (ShimError, ValueError):
        return []


def entries(process: object) -> list[str]:
    """The environment of an OCI Process, as far as it is one."""
    listed = process.get("env") if isinstance(process, dict) else None
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []


def _read(path: Path) -> bytes:
    """A regular file, and nothing that could block the daemon (a FIFO) or never end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidArgument(f"{path} is not a regular file")
        if facts.st_size > MAX_CONFIG:
            raise InvalidArgument(f"{path} is larger than {MAX_CONFIG} bytes")
        return os.read(fd, facts.st_size + 1)
    finally:
        os.close(fd)


def _check_cgroup(path: Path, cgroup: object) -> None:
    if not isinstance(cgroup, str):
        raise InvalidArgument(f"{path}: linux.cgroupsPath is not a text")
    parts = cgroup.split("/")
    # The root cgroup holds every process of the host: `kill --all` would reach them.
    if ".." in parts or not cgroup.isprintable() or (cgroup and not any(parts)):
        raise InvalidArgument(f"{path}: cgroupsPath {cgroup!r} cannot be a container's cgroup")


def cgroups_path(spec: dict[str, Any]) -> Any:
    """`linux.cgroupsPath`, empty when the spec names none; text, once `load_spec` has seen it."""
    return (spec.get("linux") or {}).get("cgroupsPath", "")


def private_pids(spec: dict[str, Any]) -> bool:
    """Whether the container has a pid namespace of its own, which ends with its init: one without
    a path. Another container's, or the host's, outlives it (protocol 7.4)."""
    listed = (spec.get("linux") or {}).get("namespaces")
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return any(one.get("type") == "pid" and not one.get("path") for one in found)


def notes(spec: dict[str, Any]) -> dict[str, str]:
    """The spec's annotations, text ones only."""
    raw = spec.get("annotations") or {}
    return {k: v for k, v in raw.items() if isinstance(v, str)} if isinstance(raw, dict) else {}


def with_cgroup(spec: dict[str, Any], cgroup: str) -> dict[str, Any]:
    """The spec with `linux.cgroupsPath` = `cgroup`."""
    return {**spec, "linux": {**(spec.get("linux") or {}), "cgroupsPath": cgroup}}


def write_spec(bundle: Path, spec: dict[str, Any]) -> None:
    """Write config.json anew. Raises InvalidArgument, or as `write` does."""
    try:
        data = json.dumps(spec, separators=(",", ":")).encode()
    except RecursionError as error:
        raise InvalidArgument(f"{bundle / CONFIG} is not valid JSON", cause=str(error)) from error
    write(bundle, CONFIG, data)


def write(bundle: Path, name: str, data: bytes) -> None:
    """Write a file of the bundle atomically, owner only. Raises ResourceExhausted or NotFound."""
    temporary = f"{bundle}/.{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
        try:
            if os.write(fd, data) != len(data):  # a full tmpfs takes what fits
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(temporary, f"{bundle}/{name}")  # noqa: PTH104
    except FileNotFoundError as error:
        raise NotFound(f"bundle {bundle} is gone: not found") from error
    except OSError as error:
        raise ResourceExhausted(f"cannot write {name} in {bundle}", cause=str(error)) from error


def read_token(bundle: Path) -> str:
    """The token of the incarnation whose bundle this is; empty when there is none."""
    try:
        return _read(bundle / TOKEN).decode(errors="replace").strip()
    except (OSError, InvalidArgument):
        return ""


def read_start(bundle: Path) -> dict[str, str]:
    """What the launcher noted at `start`: `key=value` lines; empty when it did not run (a member
    of a version-3 pod)."""
    try:
        text = _read(bundle / START).decode(errors="replace")
    except (OSError, InvalidArgument):
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value for key, sep, value in pairs if sep}
