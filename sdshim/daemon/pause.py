"""Pause and Resume: the OCI runtime freezes the container's cgroup; done again after a death.

Paused also is what somebody has frozen behind our back, by the runtime or by `systemctl freeze` of
the unit or of a slice above it (cgroup v2): the kernel tells of it by the cgroup.events of the
container, /tasks/paused and /tasks/resumed follow, and Resume thaws both. What was frozen or thawed
while no daemon was there is told by the next. v1's freezer tells nobody: there State alone knows.

A frozen process gets no SIGTERM, and on cgroup v1 no SIGKILL either: `systemctl stop` would wait
for nothing, TimeoutStop or twice that. So a container that is being stopped is resumed; the job
that stops it is heard of while it is paused, by a match rule for its unit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sdshim.core import names
from sdshim.core.errors import ShimError, UnknownError
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import RecordedReply
from sdshim.daemon import timings
from sdshim.host import cgroup, freezer

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.ttrpc.server import Call

log = logging.getLogger(__name__)

PAUSE_REFUSED = {
    Phase.CREATED: "cannot pause task in created state",
    Phase.STARTING: "cannot pause task in created state",
    Phase.PAUSED: "cannot pause a paused container",
    Phase.EXITED: "cannot pause a stopped container",
}
RESUME_REFUSED = {
    Phase.CREATED: "cannot resume task in created state",
    Phase.STARTING: "cannot resume task in created state",
    Phase.RUNNING: "cannot resume a running process",
    Phase.PAUSING: "cannot resume a running process",
    Phase.EXITED: "cannot resume a stopped container",
}
DONE = RecordedReply(0, "", b"")
THAWING = "thawing"
"""The file of a Resume that has begun, with its call; removed when it is paused again."""


async def pause(node: Node, call: Call, task: Task) -> bytes:
    """Freeze a running container. Raises UnknownError in stock's words."""
    async with task.lock:
        me, folder = task.identity, node.store.folder(task.identity)
        if task.phase is Phase.PAUSING:  # an earlier daemon has begun
            await node.runtime.settled(folder)
        elif task.phase is Phase.RUNNING:
            task.see(Seen.PAUSE_BEGUN)
        else:
            text = PAUSE_REFUSED.get(task.phase, f"cannot pause a {task.phase} process")
            raise UnknownError(text)
        try:
            if not freezer.asked(me.cgroup):
                with node.tracer.span("runc.pause", timings.about(task)):
                    await node.runtime.pause(me, folder)
        except Exception:
            if task.phase is Phase.PAUSING:
                task.see(Seen.PAUSE_FAILED)
            freezer.thaw(me.cgroup)
            raise
        if task.phase is not Phase.PAUSING:  # it has ended meanwhile
            freezer.thaw(me.cgroup)
            raise UnknownError(PAUSE_REFUSED[Phase.EXITED])
        node.store.drop(task.identity, THAWING)
        task.see(Seen.PAUSED, call=call.key, reply=DONE)
        stand_by(node, task)
        return b""


async def resume(node: Node, call: Call, task: Task) -> bytes:
    """Let a paused container go on. Raises UnknownError in stock's words."""
    async with task.lock:
        if call.recovered:
            await node.runtime.settled(node.store.folder(task.identity))
        if task.ending:
            await task.exited.wait()
        if call.recovered and task.phase is Phase.EXITED and _has_thawed(node, call, task):
            return b""  # its end was near when an earlier daemon let it go on
        if task.phase is Phase.RUNNING and freezer.frozen(task.identity.cgroup):
            node.store.drop(task.identity, THAWING)
            task.see(Seen.PAUSED)  # by somebody else
        if call.recovered and task.phase is Phase.RUNNING:
            return b""  # thawed, and told of by `_tell` before this call came to be done again
        if task.phase is not Phase.PAUSED:
            text = RESUME_REFUSED.get(task.phase, f"cannot resume a {task.phase} process")
            raise UnknownError(text)
        node.store.put(task.identity, THAWING, str(call.key).encode())
        try:
            await _thaw(node, task)
        except Exception:
            node.store.drop(task.identity, THAWING)
            raise
        if task.phase is Phase.PAUSED:
            task.see(Seen.RESUMED, call=call.key, reply=DONE)
            stand_down(task)
        return b""  # its exit has told of it when its first instruction was its end


async def _thaw(node: Node, task: Task) -> None:
    await _thaw_unit(node, task)
    if freezer.asked(task.identity.cgroup):
        try:
            with node.tracer.span("runc.resume", timings.about(task)):
                await node.runtime.resume(task.identity, node.store.folder(task.identity))
        except UnknownError:  # it ended at once, and systemd was faster with its cgroup
            if freezer.asked(task.identity.cgroup):
                raise


def is_thawing(node: Node, task: Task) -> bool:
    """Whether a Resume has begun to let a paused container go on, perhaps an earlier daemon's: its
    end, by whatever status, comes after it was resumed then."""
    return node.store.has(task.identity, THAWING)


def _has_thawed(node: Node, call: Call, task: Task) -> bool:
    """Whether this very call had begun when an earlier daemon died."""
    return node.store.text(task.identity, THAWING) == str(call.key)


def follow(node: Node, task: Task) -> None:
    """Tell of freezes and thaws by others from now on, and of one that nobody has told of yet. To
    be called when the container runs."""
    if task.ending or task.freeze_watch:  # Start may be answered after the end was seen
        return
    file = freezer.told_by(task.identity.cgroup)
    if file is None:
        return
    try:
        task.freeze_watch = node.changes.watch(file, lambda: _look(node, task))
    except OSError as error:  # it has ended, and its exit is seen elsewhere
        log.debug("freezes of %s are not watched: %s", task, error)
        return
    _look(node, task)


def _look(node: Node, task: Task) -> None:
    """The cgroup has changed: is it as we have told? Our own Pause and Resume, which hold the
    lock, tell of themselves."""
    expected = (Phase.RUNNING, Phase.PAUSING, Phase.PAUSED)
    if task.phase in expected and _differs(task):
        node.spawn(_tell(node, task), f"freeze of {task}")


def _differs(task: Task) -> bool:
    """A dying process is not frozen for a moment: resumed is what nobody wants to be frozen."""
    if task.ending or task.doomed:
        return False
    if task.phase is Phase.PAUSED:
        return freezer.wanted(task.identity.cgroup) is False
    return freezer.frozen(task.identity.cgroup)


async def _tell(node: Node, task: Task) -> None:
    async with task.lock:
        if task.phase not in (Phase.RUNNING, Phase.PAUSED) or not _differs(task):
            return
        if task.phase is Phase.RUNNING:
            node.store.drop(task.identity, THAWING)
            task.see(Seen.PAUSED)
            stand_by(node, task)
            log.info("%s was frozen: paused", task)
        else:
            task.see(Seen.RESUMED)
            stand_down(task)
            log.info("%s was thawed: resumed", task)


def stand_by(node: Node, task: Task) -> None:
    """Resume the paused container when its unit is being stopped."""
    if task.ending:
        return
    task.stop_watch = node.spawn(_resume_at_stop(node, task), f"stop of {task}")


def stand_down(task: Task) -> None:
    """It is not paused any more."""
    if task.stop_watch:
        task.stop_watch.cancel()
        task.stop_watch = None


async def _resume_at_stop(node: Node, task: Task) -> None:
    try:
        await node.manager.when_stopping(task.identity.unit)
    except ShimError as error:
        log.warning("a stop of %s while it is paused would take its time: %s", task, error)
        return
    async with task.lock:
        if task.phase is not Phase.PAUSED:
            return
        freezer.thaw(task.identity.cgroup)
        task.see(Seen.RESUMED)
    log.info("%s resumed: its unit is being stopped", task)


def is_paused(task: Task) -> bool:
    """Whether the container stands still, whoever has done it (but for criu, and for a moment)."""
    if task.phase in (Phase.RUNNING, Phase.PAUSED):
        return freezer.frozen(task.identity.cgroup)
    return task.phase in (Phase.PAUSING, Phase.CHECKPOINTING_PAUSED)


def melt(node: Node, task: Task) -> None:
    """Its init has ended: what is left of the container, and the unit's exit hook, must be able to
    run (stock resumes here as well). No event tells of it. systemd cannot be asked: it thaws active
    units only, and from 255 on waits for the hook's first instruction in the frozen cgroup."""
    stand_down(task)
    if task.freeze_watch:
        node.changes.close(task.freeze_watch)
    if task.unit_gone:
        return
    me = task.identity
    try:
        freezer.thaw(me.cgroup)
        freezer.thaw(names.unit_cgroup(me.slice, me.unit))
    except OSError as error:
        log.error("%s has ended and stays frozen: %s", task, error)


async def _thaw_unit(node: Node, task: Task) -> None:
    """Undo `systemctl freeze`; systemd has it on cgroup v2 only."""
    me = task.identity
    if cgroup.unified() and freezer.asked(names.unit_cgroup(me.slice, me.unit)):
        await node.manager.thaw(me.unit)
