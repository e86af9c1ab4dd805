"""A small client of the CRI (runtime.v1 of k8s.io/cri-api), as the kubelet would call it.

    with Cri(str(host.path("/run/containerd/containerd.sock"))) as cri:
        pod = cri("RunPodSandbox", config=config, runtime_handler="systemd").pod_sandbox_id

Fields are the API's, numbers too. Enums are plain numbers (the constants below). Maps are given and
read with `labels()` and `as_dict()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.tools.grpcclient import GrpcClient, messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RUNTIME = "runtime.v1.RuntimeService"
SECONDS = 120.0
"""For any call, as the kubelet has a limit too; also on an emulated machine (tests/emulated)."""

READY, NOTREADY = range(2)  # PodSandboxState
CREATED, RUNNING, EXITED, UNKNOWN = range(4)  # ContainerState
POD, CONTAINER, NODE, TARGET = range(4)  # NamespaceMode

MESSAGES = {
    "Empty": "",
    "Label": "1 key str, 2 value str",
    "Number": "1 value u64",
    "StatusRequest": "1 verbose bool",
    "Condition": "1 type str, 2 status bool, 3 reason str, 4 message str",
    "Conditions": "1 conditions *Condition",
    "HandlerFeatures": "1 recursive_read_only_mounts bool, 2 user_namespaces bool",
    "Handler": "1 name str, 2 features HandlerFeatures",
    "StatusResponse": "1 status Conditions, 2 info *Label, 3 runtime_handlers *Handler",
    # pods
    "IDMapping": "1 host_id u32, 2 container_id u32, 3 length u32",
    "UserNamespace": "1 mode i32, 2 uids *IDMapping, 3 gids *IDMapping",
    "NamespaceOption": "1 network i32, 2 pid i32, 3 ipc i32, 4 target_id str, "
    "5 userns_options UserNamespace",
    "SandboxSecurity": "1 namespace_options NamespaceOption",
    "LinuxSandbox": "1 cgroup_parent str, 2 security_context SandboxSecurity",
    "SandboxMetadata": "1 name str, 2 uid str, 3 namespace str, 4 attempt u32",
    "SandboxConfig": "1 metadata SandboxMetadata, 2 hostname str, 3 log_directory str, "
    "6 labels *Label, 7 annotations *Label, 8 linux LinuxSandbox",
    "RunSandbox": "1 config SandboxConfig, 2 runtime_handler str",
    "SandboxId": "1 pod_sandbox_id str",
    "SandboxNetwork": "1 ip str",
    "SandboxStatus": "1 id str, 2 metadata SandboxMetadata, 3 state i32, 4 created_at i64, "
    "5 network SandboxNetwork, 7 labels *Label, 9 runtime_handler str",
    "SandboxStatusRequest": "1 pod_sandbox_id str, 2 verbose bool",
    "SandboxStatusResponse": "1 status SandboxStatus, 2 info *Label",
    "ListSandboxes": "",
    "Sandbox": "1 id str, 2 metadata SandboxMetadata, 3 state i32",
    "Sandboxes": "1 items *Sandbox",
    # containers
    "ImageSpec": "1 image str",
    "Resources": "1 cpu_period i64, 2 cpu_quota i64, 3 cpu_shares i64, "
    "4 memory_limit_in_bytes i64, 5 oom_score_adj i64",
    "Security": "3 namespace_options NamespaceOption, 5 run_as_user Number",
    "LinuxContainer": "1 resources Resources, 2 security_context Security",
    "Mount": "1 container_path str, 2 host_path str, 3 readonly bool",
    "Metadata": "1 name str, 2 attempt u32",
    "ContainerConfig": "1 metadata Metadata, 2 image ImageSpec, 3 command *str, 4 args *str, "
    "6 envs *Label, 7 mounts *Mount, 9 labels *Label, 11 log_path str, 12 stdin bool, 14 tty bool, "
    "15 linux LinuxContainer",
    "CreateContainer": "1 pod_sandbox_id str, 2 config ContainerConfig, "
    "3 sandbox_config SandboxConfig",
    "ContainerId": "1 container_id str",
    "StopContainer": "1 container_id str, 2 timeout i64",
    "ContainerFilter": "1 id str, 3 pod_sandbox_id str",
    "ListContainers": "1 filter ContainerFilter",
    "Container": "1 id str, 2 pod_sandbox_id str, 3 metadata Metadata, 6 state i32",
    "Containers": "1 containers *Container",
    "ContainerResources": "1 linux Resources",
    "ContainerStatus": "1 id str, 2 metadata Metadata, 3 state i32, 4 created_at i64, "
    "5 started_at i64, 6 finished_at i64, 7 exit_code i32, 10 reason str, 11 message str, "
    "15 log_path str, 16 resources ContainerResources",
    "ContainerStatusRequest": "1 container_id str, 2 verbose bool",
    "ContainerStatusResponse": "1 status ContainerStatus, 2 info *Label",
    "UpdateResources": "1 container_id str, 2 linux Resources",
    # exec
    "ExecSyncRequest": "1 container_id str, 2 cmd *str, 3 timeout i64",
    "ExecSyncResponse": "1 stdout bytes, 2 stderr bytes, 3 exit_code i32",
    "Exec": "1 container_id str, 2 cmd *str, 3 tty bool, 4 stdin bool, 5 stdout bool, "
    "6 stderr bool",
    "Attach": "1 container_id str, 2 stdin bool, 3 tty bool, 4 stdout bool, 5 stderr bool",
    "Streaming": "1 url str",
    # numbers
    "CpuUsage": "1 timestamp i64, 2 usage_core_nano_seconds Number",
    "MemoryUsage": "1 timestamp i64, 2 working_set_bytes Number, 4 usage_bytes Number, "
    "5 rss_bytes Number, 6 page_faults Number",
    "Attributes": "1 id str, 2 metadata Metadata",
    "ContainerStats": "1 attributes Attributes, 2 cpu CpuUsage, 3 memory MemoryUsage",
    "ContainerStatsResponse": "1 stats ContainerStats",
    "ProcessUsage": "1 timestamp i64, 2 process_count Number",
    "LinuxSandboxStats": "1 cpu CpuUsage, 2 memory MemoryUsage, 4 process ProcessUsage, "
    "5 containers *ContainerStats",
    "SandboxStats": "2 linux LinuxSandboxStats",
    "SandboxStatsResponse": "1 stats SandboxStats",
}

METHODS = {
    "Status": ("StatusRequest", "StatusResponse"),
    "RunPodSandbox": ("RunSandbox", "SandboxId"),
    "StopPodSandbox": ("SandboxId", "Empty"),
    "RemovePodSandbox": ("SandboxId", "Empty"),
    "PodSandboxStatus": ("SandboxStatusRequest", "SandboxStatusResponse"),
    "PodSandboxStats": ("SandboxId", "SandboxStatsResponse"),
    "ListPodSandbox": ("ListSandboxes", "Sandboxes"),
    "CreateContainer": ("CreateContainer", "ContainerId"),
    "StartContainer": ("ContainerId", "Empty"),
    "StopContainer": ("StopContainer", "Empty"),
    "RemoveContainer": ("ContainerId", "Empty"),
    "ListContainers": ("ListContainers", "Containers"),
    "ContainerStatus": ("ContainerStatusRequest", "ContainerStatusResponse"),
    "ContainerStats": ("ContainerId", "ContainerStatsResponse"),
    "UpdateContainerResources": ("UpdateResources", "Empty"),
    "ReopenContainerLog": ("ContainerId", "Empty"),
    "ExecSync": ("ExecSyncRequest", "ExecSyncResponse"),
    "Exec": ("Exec", "Streaming"),
    "Attach": ("Attach", "Streaming"),
}

_TYPES = messages("sdshim.tests.cri", MESSAGES)


class Cri(GrpcClient):
    """A connection to the CRI of one containerd."""

    def __init__(self, socket: str) -> None:
        super().__init__(socket, _TYPES, {RUNTIME: METHODS})

    def __call__(self, method: str, **fields: Any) -> Any:
        """One call of the RuntimeService to its end. Raises grpc.RpcError."""
        return self.start(method, **fields).result()

    def start(self, method: str, **fields: Any) -> Any:
        """One call under way: a grpc future."""
        return self.send(RUNTIME, method, fields, SECONDS)


def labels(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    """A map field, as a request takes it."""
    return [{"key": key, "value": value} for key, value in pairs.items()]


def as_dict(entries: Iterable[Any]) -> dict[str, str]:
    """A map field of an answer."""
    return {entry.key: entry.value for entry in entries}
