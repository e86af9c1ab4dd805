"""containerd's events (protocol 5.1), made from a process's identity and life.

`INIT` and `EXEC` say which effect of the lifecycle table is which event; deleting an exec is none.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from sdshim.core import spans
from sdshim.core.lifecycle import Effect
from sdshim.core.model import Event
from sdshim.pb import events_pb2 as pb
from sdshim.pb import types_pb2
from sdshim.pb.wellknown import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from sdshim.core.lifecycle import Life
    from sdshim.core.model import Identity

    Make = Callable[[int, Identity, Life, int], Event]


def created(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/create."""
    message = pb.TaskCreate(
        container_id=me.id,
        bundle=me.bundle,
        rootfs=[
            types_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
            for m in me.rootfs
        ],
        io=pb.TaskIO(
            stdin=me.stdio.stdin,
            stdout=me.stdio.stdout,
            stderr=me.stdio.stderr,
            terminal=me.stdio.terminal,
        ),
        checkpoint=me.checkpoint,
        pid=life.pid,
    )
    return _event(seq, "/tasks/create", message, me, now_ns)


def started(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/start."""
    message = pb.TaskStart(container_id=me.id, pid=life.pid)
    return _event(seq, "/tasks/start", message, me, now_ns)


def exited(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/exit: `id` is the container's for its init process, else the exec's."""
    assert life.exit is not None
    message = pb.TaskExit(
        container_id=me.id, id=me.exec_id or me.id, pid=life.pid, exit_status=life.exit.status
    )
    message.exited_at.FromNanoseconds(life.exit.time_ns)
    # An exit that was held is let go by some call's commit: it belongs to the process's own trace.
    return _event(seq, "/tasks/exit", message, me, now_ns, me.traceparent)


def deleted(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/delete of the init process: its `id` is empty. What was to be restored and never was
    has status 0 and Go's zero time, as in stock."""
    exit = life.exit
    message = pb.TaskDelete(
        container_id=me.id,
        pid=life.pid,
        exit_status=exit.status if exit else 0,
        exited_at=timestamp(exit.time_ns if exit else None),
    )
    return _event(seq, "/tasks/delete", message, me, now_ns)


def paused(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/paused."""
    return _event(seq, "/tasks/paused", pb.TaskPaused(container_id=me.id), me, now_ns)


def resumed(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/resumed."""
    return _event(seq, "/tasks/resumed", pb.TaskResumed(container_id=me.id), me, now_ns)


def oom(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/oom: the kernel has killed in the container for want of memory."""
    return _event(seq, "/tasks/oom", pb.TaskOOM(container_id=me.id), me, now_ns, me.traceparent)


def checkpointed(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/checkpointed: `checkpoint` is the images' folder. Stock sends none."""
    message = pb.TaskCheckpointed(container_id=me.id, checkpoint=me.checkpoint)
    return _event(seq, "/tasks/checkpointed", message, me, now_ns)


def exec_added(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/exec-added."""
    message = pb.TaskExecAdded(container_id=me.id, exec_id=me.exec_id)
    return _event(seq, "/tasks/exec-added", message, me, now_ns)


def exec_started(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/exec-started."""
    message = pb.TaskExecStarted(container_id=me.id, exec_id=me.exec_id, pid=life.pid)
    return _event(seq, "/tasks/exec-started", message, me, now_ns)


INIT: Mapping[Effect, Make] = MappingProxyType(
    {
        Effect.PUBLISH_CREATE: created,
        Effect.PUBLISH_START: started,
        Effect.PUBLISH_PAUSED: paused,
        Effect.PUBLISH_RESUMED: resumed,
        Effect.PUBLISH_OOM: oom,
        Effect.PUBLISH_CHECKPOINTED: checkpointed,
        Effect.PUBLISH_EXIT: exited,
        Effect.PUBLISH_DELETE: deleted,
    }
)
EXEC: Mapping[Effect, Make] = MappingProxyType(
    {
        Effect.PUBLISH_CREATE: exec_added,
        Effect.PUBLISH_START: exec_started,
        Effect.PUBLISH_EXIT: exited,
    }
)


def _event(
    seq: int, topic: str, message: Message, me: Identity, now_ns: int, traceparent: str = ""
) -> Event:
    return Event(
        seq=seq,
        topic=topic,
        type=message.DESCRIPTOR.full_name,
        payload=message.SerializeToString(),
        time_ns=now_ns,
        traceparent=traceparent or spans.current().traceparent or me.traceparent,
    )
