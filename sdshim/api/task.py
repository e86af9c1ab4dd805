"""The Task service (protocol 3): which message a method takes, and which operation it is.

v2 and v3 are field for field the same, so one table of v2 messages serves both names.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import NotFound
from sdshim.core.lifecycle import Phase
from sdshim.core.names import TaskKey
from sdshim.daemon import execs, query, streams, terminals
from sdshim.daemon.checkpoint import checkpoint
from sdshim.daemon.create import create
from sdshim.daemon.delete import delete
from sdshim.daemon.kill import kill
from sdshim.daemon.pause import pause, resume
from sdshim.daemon.process import Exec
from sdshim.daemon.start import start
from sdshim.daemon.stats import stats
from sdshim.daemon.update import update
from sdshim.pb import task_v2_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process, Task
    from sdshim.ttrpc.server import Call

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


FIRST_STREAM = 1
"""ttrpc clients count from here."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its request message and exactly one of the two ways to answer it."""

    request: type[Any]
    now: Callable[[Node, Call, Any], bytes] | None = None
    """Changes nothing: answered in the reader, no journal."""
    later: Callable[[Node, Call, Any], Awaitable[bytes]] | None = None
    """Journalled, runs beside the other calls."""


def _task(node: Node, call: Call, request: Any) -> Task:
    """The task that a request names."""
    task = node.task(TaskKey(call.namespace, request.id))
    if task.phase is Phase.CREATING and call.method != "Delete":
        # Not there before Create has answered; a Delete waits for that, and takes it back.
        raise NotFound("container not created: not found")
    return task


def _process(node: Node, call: Call, request: Any) -> Process:
    """The init process that a request names, or the exec."""
    task = _task(node, call, request)
    return node.process(task.key, request.exec_id)


def _state(node: Node, call: Call, request: pb.StateRequest) -> bytes:
    return query.state(_process(node, call, request))


def _pids(node: Node, call: Call, request: pb.PidsRequest) -> bytes:
    return query.pids(_task(node, call, request))


def _connect(node: Node, call: Call, request: pb.ConnectRequest) -> bytes:
    """An unknown id is no error (protocol 3.4), but for a containerd that comes back and begins
    with it: its bundle is what an earlier one left in the midst of a Create or a Delete.
    containerd 1.6 would keep a task that is none; newer ones find out by Pids (protocol 1.7)."""
    if call.key.stream == FIRST_STREAM:
        node.task(TaskKey(call.namespace, request.id))
    return query.connect(node, TaskKey(call.namespace, request.id))


def _stats(node: Node, call: Call, request: pb.StatsRequest) -> bytes:
    return stats(node, _task(node, call, request))


def _shutdown(node: Node, call: Call, request: pb.ShutdownRequest) -> bytes:
    # One daemon serves the node: containerd sends this after each Delete (protocol 10.1, 17).
    return b""


def _close_io(node: Node, call: Call, request: pb.CloseIORequest) -> bytes:
    streams.close_stdin(node, _process(node, call, request))
    return b""


def _resize_pty(node: Node, call: Call, request: pb.ResizePtyRequest) -> bytes:
    process = _process(node, call, request)
    terminals.resize(node, process, request.width, request.height)
    return b""


async def _start(node: Node, call: Call, request: pb.StartRequest) -> bytes:
    process = _process(node, call, request)
    if isinstance(process, Exec):
        return await execs.start(node, call, process)
    return await start(node, call, _task(node, call, request))


async def _delete(node: Node, call: Call, request: pb.DeleteRequest) -> bytes:
    process = _process(node, call, request)
    if isinstance(process, Exec):
        return await execs.delete(node, call, process)
    return await delete(node, call, _task(node, call, request))


async def _kill(node: Node, call: Call, request: pb.KillRequest) -> bytes:
    return await kill(node, call, _process(node, call, request), request.signal, request.all)


async def _exec(node: Node, call: Call, request: pb.ExecProcessRequest) -> bytes:
    return await execs.add(node, call, _task(node, call, request), request)


async def _pause(node: Node, call: Call, request: pb.PauseRequest) -> bytes:
    return await pause(node, call, _task(node, call, request))


async def _resume(node: Node, call: Call, request: pb.ResumeRequest) -> bytes:
    return await resume(node, call, _task(node, call, request))


async def _checkpoint(node: Node, call: Call, request: pb.CheckpointTaskRequest) -> bytes:
    return await checkpoint(node, call, _task(node, call, request), request)


async def _update(node: Node, call: Call, request: pb.UpdateTaskRequest) -> bytes:
    return await update(node, call, _task(node, call, request), request)


async def _wait(node: Node, call: Call, request: pb.WaitRequest) -> bytes:
    return await query.wait(_process(node, call, request))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "State": Method(pb.StateRequest, now=_state),
        "Pids": Method(pb.PidsRequest, now=_pids),
        "Stats": Method(pb.StatsRequest, now=_stats),
        "Connect": Method(pb.ConnectRequest, now=_connect),
        "Shutdown": Method(pb.ShutdownRequest, now=_shutdown),
        "CloseIO": Method(pb.CloseIORequest, now=_close_io),
        "ResizePty": Method(pb.ResizePtyRequest, now=_resize_pty),
        "Create": Method(pb.CreateTaskRequest, later=create),
        "Start": Method(pb.StartRequest, later=_start),
        "Delete": Method(pb.DeleteRequest, later=_delete),
        "Exec": Method(pb.ExecProcessRequest, later=_exec),
        "Pause": Method(pb.PauseRequest, later=_pause),
        "Resume": Method(pb.ResumeRequest, later=_resume),
        "Update": Method(pb.UpdateTaskRequest, later=_update),
        "Checkpoint": Method(pb.CheckpointTaskRequest, later=_checkpoint),
        "Kill": Method(pb.KillRequest, later=_kill),
        "Wait": Method(pb.WaitRequest, later=_wait),
    }
)
