"""How a container's end is noticed: a pidfd wakes us, and tells how it ended.

From Linux 6.15 on it does so as soon as systemd has reaped the process, and with what systemd got:
PID 1 has then told the unit, whose state is the new one; systemd is asked for the time alone, which
spares three calls over D-Bus in each container's life. Older kernels, and whatever was missed,
leave all to systemd: PID 1 handles SIGCHLD before bus messages, so the answer is there when we ask
(measured by tests/bench/exit_signal.py; a per-unit signal costs several times the CPU and comes 3
to 15 ms later). When the unit has nothing to say any more, the exit hook's record is the last
source.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING

from sdshim.core import exitrecord, logs, names, spans
from sdshim.core.errors import ShimError, scarce
from sdshim.core.lifecycle import Phase, Seen
from sdshim.core.model import EXIT_UNKNOWN, ExitStatus
from sdshim.daemon import limits, oom, pause, readiness, stats, terminals, timings, units
from sdshim.daemon.process import Exec, Task
from sdshim.host import cgroup
from sdshim.host.process import Watched, tells_exits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

log = logging.getLogger(__name__)


WATCH_AGAIN_S = 0.5
EXECS_END_S = 10.0
"""What the execs of a dead container may take to end: their processes end with its cgroup. An OCI
runtime that is about to make one gets no longer than for other commands."""
DYING_S = 2.0
"""What they may take when they are killed."""
SIGNALLED = 128
"""The exit status of what a signal has ended begins here."""


def watch(node: Node, process: Process) -> None:
    """Follow the main process of the unit (init, or an exec's subreaper) until it has ended."""

    def fire() -> None:
        stats.keep(node, process)  # now: systemd removes the cgroup soon after the exit
        node.spawn(ended(node, process), f"exit of {process}")

    if isinstance(process, Task):
        oom.watch(node, process)
    _watch(node, process, fire)


def _watch(node: Node, process: Process, fire: Callable[[], None]) -> None:
    try:
        process.watched = Watched(node.store.main_pid(process.identity), fire)
    except ProcessLookupError:
        fire()
    except OSError as error:
        if not scarce(error):
            raise
        log.error("the end of %s will be noticed late: %s", process, error)
        node.spawn(_watch_later(node, process, fire), f"watch of {process}")


async def _watch_later(node: Node, process: Process, fire: Callable[[], None]) -> None:
    """No descriptor was free for its pidfd: look until one is."""
    await asyncio.sleep(WATCH_AGAIN_S)
    try:
        alive = is_ours(process, node.store.main_pid(process.identity))
    except OSError:
        alive = True
    if alive:
        _watch(node, process, fire)
    else:
        fire()


def is_ours(process: Process, pid: int) -> bool:
    """True when the main process still is the unit's: its cgroup says so, never the pid alone."""
    me = process.identity
    unit = names.unit_cgroup(me.slice, me.unit)
    return bool(pid) and (cgroup.holds(unit, pid) or cgroup.holds(me.cgroup, pid))


async def ended(node: Node, task: Process) -> None:
    """A process has ended: find out how, and move on."""
    started = time.time_ns()
    if isinstance(task, Task):
        task.ending = True
    await units.confirm(node, task)
    if isinstance(task, Task):
        pause.melt(node, task)
        readiness.hush(task)
        node.spawn(limits.lift(node, task), f"limits of {task}")
        _end_the_others(task)
    exit = await find_out(node, task, started)
    node.crash("exit.known")
    if task.exited.is_set():
        return
    terminals.ended(task)
    node.output.ended(task)
    if isinstance(task, Task):
        await execs_ended(node, task)
        exit = oom.judged(node, task, exit)
        oom.unwatch(task)
        if node.store.was_cleaned(task.identity):  # by the launcher, while we did not answer it
            task.mute()
    elif isinstance(task, Exec):
        exit = oom.judged(node, task.task, exit, since=task.record.life.ooms)
    _tell_of_thaw(node, task, exit)
    task.see(Seen.EXITED, exit=exit)
    node.tracer.record(
        "task.exit",
        started,
        time.time_ns(),
        {**timings.about(task), spans.PID: task.pid, spans.EXIT_CODE: exit.status},
        parent=task.identity.traceparent,
    )
    oom_killed = " (OOM)" if exit.reason == exitrecord.OOM_KILL else ""
    me = task.identity
    fields = {**logs.fields(me), "UNIT": me.unit, "SDSHIM_EXIT_STATUS": exit.status}
    extra = {"fields": fields, "bundle": me.bundle}
    log.info("%s exited with status %d%s", task, exit.status, oom_killed, extra=extra)


def _tell_of_thaw(node: Node, task: Process, exit: ExitStatus) -> None:
    """Who ends by itself was thawed, sooner than anybody looked; who ends by a signal may have
    been killed while frozen, unless a Resume was about to let it go on."""
    if not isinstance(task, Task) or task.phase is not Phase.PAUSED:
        return
    if exit.status < SIGNALLED or pause.is_thawing(node, task):
        task.see(Seen.RESUMED)


def _end_the_others(task: Task) -> None:
    """SIGKILL to what outlives an init without a pid namespace of its own (protocol 7.4). In the
    unit's cgroup systemd does it; in somebody else's nobody would."""
    me = task.identity
    if not me.private_pids and not me.owns_cgroup:
        cgroup.kill(me.cgroup)


async def execs_ended(node: Node, task: Task) -> None:
    """An init's exit is published last (protocol 7.4): wait for the execs that still run. One whose
    OCI runtime hangs would keep its lock, and Delete waiting."""
    running = [e for e in task.execs.values() if e.phase in (Phase.STARTING, Phase.RUNNING)]
    if not running:
        return
    seconds = min(EXECS_END_S, node.config.runtime_timeout)
    if await _have_ended(running, seconds):
        return
    left = [child for child in running if not child.exited.is_set()]
    log.error("%s has ended, %d of its execs have not and are killed", task, len(left))
    for child in left:
        child.overdue = True
        await units.confirm(node, child)
        if not child.unit_gone:
            with contextlib.suppress(ShimError):  # it has ended by now
                await node.manager.kill(child.identity.unit, "all", signal.SIGKILL)
    if not await _have_ended(left, DYING_S):
        log.error("the exit of %s is told before those of its execs", task)


async def _have_ended(execs: list[Exec], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(child.exited.wait() for child in execs))
    except TimeoutError:
        return False
    return True


async def find_out(node: Node, task: Process, seen_ns: int = 0) -> ExitStatus:
    """How the ended main process ended: what the kernel told systemd, which has dealt with it by
    then; systemd, then the hook's record, then 255. `seen_ns`: when its end was seen, 0 for now."""
    exit = await _from_kernel(node, task, seen_ns) or await _from_unit(node, task)
    if exit is None:
        await units.confirm(node, task)
    if exit is None and not task.unit_gone:
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
        log.error("%s has ended and nothing tells how; status %d", task, EXIT_UNKNOWN)
        exit = ExitStatus(EXIT_UNKNOWN, time.time_ns(), "unknown")
    return exit


async def _from_kernel(node: Node, task: Process, seen_ns: int) -> ExitStatus | None:
    """The time is asked for first: PID 1 reaps before it answers, so the status is there then, and
    nobody waits for the one after the other."""
    watched = task.watched
    if watched is None:
        return None
    try:
        if not tells_exits():
            return None
        time_ns = await _time(node, task)
        status = await watched.wait_status()
    finally:
        watched.close()
    if status is None:
        return None
    time_ns = time_ns or await _time(node, task) or seen_ns or time.time_ns()
    return exitrecord.from_wait_status(status, time_ns)


async def _time(node: Node, task: Process) -> int:
    """When systemd has seen the end (ns), which we may see much later; 0 when it does not say."""
    if task.unit_gone:
        return 0
    try:
        return 1000 * await node.manager.main_exit_time(task.identity.unit)
    except ShimError as error:
        log.warning("systemd does not say when %s has ended: %s", task, error)
        return 0


async def _from_unit(node: Node, task: Process) -> ExitStatus | None:
    if task.unit_gone:
        return None
    try:
        facts = await node.manager.main_exit(task.identity.unit)
    except ShimError as error:
        log.warning("systemd does not answer about %s: %s", task.identity.unit, error)
        return None
    main = node.store.main_pid(task.identity)
    if facts is None or (main and facts.pid and facts.pid != main):
        return None
    time_ns = facts.time_us * 1000 or time.time_ns()
    return exitrecord.from_systemd(facts.code, facts.status, time_ns)


def is_over(task: Process) -> bool:
    """True when the process has ended, as far as clients are concerned."""
    return task.phase in (Phase.EXITED, Phase.DELETED)
