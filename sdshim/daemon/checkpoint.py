"""Checkpoint: criu, run by the OCI runtime, in a unit of its own that works on when we die.

The container's own state is not changed before criu has said that it can work. A checkpoint that
fails leaves the container running; one that ends it (`exit`) is followed by the container's exit,
which is held until the checkpoint is decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import criu, logs
from sdshim.core.errors import InvalidArgument, ShimError, UnknownError
from sdshim.core.lifecycle import CHECKPOINTING, Phase, Seen
from sdshim.core.model import RecordedReply
from sdshim.core.unitspec import OneshotUnit
from sdshim.daemon import oneshot, options, timings
from sdshim.host import freezer
from sdshim.host.store import STDERR, read_text
from sdshim.runtime.criu import WORK, stream_key
from sdshim.stdio import fifo

if TYPE_CHECKING:
    from sdshim.core.criu import Wish
    from sdshim.daemon.node import Node
    from sdshim.daemon.oneshot import Oneshot
    from sdshim.daemon.process import Task
    from sdshim.pb import task_v2_pb2 as pb
    from sdshim.ttrpc.server import Call

REFUSED = {
    Phase.CREATED: "cannot checkpoint a task in created state",
    Phase.STARTING: "cannot checkpoint a task in created state",
    Phase.RESTORING: "cannot checkpoint a task in created state",
    Phase.EXITED: "cannot checkpoint a stopped container",
}
DUMP_LOG = "dump.log"
"""criu's, in its work folder."""
KEPT_LOG = "criu-dump.log"
"""What it is called in the bundle, where the error text sends people (protocol 7.2)."""
DONE = RecordedReply(0, "", b"")
EXIT_S = 5.0
"""How long a Checkpoint that ends its container waits for the exit to be known."""
_STREAMS = (fifo.STDIN, fifo.STDOUT, fifo.STDERR)


@dataclass(frozen=True, slots=True)
class _Job:
    """One checkpoint: what is wished, where the images and criu's log go, and its unit."""

    wish: Wish
    images: Path
    work: Path
    one: Oneshot


async def checkpoint(
    node: Node, call: Call, task: Task, request: pb.CheckpointTaskRequest
) -> bytes:
    """Write the container's state to `request.path`. Raises UnknownError in stock's words when
    this cannot be or fails, FailedPrecondition when criu cannot work, InvalidArgument."""
    async with task.lock:
        job = _job(node, call, task, request)
        if task.phase in CHECKPOINTING:
            done = await oneshot.begun_before(node, job.one)
            done = await _run(node, task, job) if done is None else done
        elif task.phase in (Phase.RUNNING, Phase.PAUSED):
            await oneshot.forget(node, job.one)  # an earlier daemon died before it could
            await _prepare(node, task, job)
            task.see(Seen.CHECKPOINT_BEGUN)
            done = await _run(node, task, job)
        else:
            text = REFUSED.get(task.phase, f"cannot checkpoint a {task.phase} process")
            raise UnknownError(text)
        return await _decide(node, call, task, job, done=done)


def _job(node: Node, call: Call, task: Task, request: pb.CheckpointTaskRequest) -> _Job:
    wish = options.checkpoint(request.options)
    images = request.path or wish.image_path
    if not criu.is_path(images):
        raise InvalidArgument(f"checkpoint path {images[:256]!r} is not an absolute path")
    one = oneshot.checkpoint_of(node, task, call.token.hex())
    work = Path(wish.work_path) if wish.work_path else one.folder / WORK
    return _Job(wish, Path(images), work, one)


async def _prepare(node: Node, task: Task, job: _Job) -> None:
    """All that the unit needs; nothing of the container is touched."""
    folder = job.one.folder
    try:
        folder.mkdir(mode=0o700)
        await node.runtime.criu.check(task.identity.runtime.criu_path, folder)
        (Path(task.identity.bundle) / KEPT_LOG).unlink(missing_ok=True)
        for path in (job.images, job.work):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        notes = criu.encode_notes(_external(node, task), job.wish)
        (job.images / criu.NOTES).write_bytes(notes)
    except ShimError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UnknownError(f"cannot checkpoint {task.key}", cause=str(error)) from error


def _external(node: Node, task: Task) -> dict[int, str]:
    """criu's keys of the container's streams, by its descriptor. Ours are the same files by the
    same mount; what we do not hold (any more), init may."""
    me = task.identity
    stdio = logs.process_side(me.stdio, str(node.store.folder(me)), me.log.mode)
    if stdio.terminal:
        return {}
    keys = {}
    for number, path in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
        held = task.held.ends.get(_STREAMS[number], -1)
        try:
            if held >= 0:
                keys[number] = stream_key("self", held)
            elif path and _open_path(task.pid, number) == path:
                keys[number] = stream_key(str(task.pid), number)
        except OSError:
            continue  # not open any more: nothing to dump
    return keys


def _open_path(pid: int, fd: int) -> str:
    """What a process has open; also when its name has been removed since."""
    return str(Path(f"/proc/{pid}/fd/{fd}").readlink()).removesuffix(" (deleted)")


async def _run(node: Node, task: Task, job: _Job) -> bool:
    me = task.identity
    folder = job.one.folder
    argv = node.runtime.checkpoint_argv(me, folder, job.wish, job.images, job.work)
    config = criu.dump_config(_external(node, task), unified=node.facts.unified)
    unit = OneshotUnit(
        identity=job.one.me,
        folder=str(folder),
        commands=((f"{node.facts.launcher}/inhost", *argv),),
        description=f"Checkpoint of container {task.key}",
        environment=node.runtime.criu.environment(me.runtime.criu_path, folder, config),
    )
    with node.tracer.span("runc.checkpoint", timings.about(task)) as span:
        done = await oneshot.run(node, job.one, unit)
        span.set("criu.images", str(job.images))
    return done


async def _decide(node: Node, call: Call, task: Task, job: _Job, *, done: bool) -> bytes:
    """The unit has ended: commit that, then remove what is left of it."""
    if done:
        path = str(job.images)
        task.see(Seen.CHECKPOINTED, call=call.key, reply=DONE, checkpoint=path)
        await oneshot.forget(node, job.one)
        if job.wish.exit:  # criu has ended it: whoever deletes it next is not too early
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_S):
                    await task.exited.wait()
        return b""
    error = _failure(node, task, job)
    task.see(Seen.CHECKPOINT_FAILED)
    if task.phase is Phase.RUNNING:  # criu thaws what it has frozen, unless it was killed
        freezer.thaw(task.identity.cgroup)
    await oneshot.forget(node, job.one)
    raise error


def _failure(node: Node, task: Task, job: _Job) -> UnknownError:
    """The runtime's first line and the place of criu's log, as stock has it, then criu's words."""
    kept = Path(task.identity.bundle) / KEPT_LOG
    try:
        log = (job.work / DUMP_LOG).read_text(errors="replace")
        kept.write_text(log)
    except OSError:
        log = ""
    text = node.runtime.complaint(job.one.folder, read_text(job.one.folder / STDERR))
    status = oneshot.status(job.one)
    said = criu.errors(log)
    return UnknownError(
        f"{task.identity.runtime.binary} did not terminate successfully: {status}: "
        f"{text.partition(chr(10))[0]} path= {kept}",
        hint=f"criu: {said}" if said else "",
    )
