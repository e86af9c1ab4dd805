"""Taking a task apart: unit, runtime state, mounts, FIFOs. Each step may be done twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import rootfs
from sdshim.core.lifecycle import Phase
from sdshim.core.model import EXIT_UNKNOWN
from sdshim.daemon import loggers, oneshot, streams, terminals, timings, units
from sdshim.host import mounts
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import timestamp
from sdshim.systemd.errors import NoSuchUnit

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from sdshim.core.model import ExitStatus
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task

log = logging.getLogger(__name__)

FUSE_END_S = 8.0
"""What a FUSE program may take to end when its mount is gone, before it is killed: as long as it is
there, systemd keeps the container's unit, and Delete cannot answer; CRI waits 10 s."""


async def remove_all(node: Node, task: Task) -> None:
    """Everything of a task but its record. Raises the first error; nothing is left out for it."""
    await oneshot.forget_all(node, task)
    parts = await asyncio.gather(
        remove_runtime(node, task), units.settle(node, task), return_exceptions=True
    )
    await terminals.drained(task)
    streams.finish(node, task)
    await node.output.drained(task)
    failed = [part for part in parts if isinstance(part, BaseException)]
    if not failed:
        await units.forget(node, task)  # it refers to its logger's
    await loggers.stop(node, task)
    streams.release(node, task)
    if failed:
        raise failed[0]


async def remove_runtime(node: Node, task: Task) -> None:
    """The runtime's state, then the rootfs mounts."""
    me = task.identity
    folder = node.store.folder(me)
    with node.tracer.span("runc.delete", timings.about(task)):
        await node.runtime.delete(me, folder, force=not task.exited.is_set())
    if me.rootfs:
        with node.tracer.span("rootfs.umount", timings.about(task)):
            await mounts.unmount_tree(Path(me.bundle) / "rootfs")
        node.crash("rootfs.unmounted")
    for scope in rootfs.fuse_scopes(me):
        await _end_scope(node, scope)


async def _end_scope(node: Node, scope: str) -> None:
    """A FUSE program ends by itself after the umount; one whose mount came to nothing may not, nor
    one that hangs."""
    with contextlib.suppress(NoSuchUnit):
        job = await node.manager.stop(scope)
        try:
            async with asyncio.timeout(FUSE_END_S):
                await job.wait()
        except TimeoutError:
            log.warning("%s does not end within %g s: it is killed", scope, FUSE_END_S)
            await node.manager.kill(scope, "all", signal.SIGKILL)
            await job.wait()


def response(task: Task) -> bytes:
    """DeleteResponse of a task: its true end; without one 0 for what was to be restored, as in
    stock, and 255 for a Create that has failed."""
    exit = task.record.life.exit
    none = 0 if task.phase is Phase.CREATED else EXIT_UNKNOWN
    message = pb.DeleteResponse(pid=task.pid, exit_status=exit.status if exit else none)
    set_time(message.exited_at, exit)
    return message.SerializeToString()


def set_time(target: Timestamp, exit: ExitStatus | None) -> None:
    """An exit's time, or Go's zero time for what has not happened (protocol 3.3)."""
    target.CopyFrom(timestamp(exit.time_ns if exit else None))
