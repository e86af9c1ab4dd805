"""A process's unit: started, found again after a restart of the daemon, brought down, forgotten."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import ShimError
from sdshim.core.unitspec import InitUnit, init_properties, run_from, tells_when_ready
from sdshim.daemon import timings
from sdshim.host import cgroup
from sdshim.host.process import end_of, limits_of
from sdshim.runtime import bundle
from sdshim.systemd.errors import NoSuchUnit, UnitExists
from sdshim.systemd.questions import NOT_FOUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.model import Identity
    from sdshim.core.unitspec import Property
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process
    from sdshim.systemd.manager import Job

log = logging.getLogger(__name__)

STOPPED = "timeout"
"""Result of a start that took longer than `create_timeout` and was ended by us. (systemd's own
time-out makes a start job fail.)"""
PRUNE_PAUSES_S = (0.005, 0.02, 0.1, 0.3, 0.0)
"""Between the tries to remove a cgroup that is in use."""


async def start(node: Node, process: Process, properties: Sequence[Property], runtime: str) -> str:
    """Start the unit, whose script executes `runtime`; how its start job ended."""
    with node.tracer.span("systemd.StartTransientUnit", timings.about(process)) as span:
        async with node.runtime.sealed.lend(runtime) as program:
            if program:
                properties = run_from(program, properties)
            process.unit_gone = False
            process.held_since = node.manager.losses
            try:
                job = await node.manager.start_transient(process.identity.unit, properties)
            except UnitExists:
                process.unit_gone = True
                raise
        result = await _ended(node, process.identity, job)
        span.set("systemd.job.result", result)
        await timings.record(node, process)
    return result


async def start_init(
    node: Node,
    task: Process,
    argv: Sequence[str],
    description: str,
    peer_pid: int,
    environment: tuple[str, ...] = (),
) -> str:
    """Start the unit that is the container, with the OCI runtime's `argv`; how its job ended.
    The container has the limits of the processes of `peer_pid`, containerd."""
    unit = InitUnit(
        identity=task.identity,
        state_dir=str(node.store.folder(task.identity)),
        runtime_argv=tuple(argv),
        description=description,
        limits=inherited_limits(task.identity, peer_pid),
        environment=environment,
        stop_timeout_us=int(node.config.stop_timeout * 1e6),
        start_timeout_us=int(node.config.create_timeout * 1e6),
    )
    return await start(node, task, init_properties(unit, node.facts), argv[0])


def inherited_limits(me: Identity, peer_pid: int) -> tuple[tuple[str, int], ...]:
    """The resource limits that a process of the container has when its spec names none: those that
    containerd (`peer_pid`) gives to its children."""
    return limits_of(peer_pid, bundle.read_start(Path(me.bundle)).get("nofile", ""))


async def begun_before(node: Node, process: Process) -> str | None:
    """How the start job that an earlier daemon queued ended, or ends; None when there is no unit
    with our token (any more)."""
    result = await start_before(node, process.identity)
    if result is not None:
        process.unit_gone = False
    return result


async def start_before(node: Node, me: Identity) -> str | None:
    """The same for any unit with a token."""
    if not await has_token(node, me):
        return None
    job = await node.manager.starting(me.unit)
    result = await _ended(node, me, job) if job else "gone"
    return None if result == "gone" else result


async def has_token(node: Node, me: Identity) -> bool:
    """Whether the unit of that name is this incarnation's; False also when there is none."""
    return f"SDSHIM_TOKEN={me.token}" in await node.manager.environment(me.unit)


async def is_gone(node: Node, me: Identity) -> bool:
    """Whether systemd has no unit of this incarnation; one of its name is somebody else's."""
    if await has_token(node, me):
        return False
    # Ours may have lost its Environment only to a reload that could not read it again.
    return await node.manager.load_state(me.unit) in ("loaded", NOT_FOUND)


async def confirm(node: Node, process: Process) -> None:
    """Before a unit whose process may have ended is touched by its name: when the bus has gone
    since it was seen whose it is, our reference went too, and its name may be another's by now."""
    losses = node.manager.losses
    if process.unit_gone or process.held_since == losses:
        return
    unit = process.identity.unit
    try:
        process.unit_gone = await is_gone(node, process.identity)
        process.held_since = losses
        if process.unit_gone:
            log.warning("%s is gone, or another's by now", unit)
            await node.manager.disown(unit)
    except ShimError as error:
        log.warning("cannot ask whose %s is: %s", unit, error)


async def hold(node: Node, process: Process, *, runs: bool = False) -> None:
    """After a restart of the daemon: hold the unit again if it is there and ours. Nobody has held
    it meanwhile, so one whose process has ended may be gone, and its name somebody else's; one in
    which the process `runs` is not asked whose it is."""
    me = process.identity
    process.held_since = node.manager.losses
    try:
        if not runs:
            process.unit_gone = await is_gone(node, me)
        if not process.unit_gone:
            await node.manager.ref(me.unit)
    except NoSuchUnit:
        process.unit_gone = True
    except ShimError as error:
        log.warning("cannot reference %s: %s", me.unit, error)


async def _ended(node: Node, me: Identity, job: Job) -> str:
    """How a unit's start ended. That of a container that tells when it is ready ends for us when
    its init is there: systemd's job goes on until it is ready, which may be never."""
    if me.exec_id or not tells_when_ready(me):
        return await job.wait()
    ended = asyncio.ensure_future(job.wait())
    made = asyncio.ensure_future(_made(node, me))
    try:
        async with asyncio.timeout(node.config.create_timeout):
            await asyncio.wait({ended, made}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and ended.result() != "done":
            return ended.result()
        await made
        return "done"
    except TimeoutError:  # for other units systemd does this
        stop = await node.manager.stop(me.unit)
        await stop.wait()
        return STOPPED
    finally:
        made.cancel()
        ended.cancel()
        await asyncio.gather(made, ended, return_exceptions=True)


async def _made(node: Node, me: Identity) -> None:
    """Return when systemd has the container's init for its main process; never, when that does not
    come. The main process is the OCI runtime's `create` first. There is no signal of the change,
    but PID 1 deals with the end of a process before it answers what is asked after that."""
    while (pid := await node.manager.when_main(me.unit)) != node.store.pid(me):
        await end_of(pid)


async def settle(node: Node, process: Process) -> None:
    """Wait until the unit is inactive: a stop job on a unit that is going down ends then, so the
    exit hook has written its record. A unit that still runs (a failed Create) is stopped."""
    await confirm(node, process)
    if process.unit_gone:
        return
    try:
        with node.tracer.span("systemd.StopUnit", timings.about(process)):
            job = await node.manager.stop(process.identity.unit)
            await job.wait()
    except NoSuchUnit:
        return


async def forget(node: Node, process: Process) -> None:
    """Let systemd collect the unit, and wait for it: only then can its name be used again."""
    me = process.identity
    await confirm(node, process)
    if not process.unit_gone:
        await node.manager.collect(me.unit)
    if me.owns_cgroup and not me.exec_id:
        await _prune(me.cgroup.rpartition("/")[0])


async def _prune(group: str) -> None:
    """Remove what is left of a unit's cgroups on hybrid v1, as soon as nothing is in them."""
    for pause in PRUNE_PAUSES_S:
        left = cgroup.prune(group)
        if not left:
            return
        await asyncio.sleep(pause)
    log.warning("cgroups are still in use and stay: %s", ", ".join(map(str, left)))
