"""Exec, and Start and Delete of an exec: a unit of its own, started at Start (design 4).

Exec only notes what shall run. Start puts the process into the container by the OCI runtime, below
a subreaper that is the unit's main process and ends as the process ended. It is never started a
second time while a unit, a pid file or an exit record of its token exists.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdshim.core import logs, names, spans
from sdshim.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ShimError,
    UnknownError,
)
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import RecordedReply, Stdio
from sdshim.core.record import Record
from sdshim.core.unitspec import ExecUnit, exec_properties
from sdshim.daemon import exits, loggers, pause, streams, teardown, terminals, timings, units
from sdshim.daemon.process import Exec
from sdshim.daemon.start import REFUSED
from sdshim.host.store import PROCESS_SPEC, STDERR
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import PROCESS_URL, type_name

if TYPE_CHECKING:
    from sdshim.core.model import Identity
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.ttrpc.server import Call

STATES = {Phase.EXITED: "stopped", Phase.DELETED: "deleted"}


async def add(node: Node, call: Call, task: Task, request: pb.ExecProcessRequest) -> bytes:
    """Exec: note a process to be started. Returns nothing; raises AlreadyExists, InvalidArgument,
    and UnknownError in stock's words when the container has ended."""
    known = task.execs.get(request.exec_id)
    if known is not None:
        if known.identity.create_call == call.key:
            return b""
        raise AlreadyExists(f"id {request.exec_id}: already exists")
    if task.phase in STATES:
        raise UnknownError(f"cannot exec in a {STATES[task.phase]} state")
    if not task.pid:
        raise UnknownError("cannot exec in a created state")
    if pause.is_paused(task):
        raise UnknownError("cannot exec in a paused state")
    me = _identity(call, task, request)
    spec = process_spec(request)
    node.store.make(me)
    node.store.put(me, PROCESS_SPEC, spec)
    child = Exec(node, Record(me), task)
    task.execs[me.exec_id] = child
    try:
        child.see(Seen.CREATED, call=call.key, reply=RecordedReply(0, "", b""))
    except ShimError:
        del task.execs[me.exec_id]
        node.store.remove(me)
        raise
    return b""


def _identity(call: Call, task: Task, request: pb.ExecProcessRequest) -> Identity:
    exec_id = names.check_id(request.exec_id, "exec id")
    stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
    streams.check(stdio)
    return replace(
        task.identity,
        exec_id=exec_id,
        token=call.token.hex(),
        task_token=task.identity.token,
        unit=names.exec_unit(task.key, exec_id),
        stdio=stdio,
        log=replace(task.identity.log, mode=logs.of_exec(task.identity.log, stdio)),
        rootfs=(),
        create_call=call.key,
        traceparent=spans.current().traceparent,
    )


def process_spec(request: pb.ExecProcessRequest) -> bytes:
    """The OCI Process of the request, with the request's word on the terminal."""
    kind = type_name(request.spec)
    if kind != PROCESS_URL:
        raise InvalidArgument(f"exec spec of type {kind!r} is not an OCI process")
    try:
        process: Any = json.loads(request.spec.value)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("exec spec is not valid JSON", cause=str(error)) from error
    if not isinstance(process, dict) or not isinstance(process.get("args"), list):
        raise InvalidArgument("exec spec is not an OCI process: it has no args")
    return json.dumps({**process, "terminal": bool(request.terminal)}).encode()


async def start(node: Node, call: Call, child: Exec) -> bytes:
    """Start an exec. Returns StartResponse; raises FailedPrecondition when the container's init has
    ended, UnknownError with the runtime's text when the process cannot be run."""
    async with child.lock:
        if child.phase is Phase.STARTING:
            return await _resume(node, call, child)
        if child.phase is not Phase.CREATED:
            raise UnknownError(REFUSED.get(child.phase, f"cannot start a {child.phase} process"))
        if child.task.phase is Phase.CHECKPOINTING:  # the runtime would find it frozen by criu
            async with child.task.lock:
                pass
        _check_task(child.task)
        child.see(Seen.START_BEGUN, ooms=child.task.record.life.ooms)
        if child.failed:
            child.failed = False
            child.exited.clear()
        return await _run(node, call, child)


def _check_task(task: Task) -> None:
    if task.ending or task.phase in STATES:
        raise FailedPrecondition(
            f"container {task.key.id} init process is not running: failed precondition"
        )
    if pause.is_paused(task):  # the runtime would not see a frozen unit, and wait for its thaw
        raise UnknownError("OCI runtime exec failed: cannot exec in a paused container")


async def _run(node: Node, call: Call, child: Exec) -> bytes:
    try:
        await loggers.prepare(child, node.config.logger_timeout)
        for end in await streams.hold(node, child):
            await end
        await loggers.start(node, child)
        result = await _start_unit(node, child, call.peer_pid)
        return await _finish(node, call, child, result)
    except Exception:
        await _give_up(node, child)
        raise


async def _start_unit(node: Node, child: Exec, peer_pid: int) -> str:
    me = child.identity
    folder = node.store.folder(me)
    argv = node.runtime.exec_argv(me, folder, streams.console(node, child))
    unit = ExecUnit(
        identity=me,
        state_dir=str(folder),
        runtime_argv=tuple(argv),
        description=f"Exec {me.exec_id} in container {child.key}",
        limits=units.inherited_limits(me, peer_pid),
        start_timeout_us=int(node.config.create_timeout * 1e6),
    )
    return await units.start(node, child, exec_properties(unit, node.facts), argv[0])


async def _finish(node: Node, call: Call, child: Exec, result: str) -> bytes:
    """The start job has ended: the process runs (or ran), or the runtime has failed."""
    pid = node.store.pid(child.identity)
    if result != "done" or not pid:
        folder = node.store.folder(child.identity)
        printed = " ".join(node.store.text(child.identity, STDERR).split())
        default = printed or f"unit {child.identity.unit}: start job {result}"
        if late := await timings.out_of_time(node, child.identity.unit):
            default = f"{child.identity.runtime.binary} {late}"
        elif child.overdue:
            default = f"{child.identity.runtime.binary} did not end with its container, was killed"
        raise node.runtime.failure(folder, "OCI runtime exec failed", default)
    streams.opened(node, child)
    await terminals.connect(node, child)
    payload = pb.StartResponse(pid=pid).SerializeToString()
    child.see(Seen.STARTED, pid=pid, call=call.key, reply=RecordedReply(0, "", payload))
    exits.watch(node, child)
    return payload


async def _give_up(node: Node, child: Exec) -> None:
    """A failed Start: the exec stays created, and whoever waits for it is told at once."""
    await _take_apart(node, child)
    node.store.rewind(child.identity)
    child.failed = True
    child.see(Seen.START_FAILED)
    child.exited.set()


async def _resume(node: Node, call: Call, child: Exec) -> bytes:
    """Go on with a Start that an earlier daemon had begun."""
    try:
        result = await units.begun_before(node, child)
        if result is not None:
            return await _finish(node, call, child, result)
        found = node.store.exit_record(child.identity)
        if found:
            # A unit that was ready has an exec.pid; one that failed to start may have it as well,
            # but then the runtime has said why.
            return await _finish(node, call, child, "done" if found[0].pid else "failed")
    except Exception:
        await _give_up(node, child)
        raise
    return await _run(node, call, child)


async def delete(node: Node, call: Call, child: Exec) -> bytes:
    """Delete of an exec that has ended or was never started. Returns DeleteResponse, without any
    event (protocol 3.4)."""
    async with child.lock:
        if child.phase in (Phase.RUNNING, Phase.STARTING):
            raise UnknownError("cannot delete a running process")
        if child.phase is Phase.EXITED:
            await _take_apart(node, child)
        payload = response(child)
        child.see(Seen.DELETED, call=call.key, reply=RecordedReply(0, "", payload))
        child.task.execs.pop(child.identity.exec_id, None)
        child.forget_if_done()
        return payload


async def remove(node: Node, child: Exec) -> None:
    """An exec goes with its container; containerd asks for none of them any more."""
    async with child.lock:
        if child.phase is not Phase.CREATED:
            await _take_apart(node, child)
        if child.phase in (Phase.CREATED, Phase.EXITED):
            child.see(Seen.DELETED)
            child.forget_if_done()  # its events may still wait for containerd
        elif child.phase is not Phase.DELETED:  # it has not ended in time
            node.store.remove(child.identity)


async def _take_apart(node: Node, child: Exec) -> None:
    await units.settle(node, child)
    await terminals.drained(child)
    streams.finish(node, child)
    await node.output.drained(child)
    await units.forget(node, child)
    await loggers.stop(node, child)
    streams.release(node, child)


def response(child: Exec) -> bytes:
    """DeleteResponse of an exec; exit 0 at Go's zero time when it never ran."""
    exit = child.record.life.exit
    message = pb.DeleteResponse(pid=child.pid, exit_status=exit.status if exit else 0)
    teardown.set_time(message.exited_at, exit)
    return message.SerializeToString()
