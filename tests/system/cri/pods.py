"""Pods on a booted host, over the CRI: containerd's config, CNI, and what a kubelet asks for."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import pytest

from sdshim.core import names
from tests.host import BUSYBOX, PAUSE, Host, roots
from tests.tools import cri
from tests.tools.remotecommand import RemoteCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tools.cri import Cri

PLUGINS = "/usr/lib/cni"


def _own_root() -> list[str]:
    """`self` too where it is as new and has CNI's plugins, as the emulated machine is and has."""
    if not Path(PLUGINS, "bridge").exists():
        return []
    new = roots.containerd_version(roots.by_name("self"), Path("/")) >= (1, 7)
    return ["self"] if new else []


MARKS = [
    pytest.mark.system,
    pytest.mark.cri,
    # The CRI of containerd 2.1 sets cpu shares although told not to: forky's v2 cannot have them.
    pytest.mark.roots("trixie", "mixed", *_own_root()),
]
"""Of every test here, unless it says else."""

NAMESPACE = "k8s.io"
SHIM = "/usr/local/bin/containerd-shim-systemd-v1"
BUNDLES = f"/run/containerd/io.containerd.runtime.v2.task/{NAMESPACE}"
SUBNET = "10.88.0"
LOGS = "/var/log/pods"
SLEEP = "sleep 1000 & wait"
GRACEFUL = "trap 'echo bye; exit 3' TERM; echo ready; sleep 1000 & wait"
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 1000 & wait; done"

# What the CRI needs of a containerd, by its version: 2.0 took the plugin apart.
_CONFIG_V2 = f"""\
version = 2
disabled_plugins = [DISABLED]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true  # lowering it is beyond what a host here may do
  disable_apparmor = true
  disable_cgroup = CGROUP
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{PLUGINS}"
"""
_CONFIG_V3 = f"""\
version = 3
disabled_plugins = [DISABLED]
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_cgroup = CGROUP
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{PLUGINS}"]
"""
# Two ways to name us: a runtime type of our own, and the stock type with our program. And options.
_HANDLERS = f"""\
[plugins."PLUGIN".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."PLUGIN".containerd.runtimes.systemd]
  runtime_type = "io.containerd.systemd.v1"
[plugins."PLUGIN".containerd.runtimes.as-runc]
  runtime_type = "io.containerd.runc.v2"
  runtime_path = "{SHIM}"
[plugins."PLUGIN".containerd.runtimes.as-runc.options]
  SystemdCgroup = true
[plugins."PLUGIN".containerd.runtimes.with-options]
  runtime_type = "io.containerd.systemd.v1"
[plugins."PLUGIN".containerd.runtimes.with-options.options]
  BinaryName = "crun"
[plugins."PLUGIN".containerd.runtimes.with-options.options.unit_properties]
  TimeoutStopSec = "17s"
"""
HANDLERS = ("systemd", "as-runc")
_BRIDGE = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": f"{SUBNET}.0/24"}]]},
        }
    ],
}
_UNUSED = ("nri.v1.nri", *(f"snapshotter.v1.{n}" for n in ("blockfile", "btrfs", "devmapper")))


def containerd_config(version: tuple[int, ...], *, limits: bool = True) -> str:
    """A containerd with the CRI, and sdshim as some of its runtime handlers. Without `limits` it
    asks for none: the CRI's cpu shares fail where cgroup2 has no controllers."""
    plugin = "io.containerd.cri.v1.runtime" if version >= (2,) else "io.containerd.grpc.v1.cri"
    text = (_CONFIG_V3 if version >= (2,) else _CONFIG_V2) + _HANDLERS.replace("PLUGIN", plugin)
    text = text.replace("CGROUP", "false" if limits else "true")
    return text.replace("DISABLED", ", ".join(f'"io.containerd.{name}"' for name in _UNUSED))


def prepare(host: Host) -> None:
    """A network for pods and the images where the CRI looks for them."""
    place = host.path("/etc/cni/net.d")
    place.mkdir(parents=True, exist_ok=True)
    (place / "10-bridge.conflist").write_text(json.dumps(_BRIDGE))
    host.import_images(NAMESPACE)


def ready(client: Cri) -> None:
    """Wait until containerd has found its containers again; the CRI has no event for that."""
    _until(lambda: _served(client), "the CRI")


def _served(client: Cri) -> bool:
    try:
        client("Status")
    except grpc.RpcError:
        return False
    return True


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + cri.SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {cri.SECONDS} s")
        time.sleep(0.02)


def cgroup_of(host: Host, pid: int, controller: str) -> str:
    """The cgroup of a process, on v1 in that hierarchy."""
    lines = host.run(["cat", f"/proc/{pid}/cgroup"]).stdout.splitlines()
    split = [line.split(":", 2) for line in lines]
    wanted = controller if host.cgroup == "v1" else ""
    return next(path for _, names, path in split if wanted in names.split(","))


def namespace(host: Host, pid: int, kind: str) -> str:
    """What `readlink /proc/PID/ns/KIND` says."""
    return str(host.path(f"/proc/{pid}/ns/{kind}").readlink())


@dataclass(slots=True)
class Container:
    """One container of a pod."""

    pod: Pod
    id: str
    log_name: str

    @property
    def unit(self) -> str:
        """The service that it is."""
        return names.init_unit(names.TaskKey(NAMESPACE, self.id))

    def call(self, method: str, **fields: Any) -> Any:
        """A call about this container."""
        return self.pod.cri(method, container_id=self.id, **fields)

    def status(self) -> Any:
        """ContainerStatus."""
        return self.call("ContainerStatus").status

    def pid(self) -> int:
        """Of its first process, as the host sees it."""
        answer = self.call("ContainerStatus", verbose=True)
        return int(json.loads(cri.as_dict(answer.info)["info"])["pid"])

    def exited(self) -> Any:
        """Its status once it has ended: asked again and again, as a kubelet's relist does."""
        _until(lambda: bool(self.status().state == cri.EXITED), f"exit of {self.id}")
        return self.status()

    def exec(self, *command: str, timeout: int = 0) -> tuple[int, str]:
        """(exit code, stdout) of a command."""
        answer = self.call("ExecSync", cmd=command, timeout=timeout)
        return answer.exit_code, answer.stdout.decode()

    @contextmanager
    def stream(self, method: str, **fields: Any) -> Iterator[RemoteCommand]:
        """Exec or Attach, connected."""
        url = self.call(method, stdout=True, stderr=not fields.get("tty"), **fields).url
        place = urlsplit(url)
        command = ["busybox", "nc", str(place.hostname), str(place.port)]
        pipe = subprocess.PIPE
        with self.pod.host.popen(command, stdin=pipe, stdout=pipe) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                yield RemoteCommand(url, process.stdout, process.stdin)
            finally:
                process.kill()

    def log(self) -> list[str]:
        """Lines of its log so far: `time stream tag text`."""
        path = self.pod.host.path(f"{self.pod.logs}/{self.log_name}")
        return path.read_text().splitlines() if path.exists() else []

    def logged(self, text: str) -> list[str]:
        """Its log once it has that text: containerd writes it while it reads the FIFO."""
        _until(lambda: any(text in line for line in self.log()), f"{text!r} in {self.log()}")
        return self.log()

    def namespaces(self, *kinds: str) -> list[str]:
        """Names of the namespaces that it is in."""
        return [namespace(self.pod.host, self.pid(), kind) for kind in kinds]


@dataclass(slots=True)
class Pod:
    """A pod sandbox that runs."""

    host: Host
    cri: Cri
    config: dict[str, Any]
    id: str
    containers: list[Container] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """The service of its sandbox's own container."""
        return names.init_unit(names.TaskKey(NAMESPACE, self.id))

    @property
    def logs(self) -> str:
        """Folder of its containers' logs."""
        return str(self.config["log_directory"])

    def create(
        self,
        name: str,
        script: str,
        *,
        attempt: int = 0,
        namespaces: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        **config: Any,
    ) -> Container:
        """A container of `sh -c script`, by default with the namespaces of its pod."""
        of_pod = self.config["linux"]["security_context"]["namespace_options"]
        security = {"namespace_options": {**of_pod, **(namespaces or {})}}
        made = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": BUSYBOX},
            "command": ["sh", "-c", script],
            "log_path": f"{name}-{attempt}.log",
            "linux": {"security_context": security, "resources": resources or {}},
            **config,
        }
        answer = self.cri(
            "CreateContainer", pod_sandbox_id=self.id, config=made, sandbox_config=self.config
        )
        container = Container(self, answer.container_id, made["log_path"])
        self.containers.append(container)
        return container

    def run(self, name: str, script: str, **more: Any) -> Container:
        """The same, started."""
        container = self.create(name, script, **more)
        container.call("StartContainer")
        return container

    def status(self) -> Any:
        """PodSandboxStatus."""
        return self.cri("PodSandboxStatus", pod_sandbox_id=self.id).status

    def ended(self) -> Any:
        """Its status once it is not ready any more."""
        _until(lambda: bool(self.status().state == cri.NOTREADY), f"end of {self.id}")
        return self.status()

    def stop(self) -> None:
        """StopPodSandbox."""
        self.cri("StopPodSandbox", pod_sandbox_id=self.id)

    def remove(self) -> None:
        """Stop it and have it forgotten."""
        self.stop()
        self.cri("RemovePodSandbox", pod_sandbox_id=self.id)


@dataclass(slots=True)
class Pods:
    """Makes pods, and removes them."""

    host: Host
    cri: Cri
    made: list[Pod] = field(default_factory=list)

    def run(self, handler: str = "systemd", *, parent: str = "", **namespaces: Any) -> Pod:
        """A pod; its containers have pid namespaces of their own unless `namespaces` says else."""
        name = f"pod-{len(self.made)}-{time.monotonic_ns()}"
        security = {"namespace_options": {"pid": cri.CONTAINER, **namespaces}}
        config = {
            "metadata": {"name": name, "uid": name, "namespace": "tests"},
            "hostname": "" if namespaces.get("network") == cri.NODE else "a-pod",
            "log_directory": f"{LOGS}/{name}",
            "linux": {"cgroup_parent": parent, "security_context": security},
        }
        answer = self.cri("RunPodSandbox", config=config, runtime_handler=handler)
        pod = Pod(self.host, self.cri, config, answer.pod_sandbox_id)
        self.made.append(pod)
        return pod

    def remove(self) -> None:
        """Whatever is left."""
        left = {item.id for item in self.cri("ListPodSandbox").items}
        for pod in self.made:
            if pod.id in left:
                pod.remove()
