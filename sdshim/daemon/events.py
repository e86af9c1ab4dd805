"""containerd's events (protocol 5.1), made from a task's identity and life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.core import spans
from sdshim.core.model import Event
from sdshim.pb import events_pb2 as pb
from sdshim.pb import types_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from sdshim.core.lifecycle import Life
    from sdshim.core.model import Identity


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
        pid=life.pid,
    )
    return _event(seq, "/tasks/create", message, me, now_ns)


def started(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/start."""
    message = pb.TaskStart(container_id=me.id, pid=life.pid)
    return _event(seq, "/tasks/start", message, me, now_ns)


def exited(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/exit of the init process: its `id` is the container's."""
    assert life.exit is not None
    message = pb.TaskExit(container_id=me.id, id=me.id, pid=life.pid, exit_status=life.exit.status)
    message.exited_at.FromNanoseconds(life.exit.time_ns)
    return _event(seq, "/tasks/exit", message, me, now_ns)


def deleted(seq: int, me: Identity, life: Life, now_ns: int) -> Event:
    """/tasks/delete of the init process: its `id` is empty."""
    assert life.exit is not None
    message = pb.TaskDelete(container_id=me.id, pid=life.pid, exit_status=life.exit.status)
    message.exited_at.FromNanoseconds(life.exit.time_ns)
    return _event(seq, "/tasks/delete", message, me, now_ns)


def _event(seq: int, topic: str, message: Message, me: Identity, now_ns: int) -> Event:
    return Event(
        seq=seq,
        topic=topic,
        type=message.DESCRIPTOR.full_name,
        payload=message.SerializeToString(),
        time_ns=now_ns,
        traceparent=spans.current().traceparent or me.traceparent,
    )
