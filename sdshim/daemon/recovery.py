"""Taking over: the fd store, the records on disk and systemd's units → tasks in memory.

Before READY=1 every unit of ours is referenced again (the pins went with the old daemon's bus
connection), then asked whether it is loaded; a unit that is gone is judged by its exit record
alone. Calls that were open are dispatched again afterwards and each operation judges for itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from typing import TYPE_CHECKING

from sdshim.core import names
from sdshim.core.lifecycle import Phase
from sdshim.daemon import (
    exits,
    limits,
    loggers,
    output,
    pause,
    publisher,
    readiness,
    streams,
    terminals,
    units,
)
from sdshim.daemon.delete import discard, mark_again
from sdshim.daemon.process import Exec, Task
from sdshim.host.store import Broken

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sdshim.core.model import CallId
    from sdshim.core.record import Record
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

log = logging.getLogger(__name__)

STRANGE = 64
"""Descriptors that are not understood and stay in the fd store all the same."""
Kept = list[tuple[str, int]]
"""Descriptors from systemd's fd store, by name."""


async def take_over(node: Node, kept: Kept, open_calls: Collection[CallId]) -> Kept:
    """Rebuild the node's tasks. `kept` are the descriptors that systemd kept, by name; returned are
    those that belong to no task and no mailbox. `open_calls` still wait for a reply.

    What another version may know stays in the store, and is closed here.
    """
    rest = node.publisher.load(kept)
    tasks: dict[str, Process] = {}
    broken = set()
    for entry in node.store.load():
        if isinstance(entry, Broken):
            log.error("%s: %s; left as it is, see sdshim doctor", entry.folder, entry.error)
            broken.add(entry.folder.name)
            continue
        replies = {c: r for c, r in entry.replies.items() if c in open_calls}
        found = _process(node, dataclasses.replace(entry, replies=replies), tasks)
        if found is not None:
            tasks[found.identity.token] = found
    for event, task in sorted(
        ((e, t) for t in tasks.values() for e in t.record.events), key=lambda pair: pair[0].seq
    ):
        node.publisher.publish(task, event)
    rest = leave_strange(_take_streams(tasks, rest), broken)
    await asyncio.gather(*(_adopt(node, task) for task in tasks.values()))
    return rest


def _process(node: Node, record: Record, known: Mapping[str, Process]) -> Process | None:
    """The process of a record, and `known` those before it, by token; None for an exec whose task
    is gone: its remains are removed. What is deleted is there for its events and replies only."""
    me = record.identity
    key = names.TaskKey(me.namespace, me.id)
    if not me.exec_id:
        task = Task(node, record)
        if task.phase is not Phase.DELETED:
            node.tasks[key] = task
        else:
            mark_again(task)
        node.unsent.update(dict.fromkeys(record.replies, task))
        return task
    parent = known.get(me.task_token)
    deleted = record.life.phase is Phase.DELETED
    if not isinstance(parent, Task) or (parent.phase is Phase.DELETED and not deleted):
        node.store.remove(me)
        return None
    child = Exec(node, record, parent)
    if not deleted:
        parent.execs[me.exec_id] = child
    node.unsent.update(dict.fromkeys(record.replies, child))
    return child


def _take_streams(
    by_token: dict[str, Process], kept: list[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Give each task its FIFO ends back; returns what is nobody's."""
    rest = []
    for name, fd in kept:
        token, stream = streams.parse(name)
        task = by_token.get(token)
        if task is None or task.phase is Phase.DELETED:
            rest.append((name, fd))
        else:
            streams.take(task, stream, fd)
    return rest


def leave_strange(kept: Kept, broken: Collection[str]) -> Kept:
    """Leave in the store what another version may know, and close our copies: names of no form of
    ours, and the ends of records that cannot be read (`broken`: their tokens). Returns the rest."""
    rest: Kept = []
    left: list[str] = []
    for name, fd in kept:
        ours = name.startswith((streams.FD_PREFIX, publisher.FD_PREFIX))
        if (ours and streams.parse(name)[0] not in broken) or len(left) == STRANGE:
            rest.append((name, fd))
            continue
        left.append(name)
        os.close(fd)
    if left:
        log.warning("left in the fd store for the version that knows them: %s", ", ".join(left))
    return rest


def runs(node: Node, task: Process) -> bool:
    """Whether the main process lives. Its pid may be another's by now: the exit hook's record says
    that it has ended, and its cgroup whose it is."""
    if node.store.exit_record(task.identity):
        return False
    return exits.is_ours(task, node.store.main_pid(task.identity))


async def _adopt(node: Node, task: Process) -> None:
    """Bring one task's picture up to date with what happened meanwhile."""
    if task.phase is Phase.DELETED:
        task.forget_if_done()
        return
    if isinstance(task, Task) and node.store.was_cleaned(task.identity):
        await units.hold(node, task)
        node.spawn(discard(node, task), f"remains of {task.key}")
        return
    alive = runs(node, task)
    await units.hold(node, task, runs=alive)
    await loggers.adopt(node, task)
    # The call that has begun connects the streams itself, and an exec has none before its Start.
    begun: tuple[Phase, ...] = (Phase.CREATING,)
    if isinstance(task, Exec):
        begun += (Phase.CREATED, Phase.STARTING)
    if task.phase not in begun:
        terminals.pump(node, task)
        await output.adopt(node, task)
    if task.phase in (Phase.CREATING, Phase.EXITED):
        return
    if isinstance(task, Exec) and task.phase is not Phase.RUNNING:
        return
    if not task.pid:  # a container that is not restored yet
        return
    if alive:
        exits.watch(node, task)
        if isinstance(task, Task):
            await readiness.listen(node, task)
        if isinstance(task, Task) and task.phase not in (Phase.CREATED, Phase.STARTING):
            node.spawn(limits.settle(node, task), f"limits of {task}")
            if task.phase in (Phase.PAUSED, Phase.CHECKPOINTING_PAUSED):
                pause.stand_by(node, task)
            pause.follow(node, task)
    else:
        node.spawn(exits.ended(node, task), f"exit of {task}")
