"""What a containerd knows, over its gRPC API: the one importer of grpc."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sdshim.core.names import TaskKey
from sdshim.pb import containerd_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

RUNTIME = "io.containerd.systemd.v1"
TTRPC = ".ttrpc"
TIMEOUT_S = 3.0
_SERVICES = "containerd.services"
_UNKNOWN_TO_US = "container not created"
"""Our State's word for a task that the daemon does not have (protocol 3.4); containerd's own for
one that it does not have itself differs."""


@dataclass(frozen=True, slots=True)
class View:
    """One containerd, as it answered."""

    address: str
    """Its ttrpc address, by which records name it."""
    version: str = ""
    tasks: frozenset[TaskKey] = frozenset()
    """Of every runtime; those whose shim answers."""
    ours: frozenset[TaskKey] = frozenset()
    """Containers that name our runtime, with or without a task."""
    ghosts: frozenset[TaskKey] = frozenset()
    """Tasks of ours that containerd has and the daemon does not know."""
    error: str = ""
    """Why it did not answer; then the rest says nothing."""


@dataclass(slots=True)
class _Client:
    channel: Any
    namespace: str = ""
    made: dict[str, Any] = field(default_factory=dict)

    def ask(self, method: str, request: Message, answer: type[M]) -> M:
        call = self.channel.unary_unary(
            f"/{_SERVICES}.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        metadata = (("containerd-namespace", self.namespace),) if self.namespace else ()
        told: M = call(request, metadata=metadata, timeout=TIMEOUT_S)
        return told


def is_there(address: str) -> bool:
    """Whether a containerd with that ttrpc address has ever listened here."""
    return Path(address.removesuffix(TTRPC)).exists()


def look(address: str) -> View:
    """Ask the containerd whose ttrpc address is given. Never raises: see `View.error`."""
    try:
        import grpc  # 60 ms, and only doctor needs it
    except ImportError as error:
        return View(address, error=f"grpcio is not installed: {error}")
    socket = address.removesuffix(TTRPC)
    # a local socket: nothing may be sent to a proxy, and the authority is not the path
    options = [("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix://{socket}", options=options) as channel:
        try:
            return _look(address, _Client(channel), grpc.RpcError)
        except grpc.RpcError as error:
            return View(address, error=f"{error.code().name}: {error.details()}")


def _look(address: str, client: _Client, failure: type[Exception]) -> View:
    version = client.ask("version.v1.Version/Version", pb.Nothing(), pb.Version).version
    listed = client.ask("namespaces.v1.Namespaces/List", pb.Nothing(), pb.Namespaces)
    tasks: set[TaskKey] = set()
    ours: set[TaskKey] = set()
    ghosts: set[TaskKey] = set()
    for space in listed.namespaces:
        client.namespace = space.name
        found = client.ask("containers.v1.Containers/List", pb.Nothing(), pb.Containers)
        mine = {c.id for c in found.containers if c.runtime.name == RUNTIME}
        running = client.ask("tasks.v1.Tasks/List", pb.Nothing(), pb.Processes)
        there = {task.id or task.container_id for task in running.tasks}
        tasks |= {TaskKey(space.name, id_) for id_ in there}
        ours |= {TaskKey(space.name, id_) for id_ in mine}
        for id_ in sorted(mine - there):
            if _is_ghost(client, id_, failure):
                ghosts.add(TaskKey(space.name, id_))
    return View(address, version, frozenset(tasks), frozenset(ours), frozenset(ghosts))


def _is_ghost(client: _Client, id_: str, failure: type[Exception]) -> bool:
    """A list leaves out what the shim does not know; asked for by name, its answer is told."""
    try:
        client.ask("tasks.v1.Tasks/Get", pb.OneTask(container_id=id_), pb.Processes)
    except failure as error:
        return _UNKNOWN_TO_US in str(error.details())  # type: ignore[attr-defined]
    return False
