"""Taking a task apart: unit, runtime state, mounts, FIFOs. Each step may be done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.model import EXIT_UNKNOWN
from sdshim.daemon import streams, terminals, timings
from sdshim.host import cgroup, mounts
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import timestamp
from sdshim.systemd.errors import NoSuchUnit

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from sdshim.core.model import ExitStatus
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process, Task


async def remove_all(node: Node, task: Task) -> None:
    """Everything of a task but its record. Raises the first error; nothing is left out for it."""
    parts = await asyncio.gather(
        remove_runtime(node, task), settle_unit(node, task), return_exceptions=True
    )
    await terminals.drained(task)
    streams.release(node, task)
    for part in parts:
        if isinstance(part, BaseException):
            raise part
    await forget_unit(node, task)


async def remove_runtime(node: Node, task: Task) -> None:
    """The runtime's state, then the rootfs mounts."""
    me = task.identity
    folder = node.store.folder(me)
    with node.tracer.span("runc.delete", timings.about(task)):
        await node.runtime.delete(me, folder, force=not task.exited.is_set())
    if me.rootfs:
        with node.tracer.span("rootfs.umount", timings.about(task)):
            await mounts.unmount_tree(Path(me.bundle) / "rootfs")


async def settle_unit(node: Node, task: Process) -> None:
    """Wait until the unit is inactive: a stop job on a unit that is going down ends then, so the
    exit hook has written its record. A unit that still runs (a failed Create) is stopped."""
    try:
        with node.tracer.span("systemd.StopUnit", timings.about(task)):
            job = await node.manager.stop(task.identity.unit)
            await job.wait()
    except NoSuchUnit:
        return


async def forget_unit(node: Node, task: Process) -> None:
    """Let systemd collect the unit, and wait for it: only then can its name be used again."""
    unit = task.identity.unit
    await node.manager.reset_failed(unit)
    await node.manager.unref(unit)
    await node.manager.when_removed(unit)
    if task.identity.owns_cgroup and not task.identity.exec_id:
        cgroup.prune(task.identity.cgroup.rpartition("/")[0])


def response(task: Task) -> bytes:
    """DeleteResponse of a task: its true end; status 255 when there never was one."""
    exit = task.record.life.exit
    message = pb.DeleteResponse(pid=task.pid, exit_status=exit.status if exit else EXIT_UNKNOWN)
    set_time(message.exited_at, exit)
    return message.SerializeToString()


def set_time(target: Timestamp, exit: ExitStatus | None) -> None:
    """An exit's time, or Go's zero time for what has not happened (protocol 3.3)."""
    target.CopyFrom(timestamp(exit.time_ns if exit else None))
