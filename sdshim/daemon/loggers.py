"""Loggers: a unit beside the process's own that takes its output (design 3 and 7, protocol 6.4).

Order: FIFOs in the state folder, their ends in systemd's fd store → the logger's unit → it is
ready → the process's unit. A daemon that goes on with a cut Create or Start finds the unit by the
token of the process and asks its ready FIFO again, which is never read. Bytes move between process,
FIFO and logger without us. At the end the logger sees the end of file, then `systemctl stop`'s
SIGTERM and SIGKILL, all of which systemd goes on with when we die.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

from sdshim.core import loguri, names
from sdshim.core.errors import ShimError, UnknownError
from sdshim.core.unitspec import LoggerUnit, logger_properties
from sdshim.daemon import timings
from sdshim.host.blocking import apart
from sdshim.host.process import Watched, is_ending
from sdshim.host.store import LOGGER_STDERR
from sdshim.stdio import logger as ends
from sdshim.systemd.errors import NoSuchUnit, UnitExists

if TYPE_CHECKING:
    from sdshim.core.loguri import Logger
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

log = logging.getLogger(__name__)

GRACE_S = 1.0
"""How long a logger may take to end by itself after the end of file …"""
DRAIN_S = 10
"""… and how often once more while it leaves something unread (stock waits as long for its own
copies, protocol 6.2)."""


def unit_of(process: Process) -> str:
    """The unit of a process's logger, empty when it has none."""
    if not loguri.parse(process.identity.stdio.stdout):
        return ""
    return names.logger_unit(process.key, process.identity.exec_id)


async def prepare(process: Process, seconds: float) -> None:
    """Find out, before anything is made, whether there can be a logger. Raises UnknownError."""
    if logger := loguri.parse(process.identity.stdio.stdout):
        try:
            await apart(partial(ends.prepare, logger), seconds)
        except TimeoutError:
            raise _failed(logger, f"its file system does not answer for {seconds:g} s") from None


async def start(node: Node, process: Process) -> None:
    """Start the logger of a process that has one, and wait until it is ready. Raises UnknownError
    when it cannot be started, ends, or is not ready in time; its processes are gone then."""
    logger = loguri.parse(process.identity.stdio.stdout)
    if logger is None:
        return
    with node.tracer.span("logger.start", timings.about(process)):
        await _start_unit(node, process, logger)
        try:
            await _ready(node, process, logger)
        except ShimError:
            with contextlib.suppress(ShimError):
                await node.manager.kill(unit_of(process), "all", 9)
            raise


async def _start_unit(node: Node, process: Process, logger: Logger) -> None:
    unit, folder = unit_of(process), node.store.folder(process.identity)
    if ends.said(process.held.ends[ends.READY]):  # to an earlier daemon
        if not await _is_ours(node, process):
            raise _failed(logger, "it has ended")
        return
    properties = logger_properties(LoggerUnit(process.identity, str(folder), logger), node.facts)
    try:
        job = await node.manager.start_transient(unit, properties)
        result = await job.wait()
    except UnitExists as error:
        if not await _is_ours(node, process):
            raise _failed(logger, f"unit {unit} belongs to something else") from error
        return
    if result != "done":
        raise _failed(logger, f"unit {unit}: start job {result}")


async def _is_ours(node: Node, process: Process) -> bool:
    """Whether systemd has the logger of this very process."""
    token = f"SDSHIM_TOKEN={process.identity.token}"
    return token in await node.manager.environment(unit_of(process))


async def _ready(node: Node, process: Process, logger: Logger) -> None:
    """Wait for the logger's word, or its end. A word is a byte; for binary:// the end of file as
    well, and as that is also how a program ends, it must still be alive then."""
    ready, seconds = process.held.ends[ends.READY], node.config.logger_timeout
    pid = await node.manager.main_pid(unit_of(process))
    over = asyncio.Event()
    watched = _watch(pid, over)
    try:
        async with asyncio.timeout(seconds):
            said = await _first_word(ready, over)
            if not said and await _goes_on(node, process):  # it has forked, its children go on
                await ends.heard(ready)
                said = ends.said(ready)
            if said == "end" and logger.scheme == loguri.BINARY_V2:
                raise _failed(logger, "it has closed fd 5 without a byte: it is not ready")
            if said == "end" and is_ending(pid):
                await over.wait()
                said = said if await _goes_on(node, process) else ""
    except TimeoutError:
        hint = "logger_timeout in sdshim's configuration"
        raise _failed(logger, f"it is not ready within {seconds:g} s", hint) from None
    finally:
        if watched:
            watched.close()
    if not said:
        raise _failed(logger, await _end(node, process))


def _watch(pid: int, over: asyncio.Event) -> Watched | None:
    try:
        return Watched(pid, over.set)
    except (ProcessLookupError, OSError):  # EINVAL: pid 0, it had ended already
        over.set()
        return None


async def _first_word(ready: int, over: asyncio.Event) -> str:
    """What the logger says; empty when its main process has ended without a word."""
    waits = [asyncio.ensure_future(wait) for wait in (ends.heard(ready), over.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return ends.said(ready)


async def _goes_on(node: Node, process: Process) -> bool:
    """Whether the unit lives without its main process."""
    return await node.manager.get_unit_property(unit_of(process), "Unit", "ActiveState") == "active"


async def _end(node: Node, process: Process) -> str:
    """How the logger has ended, for the client."""
    text = "it has ended"
    if facts := await node.manager.main_exit(unit_of(process)):
        how = "with status" if facts.code == timings.EXITED else "by signal"
        text += f" {how} {facts.status}"
    printed = " ".join(node.store.text(process.identity, LOGGER_STDERR).split())
    return f"{text}: {printed}" if printed else text


def _failed(logger: Logger, why: str, hint: str = "") -> UnknownError:
    return UnknownError(f"{loguri.FAILED}: logger {logger.path}: {why}", hint=hint)


async def stop(node: Node, process: Process) -> None:
    """End the logger of a process whose output is finished, and wait until its unit is gone.

    After the end of file it has time to end by itself, as long as it takes what is left.
    """
    unit = unit_of(process)
    if not unit or not await _is_ours(node, process):
        return
    await node.manager.unref(unit)
    for _ in range(DRAIN_S):
        try:
            async with asyncio.timeout(GRACE_S):
                await node.manager.when_removed(unit)
                return
        except TimeoutError:
            if not ends.unread(node.store.folder(process.identity)):
                break
    with contextlib.suppress(NoSuchUnit):
        job = await node.manager.stop(unit)
        await job.wait()
    with contextlib.suppress(TimeoutError):  # the process's unit, if it could not be forgotten
        async with asyncio.timeout(GRACE_S):
            await node.manager.when_removed(unit)


async def adopt(node: Node, process: Process) -> None:
    """Hold the unit again after a restart of the daemon: one that has failed stays visible."""
    if unit := unit_of(process):
        try:
            if await _is_ours(node, process):
                await node.manager.ref(unit)
        except NoSuchUnit:
            log.debug("the logger of %s has ended", process)
        except ShimError as error:
            log.warning("cannot reference %s: %s", unit, error)
