"""How a container's end is noticed: a pidfd wakes us, systemd says how it ended.

PID 1 handles SIGCHLD before bus messages, so the answer is there when we ask (measured by
tests/bench/exit_signal.py; a per-unit signal costs several times the CPU and comes 3 to 15 ms
later). When the unit has nothing to say any more, the exit hook's record is the second source.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from sdshim.core import exitrecord, spans
from sdshim.core.errors import ShimError
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import EXIT_UNKNOWN, ExitStatus
from sdshim.host.process import Watched

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.task import Task

log = logging.getLogger(__name__)


def watch(node: Node, task: Task) -> None:
    """Follow the task's init process until it has ended."""

    def fire() -> None:
        node.spawn(ended(node, task), f"exit of {task.key}")

    try:
        task.watched = Watched(task.pid, fire)
    except ProcessLookupError:
        fire()


async def ended(node: Node, task: Task) -> None:
    """The init process has ended: find out how, and move on."""
    started = time.time_ns()
    exit = await find_out(node, task)
    if task.exited.is_set():
        return
    task.see(Seen.EXITED, exit=exit)
    node.tracer.record(
        "task.exit",
        started,
        time.time_ns(),
        {
            spans.NAMESPACE: task.key.namespace,
            spans.CONTAINER_ID: task.key.id,
            spans.UNIT: task.identity.unit,
            spans.PID: task.pid,
            spans.EXIT_CODE: exit.status,
        },
        parent=task.identity.traceparent,
    )
    log.info("%s exited with status %d", task.key, exit.status)


async def find_out(node: Node, task: Task) -> ExitStatus:
    """How the ended init process ended: systemd, then the hook's record, then 255."""
    exit = await _from_unit(node, task)
    if exit is None:
        try:
            # Nobody has told yet: wait until the unit is down, then the hook has written.
            job = await node.manager.stop(task.identity.unit)
            await job.wait()
        except ShimError:
            pass  # the unit is gone already
        exit = await _from_unit(node, task)
    if exit is None:
        found = node.store.exit_record(task.identity)
        exit = found[1] if found else None
    if exit is None:
        log.error("%s has ended and nothing tells how; status %d", task.key, EXIT_UNKNOWN)
        exit = ExitStatus(EXIT_UNKNOWN, time.time_ns(), "unknown")
    return exit


async def _from_unit(node: Node, task: Task) -> ExitStatus | None:
    try:
        facts = await node.manager.main_exit(task.identity.unit)
    except ShimError as error:
        log.warning("systemd does not answer about %s: %s", task.identity.unit, error)
        return None
    if facts is None or (task.pid and facts.pid and facts.pid != task.pid):
        return None
    time_ns = facts.time_us * 1000 or time.time_ns()
    return exitrecord.from_systemd(facts.code, facts.status, time_ns)


def is_over(task: Task) -> bool:
    """True when the init process has ended, as far as clients are concerned."""
    return task.phase in (Phase.EXITED, Phase.DELETED)
