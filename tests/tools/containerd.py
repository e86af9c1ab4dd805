"""A small client of containerd's own API: containers, snapshots and tasks over gRPC.

    with Containerd(str(host.path("/run/containerd/containerd.sock"))) as client:
        client.create_container("c1", RUNTIME, spec, client.parent_of("template"))
        client.call(TASKS, "Create", container_id="c1", rootfs=mounts)

A `ctr` process costs tens of ms, this a fraction of one. The messages are made at run time from the
tables below (the fields we use, with containerd's numbers); names of types do not travel in gRPC.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

if TYPE_CHECKING:
    from types import TracebackType

PACKAGE = "sdshim.tests.containerd"
CONTAINERS = "containerd.services.containers.v1.Containers"
SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"
TASKS = "containerd.services.tasks.v1.Tasks"
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
SNAPSHOTTER = "overlayfs"

# Message: fields as "number name type", `*` for repeated. Types with a capital are messages. A map
# is on the wire what a repeated message of key and value is.
MESSAGES = {
    "Empty": "",
    "Mount": "1 type str, 2 source str, 3 target str, 4 options *str",
    "Runtime": "1 name str, 2 options Any",
    "Container": "1 id str, 3 image str, 4 runtime Runtime, 5 spec Any, 6 snapshotter str, "
    "7 snapshot_key str",
    "CreateContainer": "1 container Container",
    "ContainerId": "1 id str",
    "Label": "1 key str, 2 value str",
    "SnapshotKey": "1 snapshotter str, 2 key str, 3 parent str, 4 labels *Label",
    "Mounts": "1 mounts *Mount",
    "SnapshotInfo": "1 name str, 2 parent str",
    "SnapshotStat": "1 info SnapshotInfo",
    "CreateTask": "1 container_id str, 3 rootfs *Mount, 4 stdin str, 5 stdout str, 6 stderr str, "
    "7 terminal bool, 9 options Any",
    "Created": "1 container_id str, 2 pid u32",
    "Process": "1 container_id str, 2 exec_id str",
    "Started": "1 pid u32",
    "Task": "1 container_id str",
    "Deleted": "1 id str, 2 pid u32, 3 exit_status u32, 4 exited_at Timestamp",
    "Kill": "1 container_id str, 2 exec_id str, 3 signal u32, 4 all bool",
    "Exited": "1 exit_status u32, 2 exited_at Timestamp",
    "State": "1 container_id str, 2 id str, 3 pid u32, 4 status u32, 9 exit_status u32",
    "Got": "1 process State",
    "Exec": "1 container_id str, 2 stdin str, 3 stdout str, 4 stderr str, 5 terminal bool, "
    "6 spec Any, 7 exec_id str",
}

METHODS = {
    CONTAINERS: {
        "Create": ("CreateContainer", "CreateContainer"),
        "Get": ("ContainerId", "CreateContainer"),
        "Delete": ("ContainerId", "Empty"),
    },
    SNAPSHOTS: {
        "Prepare": ("SnapshotKey", "Mounts"),
        "Stat": ("SnapshotKey", "SnapshotStat"),
        "Remove": ("SnapshotKey", "Empty"),
    },
    TASKS: {
        "Create": ("CreateTask", "Created"),
        "Start": ("Process", "Started"),
        "Delete": ("Task", "Deleted"),
        "DeleteProcess": ("Process", "Deleted"),
        "Get": ("Process", "Got"),
        "Kill": ("Kill", "Empty"),
        "Exec": ("Exec", "Empty"),
        "Wait": ("Process", "Exited"),
    },
}


def _classes() -> dict[str, Any]:
    """A message class for each entry of MESSAGES."""
    kinds = descriptor_pb2.FieldDescriptorProto
    plain = {"str": kinds.TYPE_STRING, "bool": kinds.TYPE_BOOL, "u32": kinds.TYPE_UINT32}
    foreign = {"Any": ".google.protobuf.Any", "Timestamp": ".google.protobuf.Timestamp"}
    file = descriptor_pb2.FileDescriptorProto(
        name="sdshim-tests-containerd.proto", package=PACKAGE, syntax="proto3"
    )
    file.dependency.extend([any_pb2.DESCRIPTOR.name, timestamp_pb2.DESCRIPTOR.name])
    for name, table in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in filter(None, table.split(", ")):
            number, label, kind = field.split()
            made = message.field.add(name=label, number=int(number))
            made.label = kinds.LABEL_REPEATED if kind[0] == "*" else kinds.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            made.type = plain.get(kind, kinds.TYPE_MESSAGE)
            if kind not in plain:
                made.type_name = foreign.get(kind, f".{PACKAGE}.{kind}")
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


class Containerd:
    """A connection to one containerd, in one of its namespaces. Safe to use from many threads."""

    def __init__(self, socket: str, namespace: str = "default") -> None:
        self._metadata = (("containerd-namespace", namespace),)
        self._channel = grpc.insecure_channel(
            f"unix://{socket}",
            # a local socket: nothing may be sent to a proxy, and the authority is not the path
            options=[("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost")],
        )
        self._stubs = {
            (service, method): self._channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=_TYPES[asked].SerializeToString,
                response_deserializer=_TYPES[answered].FromString,
            )
            for service, methods in METHODS.items()
            for method, (asked, answered) in methods.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, service: str, method: str, *, timeout: float = 60, **fields: Any) -> Any:
        """One call to its end. Raises grpc.RpcError."""
        request = _TYPES[METHODS[service][method][0]](**fields)
        stub = self._stubs[service, method]
        return stub(request, timeout=timeout, metadata=self._metadata)

    def begin(self, service: str, method: str, *, timeout: float = 60, **fields: Any) -> Any:
        """One call under way: a grpc future."""
        request = _TYPES[METHODS[service][method][0]](**fields)
        stub = self._stubs[service, method]
        return stub.future(request, timeout=timeout, metadata=self._metadata)

    def spec_of(self, container: str) -> dict[str, Any]:
        """The OCI spec of a container, e.g. one made by `ctr container create` as a template."""
        found = self.call(CONTAINERS, "Get", id=container).container
        spec: dict[str, Any] = json.loads(found.spec.value)
        return spec

    def parent_of(self, container: str) -> str:
        """The snapshot of the image below that container's own."""
        found = self.call(SNAPSHOTS, "Stat", snapshotter=SNAPSHOTTER, key=container)
        return str(found.info.parent)

    def create_container(
        self, name: str, runtime: str, spec: dict[str, Any], parent: str
    ) -> list[Any]:
        """A container with a fresh snapshot; the mounts for its task."""
        mounts = self.prepare(name, parent)
        container = {
            "id": name,
            "runtime": {"name": runtime},
            "spec": any_pb2.Any(type_url=SPEC_TYPE, value=json.dumps(spec).encode()),
            "snapshotter": SNAPSHOTTER,
            "snapshot_key": name,
        }
        self.call(CONTAINERS, "Create", container=container)
        return mounts

    def prepare(self, key: str, parent: str) -> list[Any]:
        """A fresh snapshot; its mounts. No collection takes it while no container names it."""
        keep = [{"key": "containerd.io/gc.root", "value": "tests"}]
        answer = self.call(
            SNAPSHOTS, "Prepare", snapshotter=SNAPSHOTTER, key=key, parent=parent, labels=keep
        )
        return list(answer.mounts)

    def remove_container(self, name: str) -> None:
        """The container and its snapshot; its task must be gone."""
        self.call(CONTAINERS, "Delete", id=name)
        self.call(SNAPSHOTS, "Remove", snapshotter=SNAPSHOTTER, key=name)


_TYPES = _classes()
