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
from sdshim.daemon import query, streams
from sdshim.daemon.create import create
from sdshim.daemon.delete import delete
from sdshim.daemon.kill import kill
from sdshim.daemon.start import start
from sdshim.pb import task_v2_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sdshim.daemon.node import Node
    from sdshim.daemon.task import Task
    from sdshim.ttrpc.server import Call

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its request message and exactly one of the two ways to answer it."""

    request: type[Any]
    now: Callable[[Node, Call, Any], bytes] | None = None
    """Changes nothing: answered in the reader, no journal."""
    later: Callable[[Node, Call, Any], Awaitable[bytes]] | None = None
    """Journalled, runs beside the other calls."""


def _task(node: Node, call: Call, request: Any) -> Task:
    task = node.task(TaskKey(call.namespace, request.id))
    if task.phase is Phase.CREATING and call.method != "Delete":
        # Not there before Create has answered; a Delete waits for that, and takes it back.
        raise NotFound("container not created: not found")
    exec_id = getattr(request, "exec_id", "")
    if exec_id:
        raise NotFound(f"process does not exist {exec_id}: not found")
    return task


def _state(node: Node, call: Call, request: pb.StateRequest) -> bytes:
    return query.state(_task(node, call, request))


def _pids(node: Node, call: Call, request: pb.PidsRequest) -> bytes:
    return query.pids(_task(node, call, request))


def _connect(node: Node, call: Call, request: pb.ConnectRequest) -> bytes:
    return query.connect(node, TaskKey(call.namespace, request.id))


def _shutdown(node: Node, call: Call, request: pb.ShutdownRequest) -> bytes:
    # One daemon serves the node: containerd sends this after each Delete (protocol 10.1, 17).
    return b""


def _close_io(node: Node, call: Call, request: pb.CloseIORequest) -> bytes:
    streams.close_stdin(node, _task(node, call, request))
    return b""


async def _start(node: Node, call: Call, request: pb.StartRequest) -> bytes:
    return await start(node, call, _task(node, call, request))


async def _delete(node: Node, call: Call, request: pb.DeleteRequest) -> bytes:
    return await delete(node, call, _task(node, call, request))


async def _kill(node: Node, call: Call, request: pb.KillRequest) -> bytes:
    return await kill(node, call, _task(node, call, request), request.signal, request.all)


async def _wait(node: Node, call: Call, request: pb.WaitRequest) -> bytes:
    return await query.wait(_task(node, call, request))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "State": Method(pb.StateRequest, now=_state),
        "Pids": Method(pb.PidsRequest, now=_pids),
        "Connect": Method(pb.ConnectRequest, now=_connect),
        "Shutdown": Method(pb.ShutdownRequest, now=_shutdown),
        "CloseIO": Method(pb.CloseIORequest, now=_close_io),
        "Create": Method(pb.CreateTaskRequest, later=create),
        "Start": Method(pb.StartRequest, later=_start),
        "Delete": Method(pb.DeleteRequest, later=_delete),
        "Kill": Method(pb.KillRequest, later=_kill),
        "Wait": Method(pb.WaitRequest, later=_wait),
    }
)
"""Every other method of the service answers Unimplemented (protocol 3.5)."""
