"""Delete, and the launcher's Cleanup of a task that containerd has given up."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import NotFound, ResourceExhausted, UnknownError
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import RecordedReply
from sdshim.daemon import execs, exits, teardown, units
from sdshim.daemon.kill import kill_init
from sdshim.pb import task_v2_pb2 as pb
from sdshim.runtime import bundle

if TYPE_CHECKING:
    from sdshim.core.names import TaskKey
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.ttrpc.server import Call

log = logging.getLogger(__name__)

CUT = {
    Phase.STARTING: Seen.START_FAILED,
    Phase.RESTORING: Seen.START_FAILED,
    Phase.CHECKPOINTING: Seen.CHECKPOINT_FAILED,
    Phase.CHECKPOINTING_PAUSED: Seen.CHECKPOINT_FAILED,
}
KILLED = 128 + signal.SIGKILL


async def delete(node: Node, call: Call, task: Task) -> bytes:
    """Remove a task that has ended, or was never started. Returns DeleteResponse.

    Answers only when the exit hook has ended and the unit is gone: the id can be used again.
    """
    async with task.lock:
        if task.phase is Phase.DELETED:
            raise NotFound("container not created: not found")
        if task.phase in (Phase.RUNNING, Phase.STARTING, Phase.RESTORING, Phase.CHECKPOINTING):
            raise UnknownError("cannot delete a running process")
        if task.phase in (Phase.PAUSING, Phase.PAUSED, Phase.CHECKPOINTING_PAUSED):
            raise UnknownError("cannot delete a paused process")
        task.note(deleting=True)
        if task.phase is Phase.CREATED:
            await _end(node, task)
        return await _remove(node, task, call)


async def _remove(node: Node, task: Task, call: Call) -> bytes:
    await _remove_parts(node, task)
    payload = teardown.response(task)
    reply = RecordedReply(0, "", payload)
    task.see(Seen.DELETED, call=call.key, reply=reply)
    mark(task, payload)
    node.crash("bundle.written")
    node.tasks.pop(task.key, None)
    task.forget_if_done()
    return payload


async def _remove_parts(node: Node, task: Task) -> None:
    for child in list(task.execs.values()):
        await execs.remove(node, child)
    task.execs.clear()
    await teardown.remove_all(node, task)


async def _end(node: Node, task: Task) -> None:
    """SIGKILL to init, and wait until its end is known. The caller holds the task's lock, so what
    is noted as under way was cut with an earlier daemon."""
    cut = CUT.get(task.phase)
    if cut:
        task.see(cut)
    if not task.pid:  # it was to be restored
        await units.settle(node, task)
        return
    with contextlib.suppress(NotFound):
        kill_init(task, signal.SIGKILL)
    await task.exited.wait()


async def discard(node: Node, task: Task) -> None:
    """Remove what is left of a task that the launcher has ended while no daemon was there;
    containerd has published its end. A Create that waits for it must not make it again, and a Wait
    on a connection that is still there must not wait for ever."""
    _mute(task)
    async with task.lock:
        await exits.execs_ended(node, task)
        if cut := CUT.get(task.phase):
            task.see(cut)
        if task.pid and not task.exited.is_set():
            task.see(Seen.EXITED, exit=await exits.find_out(node, task))
        await _remove_parts(node, task)
        if task.phase is Phase.CREATING:
            task.see(Seen.CREATE_FAILED)
        elif task.phase is Phase.CREATED:  # it was to be restored
            task.see(Seen.DELETED)
        node.tasks.pop(task.key, None)
        node.store.remove(task.identity)


def _mute(task: Task) -> None:
    task.mute()
    for child in task.execs.values():
        child.mute()


def mark_again(task: Task) -> None:
    """A deleted task of an earlier daemon, which may have died before it could `mark` it. A bundle
    that is a newer task's by now is let alone."""
    folder = Path(task.identity.bundle)
    if bundle.read_token(folder) == task.identity.token:
        mark(task, teardown.response(task))


def mark(task: Task, payload: bytes) -> None:
    """Tell the launcher's `delete`, which containerd runs next, that nothing is left to do."""
    try:
        bundle.write(Path(task.identity.bundle), bundle.DELETED, payload)
    except (NotFound, ResourceExhausted) as error:  # then it asks
        log.debug("%s: %s", task, error)


async def cleanup(node: Node, call: Call, key: TaskKey, token: str) -> bytes:
    """End and remove the incarnation with this token; a newer task of the same id is not touched.

    containerd asks when it has given the task up, and publishes its exit and delete itself if it
    still knew it: nothing more is published from here. Returns DeleteResponse.
    """
    task = node.tasks.get(key)
    if task is None or task.identity.token != token:
        message = pb.DeleteResponse(exit_status=KILLED)
        message.exited_at.FromNanoseconds(time.time_ns())
        return message.SerializeToString()
    _mute(task)
    async with task.lock:
        if task.phase is Phase.DELETED:
            return teardown.response(task)
        if task.phase is not Phase.EXITED:
            await _end(node, task)
        return await _remove(node, task, call)
