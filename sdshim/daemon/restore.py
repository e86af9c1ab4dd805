"""A container that is restored from a checkpoint: Create mounts its rootfs, Start restores it.

Between the two a client may change the rootfs (the CRI applies a checkpoint's own files there), so
it is mounted in a unit of its own, which is gone when Create answers. The container's unit is
started at Start: its ExecStart is the OCI runtime's `restore`, detached, with the pid file that
systemd takes the main process from. Until then there is no process, no unit, and the pid is 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import criu, unitproperties
from sdshim.core.errors import ResourceExhausted, ShimError, UnknownError
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import RecordedReply
from sdshim.core.unitspec import OneshotUnit, mount_commands
from sdshim.daemon import (
    exits,
    images,
    limits,
    oneshot,
    pause,
    plan,
    readiness,
    streams,
    teardown,
    terminals,
    timings,
    units,
)
from sdshim.host.store import STDERR, read_text
from sdshim.pb import task_v2_pb2 as pb
from sdshim.runtime import bundle
from sdshim.runtime.criu import WORK

if TYPE_CHECKING:
    from sdshim.core.model import Identity
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.ttrpc.server import Call

FOLDER = "restore"
RESTORE_LOG = "restore.log"
"""criu's, in its work folder."""


async def create(node: Node, call: Call, task: Task) -> bytes:
    """Mount the rootfs; also after an earlier daemon has begun to. Returns CreateTaskResponse."""
    me = task.identity
    if me.rootfs:
        await _mount(node, task, again=call.recovered)
    payload = pb.CreateTaskResponse(pid=0).SerializeToString()
    task.see(Seen.CREATED, call=call.key, reply=RecordedReply(0, "", payload))
    return payload


async def _mount(node: Node, task: Task, *, again: bool) -> None:
    me = task.identity
    one = oneshot.mounts_of(node, task)
    done = await oneshot.begun_before(node, one) if again else None
    if done is None:
        if again:  # some of them may be there
            await teardown.remove_runtime(node, task)
        one.folder.mkdir(mode=0o700, exist_ok=True)
        unit = OneshotUnit(
            identity=one.me,
            folder=str(one.folder),
            commands=mount_commands(me, node.facts),
            description=f"Root file system of container {task.key}",
            timeout_us=int(node.config.create_timeout * 1e6),
        )
        with node.tracer.span("rootfs.mount", timings.about(task)):
            done = await oneshot.run(node, one, unit)
    if not done:
        printed = " ".join(read_text(one.folder / STDERR).split())
        text = await timings.mount_failure(node, one.me.unit, "ExecStart", printed)
        raise UnknownError(text or f"failed to mount rootfs component: {oneshot.status(one)}")
    await oneshot.forget(node, one)


async def start(node: Node, call: Call, task: Task) -> bytes:
    """Start of a restored container; the caller holds its lock. Returns StartResponse; raises
    UnknownError with the runtime's text, and the container is as it was after Create."""
    if task.phase is Phase.RESTORING:
        result = await _outcome(node, task)
    else:
        result = None
    try:
        if result is None:
            result = await _run(node, call, task)
        return await _finish(node, call, task, result)
    except Exception:
        if task.phase is Phase.RESTORING:
            await _give_up(node, task)
        raise


async def _run(node: Node, call: Call, task: Task) -> str:
    """Start the unit; how its start job ended."""
    me = task.identity
    folder = node.store.folder(me)
    keys, wish = images.notes(me)
    work = _work(me, folder)
    (folder / FOLDER).mkdir(mode=0o700, exist_ok=True)
    version = await node.runtime.criu.version(me.runtime.criu_path, folder / FOLDER)
    cgroup = me.cgroup if node.facts.unified else ""
    config = criu.restore_config(keys, cgroup, version)
    environment = node.runtime.criu.environment(me.runtime.criu_path, folder / FOLDER, config)
    argv = node.runtime.restore_argv(me, folder, wish, work, streams.console(node, task))
    description = plan.describe(task.key, bundle.load_spec(Path(me.bundle)))
    if task.phase is Phase.CREATED:
        task.see(Seen.RESTORE_BEGUN)
    return await units.start_init(node, task, argv, description, call.peer_pid, environment)


def _work(me: Identity, folder: Path) -> Path:
    """criu's work folder, made."""
    work = Path(me.runtime.criu_work_path or folder / FOLDER / WORK)
    try:
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceExhausted(f"cannot make {work}", cause=str(error)) from error
    return work


async def _finish(node: Node, call: Call, task: Task, result: str) -> bytes:
    """The unit's start job has ended: the processes run (or ran), or the runtime has failed."""
    me = task.identity
    pid = node.store.pid(me)
    if result != "done" or not pid:
        raise _failure(node, task, result)
    await limits.at_create(node, task, unitproperties.late(me.runtime.unit_properties))
    streams.opened(node, task)
    await terminals.connect(node, task)
    payload = pb.StartResponse(pid=pid).SerializeToString()
    task.see(Seen.STARTED, pid=pid, call=call.key, reply=RecordedReply(0, "", payload))
    exits.watch(node, task)
    await readiness.listen(node, task)
    node.spawn(limits.settle(node, task), f"limits of {task}")
    pause.follow(node, task)
    return payload


def _failure(node: Node, task: Task, result: str) -> ShimError:
    me = task.identity
    folder = node.store.folder(me)
    printed = " ".join(node.store.text(me, STDERR).split())
    default = printed or f"unit {me.unit}: start job {result}"
    found = node.store.exit_record(me)
    if found and found[0].pid:  # the runtime has done its part
        default = f"process {found[0].pid} was restored and ended before systemd had seen it"
    error = node.runtime.failure(folder, "OCI runtime restore failed", default)
    said = criu.errors(_log(_work(me, folder) / RESTORE_LOG))
    error.hint = f"criu: {said}" if said else ""
    return error


def _log(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


async def _give_up(node: Node, task: Task) -> None:
    """A failed Start: nothing is left of it, it may be tried again."""
    me = task.identity
    await units.settle(node, task)
    await node.runtime.delete(me, node.store.folder(me), force=True)
    await units.forget(node, task)
    node.store.rewind(me)
    task.see(Seen.START_FAILED)


async def _outcome(node: Node, task: Task) -> str | None:
    """How the start job of an earlier daemon ended, or ends; None when it was never begun."""
    result = await units.begun_before(node, task)
    if result is None and (found := node.store.exit_record(task.identity)):
        result = "done" if found[0].had_process else "failed"
    return result
