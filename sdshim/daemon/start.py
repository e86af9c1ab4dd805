"""Start: intent on disk, `runc start` under an inherited lock, one record with event and reply."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sdshim.core.errors import DeadlineExceeded, UnknownError
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import RecordedReply
from sdshim.daemon import limits, pause, restore, timings
from sdshim.pb import task_v2_pb2 as pb

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.ttrpc.server import Call

log = logging.getLogger(__name__)

REFUSED = {
    Phase.RUNNING: "cannot start a running process",
    Phase.CHECKPOINTING: "cannot start a running process",
    Phase.PAUSING: "cannot start a paused process",
    Phase.PAUSED: "cannot start a paused process",
    Phase.CHECKPOINTING_PAUSED: "cannot start a paused process",
    Phase.EXITED: "cannot start a stopped process",
    Phase.DELETED: "cannot start a deleted process",
}


async def start(node: Node, call: Call, task: Task) -> bytes:
    """Let the created container go. Returns StartResponse; raises UnknownError in stock's words."""
    async with task.lock:
        if task.phase is Phase.STARTING:
            return await _resume(node, call, task)
        if task.phase is Phase.RESTORING or (task.phase is Phase.CREATED and not task.pid):
            return await restore.start(node, call, task)
        if task.phase is not Phase.CREATED:
            raise UnknownError(REFUSED.get(task.phase, f"cannot start a {task.phase} process"))
        task.see(Seen.START_BEGUN)
        return await _run(node, call, task)


async def _run(node: Node, call: Call, task: Task) -> bytes:
    try:
        with node.tracer.span("runc.start", timings.about(task)):
            await node.runtime.start(task.identity, node.store.folder(task.identity))
    except Exception as error:
        if isinstance(error, DeadlineExceeded) and not node.runtime.waits_for_start(task.identity):
            log.warning("%s: %s; the container was let go before that", task, error)
            return _started(node, call, task)
        task.see(Seen.START_FAILED)
        raise
    return _started(node, call, task)


def _started(node: Node, call: Call, task: Task) -> bytes:
    payload = pb.StartResponse(pid=task.pid).SerializeToString()
    task.see(Seen.STARTED, call=call.key, reply=RecordedReply(0, "", payload))
    node.spawn(limits.settle(node, task), f"limits of {task}")
    pause.follow(node, task)
    return payload


async def _resume(node: Node, call: Call, task: Task) -> bytes:
    """An earlier daemon was in the middle of `runc start`: take its lock first, then judge by the
    runtime's exec.fifo, which exists exactly while the container waits to be let go."""
    await node.runtime.start_settled(node.store.folder(task.identity))
    if node.runtime.waits_for_start(task.identity):
        return await _run(node, call, task)
    return _started(node, call, task)
