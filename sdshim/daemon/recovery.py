"""Taking over: the fd store, the records on disk and systemd's units → tasks in memory.

Before READY=1 every unit of ours is referenced again (the pins went with the old daemon's bus
connection), then asked whether it is loaded; a unit that is gone is judged by its exit record
alone. Calls that were open are dispatched again afterwards and each operation judges for itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import ShimError
from sdshim.core.lifecycle import Phase
from sdshim.daemon import exits, streams
from sdshim.daemon.delete import discard
from sdshim.daemon.task import Task
from sdshim.host.store import Broken
from sdshim.systemd.errors import NoSuchUnit

if TYPE_CHECKING:
    from collections.abc import Collection

    from sdshim.core.model import CallId
    from sdshim.core.record import Record
    from sdshim.daemon.node import Node

log = logging.getLogger(__name__)


async def take_over(
    node: Node, kept: list[tuple[str, int]], open_calls: Collection[CallId]
) -> list[tuple[str, int]]:
    """Rebuild the node's tasks. `kept` are the descriptors that systemd kept, by name; returned are
    those that belong to no task and no mailbox. `open_calls` still wait for a reply."""
    rest = node.publisher.load(kept)
    tasks: list[Task] = []
    for entry in node.store.load():
        if isinstance(entry, Broken):
            log.error("%s: %s; left as it is, see sdshim doctor", entry.folder, entry.error)
            continue
        replies = {c: r for c, r in entry.replies.items() if c in open_calls}
        tasks.append(_task(node, dataclasses.replace(entry, replies=replies)))
    for event, task in sorted(
        ((e, t) for t in tasks for e in t.record.events), key=lambda pair: pair[0].seq
    ):
        node.publisher.publish(task, event)
    rest = _take_streams({t.identity.token: t for t in tasks}, rest)
    await asyncio.gather(*(_adopt(node, task) for task in tasks))
    return rest


def _task(node: Node, record: Record) -> Task:
    task = Task(node, record)
    node.unsent.update(dict.fromkeys(record.replies, task))
    if task.phase is not Phase.DELETED:
        node.tasks[task.key] = task
    return task


def _take_streams(by_token: dict[str, Task], kept: list[tuple[str, int]]) -> list[tuple[str, int]]:
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


async def _adopt(node: Node, task: Task) -> None:
    """Bring one task's picture up to date with what happened meanwhile."""
    if task.phase is Phase.DELETED:
        task.forget_if_done()
        return
    if node.store.was_cleaned(task.identity):
        node.spawn(discard(node, task), f"remains of {task.key}")
        return
    try:
        await node.manager.ref(task.identity.unit)
    except NoSuchUnit:
        pass
    except ShimError as error:
        log.warning("cannot reference %s: %s", task.identity.unit, error)
    if task.phase in (Phase.CREATING, Phase.EXITED):
        return
    if _is_ours(task):
        exits.watch(node, task)
    else:
        node.spawn(exits.ended(node, task), f"exit of {task.key}")


def _is_ours(task: Task) -> bool:
    """True when the pid still is the task's init: its cgroup says so, never the number alone."""
    try:
        lines = Path(f"/proc/{task.pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":", 2)[2].startswith(task.identity.cgroup) for line in lines)
