"""The limits of a container's unit: set when they hit the container only, opened at its end.

The container's own cgroup has its limits from the OCI runtime and binds; the unit above it has the
same. They are set when the runtime's `create` has ended. A memory limit has to wait longer, if the
unit uses more by then: the runtime's init waits for Start with 5 to 13 MB, and what `create` wrote
stays charged to the unit. The v1 kernel would refuse such a limit (systemd logs that, and shows a
value that does not bind), v2's would take it and kill. Put off, a limit stands in the task's state
folder, and is set as soon as the payload has taken the place of the runtime's init.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core import devicerules, names, resources
from sdshim.core.errors import ShimError
from sdshim.host import cgroup
from sdshim.runtime import bundle
from sdshim.systemd.errors import NoSuchUnit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sdshim.core.unitspec import Property
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task

log = logging.getLogger(__name__)

LIMITED = "limited"
"""Names of the unit's properties that are opened again at the exit."""
PUT_OFF = "limits-put-off"
"""[[name, signature, value], …] of the unit's properties that wait until they fit."""
PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Between the tries after Start."""


async def at_create(
    node: Node, task: Task, more: list[Property], spec: Mapping[str, Any] | None = None
) -> None:
    """Set the unit's properties for what the bundle's spec limits, and `more`. `spec`, if it is at
    hand."""
    wanted = {one[0]: one for one in (*_of_spec(node, task, spec), *more)}
    if wanted:
        note(node, task, list(wanted.values()))
        await give(node, task, list(wanted.values()))


def of_resources(node: Node, task: Task, wanted: Mapping[str, Any]) -> list[Property]:
    """The unit's properties for a LinuxResources. None for somebody else's cgroup: the unit's would
    not bind there. Raises InvalidArgument."""
    made = resources.properties(wanted, unified=node.facts.unified)
    return made if task.identity.owns_cgroup else []


def _of_spec(node: Node, task: Task, spec: Mapping[str, Any] | None) -> list[Property]:
    try:
        spec = spec or bundle.load_spec(Path(task.identity.bundle))
        wanted = (spec.get("linux") or {}).get("resources")
        if not isinstance(wanted, dict):
            return []
        made = of_resources(node, task, wanted)
        # v1's kernel empties the lists below when the unit's is set
        if node.config.device_rules and node.facts.unified and task.identity.owns_cgroup:
            made += devicerules.properties(wanted.get("devices"))
        return made
    except ShimError as error:  # the runtime has taken it
        log.warning("limits of %s are not set on its unit: %s", task, error)
        return []


async def give(node: Node, task: Task, given: list[Property]) -> None:
    """Set properties; those that do not fit are put off."""
    now, later = resources.fitting(given, _used(task))
    if later:
        _put_off(node, task, {one[0]: one for one in (*_waiting(node, task), *later)}.values())
    await _set(node, task, now)


async def settle(node: Node, task: Task) -> None:
    """Set what was put off, as soon as it fits. To be called when the container was started."""
    for pause in (*PAUSES_S, 0.0):
        waiting = _waiting(node, task)
        if task.ending or not waiting:
            return
        now, later = resources.fitting(waiting, _used(task))
        if now:
            await _set(node, task, now)
            _put_off(node, task, [one for one in _waiting(node, task) if one not in now])
        if not later:
            return
        await asyncio.sleep(pause)
    log.warning("%s: its unit uses more than its limit of memory, which binds below it only", task)


async def lift(node: Node, task: Task) -> None:
    """Its init has ended: the exit hook, which runs inside the unit, is not to meet its limits."""
    supersede(node, task, resources.OPEN)
    limited = resources.OPEN.keys() & node.store.text(task.identity, LIMITED).split()
    await give(node, task, [(name, "t", resources.OPEN[name]) for name in limited])


def supersede(node: Node, task: Task, given: Collection[str]) -> None:
    """Forget what was put off of the properties of these names: there are newer values."""
    waiting = _waiting(node, task)
    if waiting:
        _put_off(node, task, [one for one in waiting if one[0] not in given])


def note(node: Node, task: Task, given: list[Property]) -> None:
    """Remember what `lift` has to open."""
    known = set(node.store.text(task.identity, LIMITED).split())
    limited = known | {name for name, _, _ in given if name in resources.OPEN}
    if limited != known:
        node.store.put(task.identity, LIMITED, " ".join(sorted(limited)).encode())


async def _set(node: Node, task: Task, given: list[Property]) -> None:
    """The container's own cgroup has its limits: a unit without them is no reason to fail."""
    try:
        if given and not task.unit_gone:
            await node.manager.set_properties(task.identity.unit, given)
    except NoSuchUnit:
        log.debug("%s has ended before its limits were set", task)
    except ShimError as error:
        log.warning("limits of %s are not set on its unit: %s", task, error)


def _used(task: Task) -> int | None:
    me = task.identity
    return cgroup.memory_used(names.unit_cgroup(me.slice, me.unit))


def _waiting(node: Node, task: Task) -> list[Property]:
    text = node.store.text(task.identity, PUT_OFF)
    try:
        found = json.loads(text or "[]")
        return [(str(name), "t", int(value)) for name, _, value in found]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        log.error("%s: what was put off cannot be read: %r", task, error)
        return []


def _put_off(node: Node, task: Task, given: Iterable[Property]) -> None:
    try:
        node.store.put(task.identity, PUT_OFF, json.dumps(list(given)).encode())
    except ShimError as error:
        log.error("limits of %s are not set on its unit: %s", task, error)
