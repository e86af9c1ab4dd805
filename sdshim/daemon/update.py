"""Update: the container's cgroup by the OCI runtime, the unit's matching properties by systemd.

Done again after a death.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from sdshim.core import resources
from sdshim.core.errors import InvalidArgument, UnknownError
from sdshim.core.lifecycle import Phase
from sdshim.daemon import limits, timings
from sdshim.pb.wellknown import RESOURCES_URL, type_name

if TYPE_CHECKING:
    from sdshim.core.unitspec import Property
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.pb import task_v2_pb2 as pb
    from sdshim.ttrpc.server import Call

FILE = "resources.json"


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
        new = limits.of_resources(node, task, wanted)
        folder = node.store.folder(task.identity)
        if call.recovered:
            await node.runtime.settled(folder)
        node.store.put(task.identity, FILE, json.dumps(wanted).encode())
        old = await _current(node, task, new)
        limits.note(node, task, new)
        limits.supersede(node, task, {name for name, _, _ in new})
        await _set(node, task, resources.raised(old, new))
        try:
            with node.tracer.span("runc.update", timings.about(task)):
                await node.runtime.update(task.identity, folder, folder / FILE)
        except UnknownError:
            await limits.give(node, task, resources.restored(old, new))
            raise
        await limits.give(node, task, new)
        if task.phase is not Phase.CREATED:  # else Start does it
            node.spawn(limits.settle(node, task), f"limits of {task}")
        if node.store.exit_record(task.identity):  # it has ended meanwhile
            await limits.lift(node, task)
        return b""


async def _current(node: Node, task: Task, given: list[Property]) -> dict[str, Any]:
    unit, names = task.identity.unit, [name for name, _, _ in given]
    ask = node.manager.get_unit_property
    values = await asyncio.gather(*(ask(unit, "Service", name) for name in names))
    return dict(zip(names, values, strict=True))


async def _set(node: Node, task: Task, given: list[Property]) -> None:
    if given and not task.unit_gone:
        await node.manager.set_properties(task.identity.unit, given)
