"""Update, and limits at the start: the container's cgroup by the OCI runtime, the unit's matching
properties by systemd; done again after a death."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core import resources
from sdshim.core.errors import InvalidArgument, ShimError, UnknownError
from sdshim.core.lifecycle import Phase
from sdshim.daemon import timings
from sdshim.pb.wellknown import RESOURCES_URL, type_name
from sdshim.runtime import bundle
from sdshim.systemd.errors import NoSuchUnit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.unitspec import Property
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.pb import task_v2_pb2 as pb
    from sdshim.ttrpc.server import Call

log = logging.getLogger(__name__)

FILE = "resources.json"
LIMITED = "limited"
"""Names of the unit's properties that are opened again at the exit."""


async def update(node: Node, call: Call, task: Task, request: pb.UpdateTaskRequest) -> bytes:
    """Change the limits of a container that has not ended. Raises UnknownError in stock's words,
    InvalidArgument for what is no LinuxResources."""
    async with task.lock:
        if task.phase in (Phase.EXITED, Phase.DELETED) or task.ending:
            word = "deleted" if task.phase is Phase.DELETED else "stopped"
            raise UnknownError(f"cannot update a {word} container")
        if not task.pid:
            raise UnknownError("cannot update a container before it is restored")
        kind = type_name(request.resources)
        if kind != RESOURCES_URL:
            raise InvalidArgument(f"resources of type {kind!r} are not an OCI LinuxResources")
        wanted = resources.decode(request.resources.value)
        new = _properties(node, task, wanted)
        folder = node.store.folder(task.identity)
        if call.recovered:
            await node.runtime.settled(folder)
        node.store.put(task.identity, FILE, json.dumps(wanted).encode())
        old = await _current(node, task, new)
        note(node, task, new)
        await _set(node, task, resources.raised(old, new))
        try:
            with node.tracer.span("runc.update", timings.about(task)):
                await node.runtime.update(task.identity, folder, folder / FILE)
        except UnknownError:
            await _try_to_set(node, task, [(name, kind, old[name]) for name, kind, _ in new])
            raise
        await _try_to_set(node, task, new)
        if node.store.exit_record(task.identity):  # it has ended meanwhile
            await lift(node, task)
        return b""


async def limit(node: Node, task: Task, more: list[Property]) -> None:
    """Set the unit's properties for what the bundle's spec limits, and `more`: when the runtime's
    `create` has ended, so that nothing of it is hit."""
    wanted = {one[0]: one for one in (*_of_spec(node, task), *more)}
    if wanted:
        note(node, task, list(wanted.values()))
        await _try_to_set(node, task, list(wanted.values()))


def _of_spec(node: Node, task: Task) -> list[Property]:
    try:
        spec = bundle.load_spec(Path(task.identity.bundle))
        wanted = (spec.get("linux") or {}).get("resources")
        return _properties(node, task, wanted) if isinstance(wanted, dict) else []
    except ShimError as error:  # the runtime has taken it
        log.warning("limits of %s are not set on its unit: %s", task, error)
        return []


async def lift(node: Node, task: Task) -> None:
    """Its init has ended: the exit hook, which runs inside the unit, is not to meet its limits."""
    names = node.store.text(task.identity, LIMITED).split()
    await _try_to_set(node, task, [(name, "t", resources.OPEN[name]) for name in names])


def note(node: Node, task: Task, given: list[Property]) -> None:
    """Remember what `lift` has to open."""
    known = set(node.store.text(task.identity, LIMITED).split())
    names = known | {name for name, _, _ in given if name in resources.OPEN}
    if names != known:
        node.store.put(task.identity, LIMITED, " ".join(sorted(names)).encode())


def _properties(node: Node, task: Task, wanted: Mapping[str, Any]) -> list[Property]:
    """None for somebody else's cgroup: the unit's would not bind there."""
    made = resources.properties(wanted, unified=node.facts.unified)
    return made if task.identity.owns_cgroup else []


async def _current(node: Node, task: Task, given: list[Property]) -> dict[str, Any]:
    unit, names = task.identity.unit, [name for name, _, _ in given]
    ask = node.manager.get_unit_property
    values = await asyncio.gather(*(ask(unit, "Service", name) for name in names))
    return dict(zip(names, values, strict=True))


async def _set(node: Node, task: Task, given: list[Property]) -> None:
    if given:
        await node.manager.set_properties(task.identity.unit, given)


async def _try_to_set(node: Node, task: Task, given: list[Property]) -> None:
    """The container's own cgroup has its limits: a unit without them is no reason to fail."""
    try:
        await _set(node, task, given)
    except NoSuchUnit:
        log.debug("%s has ended before its limits were set", task)
    except ShimError as error:
        log.warning("limits of %s are not set on its unit: %s", task, error)
