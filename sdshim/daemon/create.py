"""Create: journal → state folder and token → FIFO ends held → unit → PID file → one record.

Each step can be the last one of this process: a later daemon calls `resume` with the same request
and judges by what systemd and the disk know (design 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core import notify, spans, unitproperties
from sdshim.core.errors import (
    AlreadyExists,
    Canceled,
    ResourceExhausted,
    ShimError,
    UnknownError,
    scarce,
)
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import RecordedReply
from sdshim.core.names import TaskKey
from sdshim.core.record import Record
from sdshim.daemon import (
    exits,
    limits,
    loggers,
    plan,
    readiness,
    restore,
    streams,
    teardown,
    terminals,
    timings,
    units,
)
from sdshim.daemon.process import Task
from sdshim.host.store import RUNTIME_COMMAND, STDERR
from sdshim.pb import task_v2_pb2 as pb
from sdshim.runtime import bundle
from sdshim.systemd.errors import UnitExists

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.plan import Plan
    from sdshim.ttrpc.server import Call

log = logging.getLogger(__name__)


async def create(node: Node, call: Call, request: pb.CreateTaskRequest) -> bytes:
    """Make the container; answers when its init waits for Start. Returns CreateTaskResponse."""
    known = node.tasks.get(TaskKey(call.namespace, request.id))
    if known is not None:
        if known.identity.create_call == call.key:
            return await _resume(node, known, call)
        raise AlreadyExists(f"task {request.id}: already exists")
    if call.peer_gone():
        raise Canceled("the client left before Create had begun")
    containerd = _containerd(node, call, plan.bundle_folder(request.bundle))
    planned = plan.make(request, call, node.config, containerd, unified=node.facts.unified)
    traceparent = spans.current().traceparent
    planned = replace(planned, identity=replace(planned.identity, traceparent=traceparent))
    task = Task(node, Record(planned.identity))
    node.tasks[task.key] = task
    async with task.lock:
        try:
            await _prepare(node, task, planned)
            if task.identity.checkpoint:
                return await restore.create(node, call, task)
            result = await _start_unit(node, task, planned, call.peer_pid)
            return await _finish(node, task, call, result, planned.spec)
        except Exception as error:
            await _roll_back(node, task, foreign=isinstance(error, UnitExists))
            if isinstance(error, OSError):
                unknown = UnknownError(f"cannot create {task.key}", cause=str(error))
                raise scarce(error) or unknown from error
            raise


def _containerd(node: Node, call: Call, folder: Path) -> str:
    """Which containerd wants the events: the one whose launcher ran for this bundle; for members
    of a version-3 pod, the one known for the same peer; else the configured one."""
    address = bundle.read_start(folder).get("ttrpc_address", "")
    if address:
        node.addresses[call.peer_pid] = address
    return address or node.addresses.get(call.peer_pid, "") or node.config.containerd_address


async def _prepare(node: Node, task: Task, planned: Plan) -> None:
    """All that the unit needs; each step may have been done by an earlier daemon."""
    me = task.identity
    folder = Path(me.bundle)
    # An unknown runtime fails here, before anything is made.
    node.runtime.create_argv(me, node.store.root)
    state_dir = node.store.make(me)
    if me.checkpoint:
        await node.runtime.criu.check(me.runtime.criu_path, state_dir)
    node.store.write(task.record)
    await loggers.prepare(task, node.config.logger_timeout)
    node.runtime.prepare(state_dir)
    node.store.put(me, RUNTIME_COMMAND, json.dumps(node.runtime.command_prefix(me)).encode())
    (folder / bundle.DELETED).unlink(missing_ok=True)  # of a Create that has failed
    bundle.write(folder, bundle.TOKEN, me.token.encode())
    node.crash("bundle.written")
    kept = await streams.hold(node, task)
    await asyncio.sleep(0)  # systemd takes them while the rest is made
    await _give_spec(node, task, planned)
    node.crash("bundle.written")
    if me.rootfs:
        with contextlib.suppress(FileExistsError):  # (not exist_ok=: it looks at what is mounted)
            (folder / "rootfs").mkdir(mode=0o711)
    for end in kept:
        await end
    await loggers.start(node, task)


async def _give_spec(node: Node, task: Task, planned: Plan) -> None:
    """Write config.json with what is ours in it, if there is anything."""
    me, spec = task.identity, planned.spec
    if me.owns_cgroup:
        spec = bundle.with_cgroup(spec, me.cgroup)
    if me.runtime.notify:
        await readiness.hold(node, task)
        spec = notify.with_socket(spec, str(node.store.folder(me)))
    if me.owns_cgroup or me.runtime.notify or planned.systemd:
        bundle.write_spec(Path(me.bundle), spec)


async def _start_unit(node: Node, task: Task, planned: Plan, peer_pid: int) -> str:
    """Start the unit; how its start job ended."""
    me = task.identity
    argv = node.runtime.create_argv(me, node.store.folder(me), streams.console(node, task))
    return await units.start_init(node, task, argv, planned.description, peer_pid)


async def _finish(
    node: Node, task: Task, call: Call, result: str, spec: dict[str, Any] | None = None
) -> bytes:
    """The unit's start job has ended: the container is there, or it is not."""
    me = task.identity
    pid = node.store.pid(me)
    if result != "done" or not pid:
        raise await _explain(node, task, result)
    # What would have hit the OCI runtime's `create` (design 4); its process has ended now.
    late = unitproperties.late(me.runtime.unit_properties)
    await limits.at_create(node, task, late, spec)
    payload = pb.CreateTaskResponse(pid=pid).SerializeToString()
    streams.opened(node, task)
    await terminals.connect(node, task)
    task.see(Seen.CREATED, pid=pid, call=call.key, reply=RecordedReply(0, "", payload))
    exits.watch(node, task)
    await readiness.listen(node, task)
    return payload


async def _explain(node: Node, task: Task, result: str) -> ShimError:
    """Why the unit did not start, in the runtime's or mount's own words."""
    me = task.identity
    folder = node.store.folder(me)
    printed = " ".join(node.store.text(me, STDERR).split())
    stopped = result == units.STOPPED
    if text := await timings.mount_failure(node, me.unit, "ExecStartPre", printed, stopped=stopped):
        return UnknownError(text)
    default = f"unit {me.unit}: start job {result}"
    for create in await timings.ran(node, me.unit, "ExecStart"):
        if create.failure:
            default = f"{me.runtime.binary} did not terminate successfully: {create.failure}"
            if late := await timings.out_of_time(node, me.unit, stopped=stopped):
                default = f"{me.runtime.binary} {late}"
    default += f": {printed}" if printed else ""
    return node.runtime.failure(folder, "OCI runtime create failed", default)


async def _roll_back(node: Node, task: Task, *, foreign: bool = False) -> None:
    """Undo what was made; what cannot be undone is logged, the first error is the client's.

    `foreign`: a unit of that name is somebody else's, so nothing was started and it stays.
    """
    try:
        if foreign:
            streams.finish(node, task)
            await loggers.stop(node, task)
            streams.release(node, task)
        else:
            await teardown.remove_all(node, task)
        with contextlib.suppress(ResourceExhausted):  # why it has failed: there is no record of it
            task.see(Seen.CREATE_FAILED)
        bundle.write(Path(task.identity.bundle), bundle.DELETED, teardown.response(task))
    except (ShimError, OSError) as error:
        log.error("cannot undo a failed Create of %s: %s", task.key, error)
    node.tasks.pop(task.key, None)
    node.store.remove(task.identity)


async def _resume(node: Node, task: Task, call: Call) -> bytes:
    """Go on with a Create that an earlier daemon had begun."""
    async with task.lock:
        if task.phase is Phase.DELETED:
            raise Canceled("the task was given up before it was made")
        if task.phase is not Phase.CREATING:
            return pb.CreateTaskResponse(pid=task.pid).SerializeToString()
        try:
            if task.identity.checkpoint:
                await _prepare(node, task, _plan_again(node, task, call))
                return await restore.create(node, call, task)
            result = await _outcome(node, task, call)
            if terminals.is_lost(task):  # its loss is a SIGHUP; nothing of the container has run
                log.warning("%s is made again: its terminal was lost with a daemon", task.key)
                await teardown.remove_all(node, task)
                node.store.rewind(task.identity)
                result = await _make(node, task, call)
            return await _finish(node, task, call, result)
        except Exception as error:
            await _roll_back(node, task, foreign=isinstance(error, UnitExists))
            raise


async def _outcome(node: Node, task: Task, call: Call) -> str:
    """How the start job ended, or ends; the unit is started (again) when there is none."""
    me = task.identity
    result = await units.begun_before(node, task)
    if result is not None:
        return result
    found = node.store.exit_record(me)
    if found and found[0].had_process:
        return "done"
    if found:
        return "failed"
    await teardown.remove_runtime(node, task)
    return await _make(node, task, call)


async def _make(node: Node, task: Task, call: Call) -> str:
    """Start the unit (again); how its start job ended."""
    planned = _plan_again(node, task, call)
    await _prepare(node, task, planned)
    return await _start_unit(node, task, planned, call.peer_pid)


def _plan_again(node: Node, task: Task, call: Call) -> Plan:
    request = pb.CreateTaskRequest.FromString(call.payload)
    unified = node.facts.unified
    planned = plan.make(request, call, node.config, task.identity.containerd, unified=unified)
    return replace(planned, identity=task.identity)
