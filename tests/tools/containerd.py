"""A small client of containerd's own API: containers, snapshots, tasks, events over gRPC.

    with Containerd(str(host.path("/run/containerd/containerd.sock"))) as client:
        client.create_container("c1", RUNTIME, spec, client.parent_of("template"))
        with client.events() as events:
            client.call(TASKS, "Create", container_id="c1", rootfs=mounts)
            events.until("c1", "create")

A `ctr` process costs tens of ms, this a fraction of one. The tables (grpcclient.py) have the fields
we use, with containerd's numbers.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2

from sdshim.pb import events_pb2
from tests.tools.events import Mailbox
from tests.tools.grpcclient import GrpcClient, messages

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINERS = "containerd.services.containers.v1.Containers"
SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"
TASKS = "containerd.services.tasks.v1.Tasks"
EVENTS = "containerd.services.events.v1.Events"
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
SNAPSHOTTER = "overlayfs"

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
    "Descriptor": "1 media_type str, 2 digest str, 3 size i64",
    "CreateTask": "1 container_id str, 3 rootfs *Mount, 4 stdin str, 5 stdout str, 6 stderr str, "
    "7 terminal bool, 8 checkpoint Descriptor, 9 options Any",
    "Created": "1 container_id str, 2 pid u32",
    "Process": "1 container_id str, 2 exec_id str",
    "Started": "1 pid u32",
    "Task": "1 container_id str",
    "Deleted": "1 id str, 2 pid u32, 3 exit_status u32, 4 exited_at Timestamp",
    "Kill": "1 container_id str, 2 exec_id str, 3 signal u32, 4 all bool",
    "Exited": "1 exit_status u32, 2 exited_at Timestamp",
    "State": "1 container_id str, 2 id str, 3 pid u32, 4 status u32, 5 stdin str, 6 stdout str, "
    "7 stderr str, 8 terminal bool, 9 exit_status u32, 10 exited_at Timestamp",
    "Got": "1 process State",
    "Filter": "1 filter str",
    "States": "1 tasks *State",
    "Exec": "1 container_id str, 2 stdin str, 3 stdout str, 4 stderr str, 5 terminal bool, "
    "6 spec Any, 7 exec_id str",
    "Resize": "1 container_id str, 2 exec_id str, 3 width u32, 4 height u32",
    "CloseIO": "1 container_id str, 2 exec_id str, 3 stdin bool",
    "ProcessInfo": "1 pid u32, 2 info Any",
    "Pids": "1 processes *ProcessInfo",
    "Checkpoint": "1 container_id str, 2 parent_checkpoint str, 3 options Any",
    "Checkpointed": "1 descriptors *Descriptor",
    "Update": "1 container_id str, 2 resources Any",
    "Filters": "1 filters *str",
    "Metric": "1 timestamp Timestamp, 2 id str, 3 data Any",
    "Metrics": "1 metrics *Metric",
    "Publish": "1 topic str, 2 event Any",
    "Envelope": "1 timestamp Timestamp, 2 namespace str, 3 topic str, 4 event Any",
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
        "List": ("Filter", "States"),
        "Kill": ("Kill", "Empty"),
        "Exec": ("Exec", "Empty"),
        "ResizePty": ("Resize", "Empty"),
        "CloseIO": ("CloseIO", "Empty"),
        "Pause": ("Task", "Empty"),
        "Resume": ("Task", "Empty"),
        "ListPids": ("Task", "Pids"),
        "Checkpoint": ("Checkpoint", "Checkpointed"),
        "Update": ("Update", "Empty"),
        "Metrics": ("Filters", "Metrics"),
        "Wait": ("Process", "Exited"),
    },
    EVENTS: {
        "Publish": ("Publish", "Empty"),
        "Subscribe": ("Filters", "Envelope"),
    },
}


_TYPES = messages("sdshim.tests.containerd", MESSAGES)


class Containerd(GrpcClient):
    """A connection to one containerd, in one of its namespaces."""

    def __init__(self, socket: str, namespace: str = "default") -> None:
        super().__init__(socket, _TYPES, METHODS, (("containerd-namespace", namespace),))

    @contextmanager
    def events(self) -> Iterator[Mailbox]:
        """Everybody's task events from before the block's first statement."""
        box = Mailbox()
        call = self.stream(EVENTS, "Subscribe", filters=['topic~="^/(tasks|tests)/"'])

        def read() -> None:
            with suppress(grpc.RpcError):  # the end: cancelled
                for envelope in call:
                    box.take(envelope)

        reader = threading.Thread(target=read, name="events")
        reader.start()
        try:
            self._subscribed(box)
            yield box
        finally:
            call.cancel()
            reader.join()

    def _subscribed(self, box: Mailbox) -> None:
        """containerd does not say when it has subscribed: an event of our own is the sign."""
        probe = {"container_id": f"probe-{time.monotonic_ns()}"}
        event = any_pb2.Any(
            type_url="containerd.events.TaskPaused",
            value=events_pb2.TaskPaused(**probe).SerializeToString(),
        )
        for _ in range(100):
            self.call(EVENTS, "Publish", topic="/tests/probe", event=event)
            if box.has(probe["container_id"], timeout=0.1):
                return
        raise AssertionError("containerd sends no events")

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

    def remove_container(self, name: str, *, again: bool = False) -> None:
        """The container and its snapshot; its task must be gone. `again`: they may be gone too."""
        steps = (
            partial(self.call, CONTAINERS, "Delete", id=name),
            partial(self.call, SNAPSHOTS, "Remove", snapshotter=SNAPSHOTTER, key=name),
        )
        for step in steps:
            try:
                step()
            except grpc.RpcError as error:
                if not again or error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
