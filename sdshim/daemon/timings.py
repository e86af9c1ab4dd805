"""What systemd ran for a unit, and when: mounts and the OCI runtime's `create` are its children.

The Exec properties of a loaded unit hold the last run of each line. They are asked for in two
cases only: a start that failed is explained by them, and with tracing on they become spans.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from sdshim.core import spans
from sdshim.core.errors import ShimError, UnknownError

if TYPE_CHECKING:
    from sdshim.core.spans import Value
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

EXITED = 1
"""CLD_EXITED; other codes are signals."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One Exec line that has been run."""

    argv: tuple[str, ...]
    start_ns: int
    end_ns: int
    """Wall clock; 0 while it runs."""
    code: int
    status: int

    @property
    def failure(self) -> str:
        """How it failed, empty when it did not."""
        if not self.end_ns or (self.code == EXITED and not self.status):
            return ""
        if self.code == EXITED:
            return f"exit status {self.status}"
        return f"killed by signal {self.status} ({signal.strsignal(self.status)})"


async def ran(node: Node, unit: str, line: Literal["ExecStartPre", "ExecStart"]) -> list[Ran]:
    """The lines of one kind that were begun; none when the unit is gone or systemd is silent."""
    try:
        rows = await node.manager.get_unit_property(unit, "Service", line)
    except ShimError:
        return []
    found = []
    for row in rows if isinstance(rows, list) else []:
        _path, argv, _ignore, begun, _, ended, _, _pid, code, status = row
        if begun:
            found.append(Ran(tuple(argv), begun * 1000, ended * 1000, code, status))
    return found


async def mount_failure(
    node: Node,
    unit: str,
    line: Literal["ExecStartPre", "ExecStart"],
    printed: str,
    *,
    stopped: bool = False,
) -> str:
    """Stock's words when a mount line of the unit has failed; empty when none has. `stopped` as
    for `out_of_time`."""
    for mount in await ran(node, unit, line):
        if mount.failure:
            text = printed or f"{mount.argv[0]}: {mount.failure}"
            if late := await out_of_time(node, unit, stopped=stopped):
                text = f"{' '.join(mount.argv)} {late}"
            return f"failed to mount rootfs component: {text}"
    return ""


async def out_of_time(node: Node, unit: str, *, stopped: bool = False) -> str:
    """What is to be said of a command that was still running when the unit's start was given up, by
    systemd or (`stopped`) by us; empty when it was not."""
    if not stopped:
        try:
            result = await node.manager.get_unit_property(unit, "Service", "Result")
        except ShimError:
            return ""
        if result != "timeout":
            return ""
    return f"did not end within {node.config.create_timeout:g} s (create_timeout) and was killed"


async def record(node: Node, task: Process) -> None:
    """Spans of the mounts and of the runtime's `create` or `restore`, below the current span."""
    if not node.tracer.enabled:
        return
    me = task.identity
    for mount, asked in zip(await ran(node, me.unit, "ExecStartPre"), me.rootfs, strict=False):
        _span(node, "rootfs.mount", mount, {**about(task), "mount.type": asked.type or "bind"})
    name = "runc.restore" if me.checkpoint else "runc.create"
    for create in await ran(node, me.unit, "ExecStart"):
        facts = {**about(task), "oci.runtime": PurePath(me.runtime.binary).name}
        pid = node.store.pid(me)
        _span(node, name, create, {**facts, **({spans.PID: pid} if pid else {})})


def about(task: Process) -> dict[str, Value]:
    """The attributes that every span of a process has."""
    facts: dict[str, Value] = {
        spans.NAMESPACE: task.key.namespace,
        spans.CONTAINER_ID: task.key.id,
        spans.UNIT: task.identity.unit,
    }
    if task.identity.exec_id:
        facts[spans.EXEC_ID] = task.identity.exec_id
    return facts


def _span(node: Node, name: str, one: Ran, facts: dict[str, Value]) -> None:
    error = UnknownError(f"{name}: {one.failure}") if one.failure else None
    node.tracer.record(name, one.start_ns, one.end_ns or one.start_ns, facts, error=error)
