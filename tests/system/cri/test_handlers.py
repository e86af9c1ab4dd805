"""What a runtime handler is told and tells: options, features, cgroup paths, shim version."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.system.cri import pods as kubelet
from tests.system.cri.pods import GRACEFUL, MARKS, SLEEP, cgroup_of, namespace
from tests.tools import cri

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.cri.pods import Pods

pytestmark = MARKS
MEGABYTE = 1 << 20


def test_a_handlers_options_choose_runtime_and_unit_properties(pods: Pods, host: Host) -> None:
    container = pods.run("with-options").run("c", GRACEFUL)
    container.logged("ready")
    shown = host.run(
        ["systemctl", "show", "-P", "ExecStart", "-P", "TimeoutStopUSec", container.unit]
    )
    assert re.search(r"-- \S*crun ", shown.stdout) and "17s" in shown.stdout.split()
    assert container.exec("echo", "hello") == (0, "hello\n")
    container.call("StopContainer", timeout=60)
    assert container.status().exit_code == 3


@pytest.mark.controllers
def test_a_pods_slice_holds_its_containers_and_is_the_kubelets_to_end(
    host: Host, kubepods: str, pods: Pods
) -> None:
    """The kubelet's systemd cgroup driver: it makes a slice for the pod, with the pod's limits."""
    name = kubepods.rpartition("/")[2]
    pod = pods.run(parent=kubepods)
    container = pod.run("c", SLEEP)
    where = f"{kubepods}/{container.unit}/container"
    assert cgroup_of(host, container.pid(), "memory") == where
    assert host.run(["systemctl", "show", "-P", "Slice", container.unit]).stdout == f"{name}\n"
    host.run(["systemctl", "set-property", "--runtime", name, "MemoryMax=100M"])
    v1 = host.cgroup == "v1"
    file = f"memory{kubepods}/memory.limit_in_bytes" if v1 else f"{kubepods}/memory.max"
    assert int(host.path(f"/sys/fs/cgroup/{file}").read_text()) == 100 * MEGABYTE
    assert container.exec("echo", "hello") == (0, "hello\n")
    pod.remove()
    assert host.run(["systemctl", "is-active", name]).stdout == "active\n"


@pytest.mark.controllers
def test_a_plain_cgroup_path_is_honoured_as_given(pods: Pods, host: Host) -> None:
    """The kubelet's cgroupfs driver."""
    pod = pods.run("as-runc", parent="/kubepods/podx")
    container = pod.run("c", GRACEFUL)
    container.logged("ready")
    where = f"/kubepods/podx/{container.id}"
    assert cgroup_of(host, container.pid(), "memory") == where
    container.exec("true")
    assert container.call("ContainerStats").stats.memory.usage_bytes.value > 0
    container.call("StopContainer", timeout=60)
    assert container.status().exit_code == 3
    pod.remove()
    top = host.path("/sys/fs/cgroup")
    for tree in (top, *(place for place in top.iterdir() if not place.is_symlink())):
        left = tree / "kubepods/podx"
        if left.exists():
            left.rmdir()  # empty: the kubelet's own
            left.parent.rmdir()


def test_containerd_2_learns_what_the_handler_can_do(pods: Pods, host: Host) -> None:
    status = pods.cri("Status")
    conditions = {c.type: c.status for c in status.status.conditions}
    assert conditions["RuntimeReady"] and conditions["NetworkReady"]
    if host.containerd_version < (2,):
        return
    handlers = {h.name: h.features for h in status.runtime_handlers}
    assert handlers["as-runc"].user_namespaces and handlers["as-runc"].recursive_read_only_mounts
    assert handlers["as-runc"] == handlers["runc"]
    assert not handlers["systemd"].user_namespaces  # containerd asks the stock type only


def test_each_container_of_a_pod_has_a_shim_of_its_own(pods: Pods, host: Host) -> None:
    """Version 2, also for a containerd that would take version 3 pod sandboxes."""
    container = pods.run().run("c", SLEEP)
    bundle = host.path(f"{kubelet.BUNDLES}/{container.id}")
    assert (bundle / "address").read_text() == "unix:///run/sdshim/s/k8s.io"
    if host.containerd_version >= (2,):
        answer = json.loads((bundle / "bootstrap.json").read_text())
        assert (answer["version"], answer["protocol"]) == (2, "ttrpc")


def test_a_pod_with_a_user_namespace(pods: Pods, host: Host) -> None:
    """containerd 2 maps the rootfs's owners at its mount and names the owner of the streams."""
    ids = [{"host_id": 100_000, "container_id": 0, "length": 65536}]
    pod = pods.run("as-runc", userns_options={"mode": cri.POD, "uids": ids, "gids": ids})
    container = pod.run("c", f"id -u; stat -c %u /bin/busybox; echo x >/tmp/x; echo end; {SLEEP}")
    assert [line.split(" ", 3)[3] for line in container.logged("end")] == ["0", "0", "end"]
    assert container.namespaces("user") != [namespace(host, 1, "user")]
    assert host.path(f"/proc/{container.pid()}").stat().st_uid == 100_000
    if host.containerd_version >= (2,):
        assert container.exec("sh", "-c", "echo hello >/dev/stdout") == (0, "hello\n")
        opened = pod.run("opens", "echo hello >/dev/stdout; exit 0")
        assert opened.exited().exit_code == 0
