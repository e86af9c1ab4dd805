"""A unit beside the container's own that does one thing and ends: the mounts of a container to be
restored, and a checkpoint.

It works on when the daemon dies. Its folder, below the task's, has what it prints and, by the exit
hook, how it ended. So the next daemon finds one of three: the unit with our token (it waits for
it), an exit record (that tells), or neither (it has never begun).
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdshim.core import exitrecord, names
from sdshim.core.unitspec import oneshot_properties
from sdshim.daemon import units
from sdshim.host.store import EXIT
from sdshim.systemd.errors import NoSuchUnit

if TYPE_CHECKING:
    from pathlib import Path

    from sdshim.core.exitrecord import ExitRecord
    from sdshim.core.model import Identity
    from sdshim.core.unitspec import OneshotUnit
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task


@dataclass(frozen=True, slots=True)
class Oneshot:
    """One such unit: `me` is the container's identity with the unit's own name and token."""

    me: Identity
    folder: Path


def checkpoint_of(node: Node, task: Task, token: str = "") -> Oneshot:
    """The unit in which a container is checkpointed; `token` is the Checkpoint's."""
    me = replace(
        task.identity, unit=names.checkpoint_unit(task.key), token=token or task.identity.token
    )
    return Oneshot(me, node.store.folder(task.identity) / "checkpoint")


def mounts_of(node: Node, task: Task) -> Oneshot:
    """The unit that mounts the rootfs of a container to be restored."""
    me = replace(task.identity, unit=names.mounts_unit(task.key))
    return Oneshot(me, node.store.folder(task.identity) / "mounts")


async def run(node: Node, one: Oneshot, unit: OneshotUnit) -> bool:
    """Start it and wait for its end; whether it was a success."""
    job = await node.manager.start_transient(one.me.unit, oneshot_properties(unit, node.facts))
    return await job.wait() == "done"


async def begun_before(node: Node, one: Oneshot) -> bool | None:
    """Whether what an earlier daemon has begun was, or will be, a success; None: never begun."""
    result = await units.start_before(node, one.me)
    if result is not None:
        return result == "done"
    record = _record(one)
    return record.result == "success" if record else None


def status(one: Oneshot) -> str:
    """How it ended, for people: its last command's exit status or signal, else systemd's word."""
    record = _record(one)
    if record is None:
        return "it cannot be told how"
    words = {"exited": "exit status", "killed": "signal", "dumped": "signal"}
    return f"{words[record.code]} {record.status}" if record.code in words else record.result


def _record(one: Oneshot) -> ExitRecord | None:
    try:
        return exitrecord.parse_record((one.folder / EXIT).read_text(errors="replace"))
    except OSError:
        return None


async def forget_all(node: Node, task: Task) -> None:
    """The same for every one of a task."""
    for one in (checkpoint_of(node, task), mounts_of(node, task)):
        await forget(node, one)


async def forget(node: Node, one: Oneshot) -> None:
    """End it if it still runs, and remove what is left of it; nothing when there is nothing. A unit
    that has its name by now is let alone."""
    if not one.folder.exists():
        return
    if not await units.is_gone(node, one.me):
        with contextlib.suppress(NoSuchUnit):
            job = await node.manager.stop(one.me.unit)
            await job.wait()
        await node.manager.collect(one.me.unit)
    shutil.rmtree(one.folder, ignore_errors=True)
