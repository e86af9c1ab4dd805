"""Names: task and exec to unit, slice and path, and back (design 3).

`parse_unit(init_unit(key)) == (key, "", False)` for every legal id: containerd's ids and
namespaces match ``^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`` and have at most 76 bytes
(containerd pkg/identifiers), so `:` is free for us. In the namespace `-` is written `:`, so the
first dash after the prefix ends it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple

from sdshim.core.errors import InvalidArgument

PREFIX = "sdshim-"
SUFFIX = ".service"
LOG = "log"
ROOT_SLICE = "sdshim.slice"
DAEMON_UNIT = "sdshim.service"
MAX_ID = 76

_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_PATH_SAFE = re.compile(r"[A-Za-z0-9]")
_POD_SAFE = re.compile(r"[A-Za-z0-9_.]")
_MAX_POD = 160
"""With prefix, namespace and suffix a unit's name has at most 255 bytes."""


@dataclass(frozen=True, slots=True, order=True)
class TaskKey:
    """What names a task on this node: containerd's namespace and the task's id."""

    namespace: str
    id: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.id}"


class UnitName(NamedTuple):
    """What a unit's name stands for."""

    key: TaskKey
    exec_id: str
    """Empty for the init process."""
    logger: bool
    """It is the logger of that process."""


def check_id(value: str, what: str = "id") -> str:
    """Return `value` if containerd would accept it as an identifier, else raise InvalidArgument."""
    if len(value.encode()) > MAX_ID:
        raise InvalidArgument(
            f"{what} {value[:MAX_ID]!r}… is {len(value.encode())} bytes long, {MAX_ID} are allowed"
        )
    if not _ID.fullmatch(value):
        raise InvalidArgument(f"{what} {value!r} is not a legal containerd identifier")
    return value


def init_unit(key: TaskKey) -> str:
    """The service that is the container."""
    return f"{PREFIX}{key.namespace.replace('-', ':')}-{key.id}{SUFFIX}"


def exec_unit(key: TaskKey, exec_id: str) -> str:
    """The service of one exec; `:` cannot occur in ids, so names never collide."""
    return f"{PREFIX}{key.namespace.replace('-', ':')}-{key.id}:{exec_id}{SUFFIX}"


def fuse_scope(key: TaskKey, number: int, token: str) -> str:
    """The scope of the program that serves the FUSE mount `number` of a rootfs. It ends by itself
    some time after the umount: the token keeps the next task of that id out of its way."""
    stem = f"{PREFIX}{key.namespace.replace('-', ':')}-{key.id}"
    return f"{stem}::fuse-{number}-{token[:8]}.scope"


def mounts_unit(key: TaskKey) -> str:
    """The service that mounts the rootfs of a container to be restored."""
    return f"{PREFIX}{key.namespace.replace('-', ':')}-{key.id}::mounts{SUFFIX}"


def checkpoint_unit(key: TaskKey) -> str:
    """The service in which a container is checkpointed."""
    return f"{PREFIX}{key.namespace.replace('-', ':')}-{key.id}::checkpoint{SUFFIX}"


def logger_unit(key: TaskKey, exec_id: str = "") -> str:
    """The service that takes the output of a task's init process, or of one of its execs."""
    return f"{PREFIX}{key.namespace.replace('-', ':')}-{key.id}:{exec_id}:{LOG}{SUFFIX}"


def parse_unit(unit: str) -> UnitName | None:
    """What a unit name stands for, or None when the unit is not one of ours."""
    if not (unit.startswith(PREFIX) and unit.endswith(SUFFIX)):
        return None
    namespace, dash, rest = unit[len(PREFIX) : -len(SUFFIX)].partition("-")
    namespace = namespace.replace(":", "-")
    process, colon, last = rest.rpartition(":")
    logger = colon + last == f":{LOG}" and ":" in process
    task_id, *more = (process if logger else rest).split(":")
    named = more and not (logger and not more[0])  # the logger of an init process names no exec
    needed = [namespace, task_id, *(more if named else [])]
    if not dash or len(more) > 1 or not all(_ID.fullmatch(part) for part in needed):
        return None
    return UnitName(TaskKey(namespace, task_id), more[0] if more else "", logger)


def helper_of(unit: str) -> TaskKey | None:
    """The task that a unit of ours serves which is neither a container nor an exec: its name goes
    on after a second colon (a FUSE program, the mounts of a restore, a checkpoint, a logger)."""
    stem = unit.removeprefix(PREFIX).rpartition(".")[0]
    namespace, _, rest = stem.partition("-")
    task_id, _, role = rest.partition(":")
    parts = (namespace.replace(":", "-"), task_id)
    if not unit.startswith(PREFIX) or ":" not in role or not all(map(_ID.fullmatch, parts)):
        return None
    return TaskKey(*parts)


def namespace_slice(namespace: str) -> str:
    """The slice of one containerd namespace, below sdshim.slice."""
    return f"{PREFIX}{namespace.replace('-', ':')}.slice"


def pod_slice(namespace: str, pod: str) -> str:
    """The slice of a pod, below that of its containerd namespace.

    A dash would be a level of slices, so it is written `:` as in a namespace; what a unit's name
    cannot hold (and `:`) as systemd-escape(1) writes it; a very long name is its hash.
    """
    escaped = "".join(map(_in_slice, pod))
    if len(escaped) > _MAX_POD:  # begins as no escaped name can: a dash is written `:` there
        escaped = "\\x2d" + hashlib.sha256(escaped.encode()).hexdigest()[:32]
    return namespace_slice(namespace).removesuffix(".slice") + f"-{escaped}.slice"


def _in_slice(char: str) -> str:
    if _POD_SAFE.match(char):
        return char
    data = char.encode(errors="surrogatepass")
    return ":" if char == "-" else "".join(f"\\x{byte:02x}" for byte in data)


def slice_path(slice_name: str) -> str:
    """Cgroup path of a slice: ``a-b.slice`` lives in ``/a.slice/a-b.slice`` (systemd.slice(5))."""
    stem = slice_name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def unit_cgroup(slice_name: str, unit: str) -> str:
    """Cgroup path that systemd gives to `unit` in `slice_name`, from the hierarchy's root."""
    return f"{slice_path(slice_name)}/{unit}"


def unit_path(unit: str) -> str:
    """D-Bus object path of a unit: every byte but letters and digits becomes ``_xx`` (sd-bus)."""
    escaped = "".join(
        c if _PATH_SAFE.match(c) and not (n == 0 and c.isdigit()) else f"_{ord(c):02x}"
        for n, c in enumerate(unit)
    )
    return f"/org/freedesktop/systemd1/unit/{escaped}"
