"""Pods over the CRI, as the kubelet asks for them: containerd's CRI plugin with sdshim as a runtime
handler, CNI bridge networking, limits that hold (hybrid v1)."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.host import BUSYBOX, CannotBoot, Host
from tests.system import pods as kubelet
from tests.system.pods import HANDLERS, SUBNET, Pods, namespace, ready
from tests.tools import cri
from tests.tools.cri import Cri

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.cri, pytest.mark.roots("trixie", "mixed")]
pytestmark.append(pytest.mark.cgroup("v1"))

MEGABYTE = 1 << 20
LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] .*"
)
# A shell that is not the first of its pid namespace or has no handler: SIGTERM ends it.
SLEEP = "sleep 1000 & wait"
GRACEFUL = "trap 'echo bye; exit 3' TERM; echo ready; sleep 1000 & wait"
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 1000 & wait; done"


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host like the others, but with pods."""
    root, _, cgroup = request.param.partition("/")
    try:
        booted = Host(root, cgroup, containerd_config=kubelet.containerd_config)
        booted.__enter__()
    except CannotBoot as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no host: {error}")
    try:
        kubelet.prepare(booted)
        yield booted
    finally:
        booted.stop()


@pytest.fixture
def pods(host: Host) -> Iterator[Pods]:
    """Makes pods; they are gone after the test, their networks too."""
    with Cri(str(host.path("/run/containerd/containerd.sock"))) as client:
        ready(client)
        made = Pods(host, client)
        yield made
        made.remove()
        assert list(host.path("/run/netns").iterdir()) == []


@pytest.fixture
def kubepods(host: Host) -> Iterator[str]:
    """Cgroup of a pod as a kubelet with the systemd driver makes it: a slice. It ends after the
    pods in it: a test asks for it first."""
    name = "kubepods-burstable-podx.slice"
    host.run(["systemctl", "start", name])
    yield f"/kubepods.slice/kubepods-burstable.slice/{name}"
    host.run(["systemctl", "stop", "kubepods.slice"])


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_pod_of_two_containers_runs_logs_and_ends(pods: Pods, handler: str) -> None:
    pod = pods.run(handler)
    status = pod.status()
    assert (status.state, status.runtime_handler) == (cri.READY, handler)
    assert status.network.ip.startswith(SUBNET)
    first = pod.run("first", "echo one; echo two >&2; printf three; exit 7")
    second = pod.run("second", GRACEFUL)

    ended = first.exited()
    assert (ended.exit_code, ended.reason, ended.message) == (7, "Error", "")
    assert ended.created_at < ended.finished_at
    lines = first.logged("three")
    assert all(LOG_LINE.fullmatch(line) for line in lines), lines
    assert sorted(line.split(" ", 1)[1] for line in lines) == [
        "stderr F two",
        "stdout F one",
        "stdout P three",
    ]
    assert second.status().state == cri.RUNNING
    assert second.exec("sh", "-c", "hostname; exit 4") == (4, "a-pod\n")
    address = second.exec("ip", "-4", "-o", "address", "show", "eth0")[1].split()[3]
    assert address == f"{status.network.ip}/24"
    listed = pods.cri("ListContainers", filter={"pod_sandbox_id": pod.id}).containers
    assert {c.metadata.name: c.state for c in listed} == {
        "first": cri.EXITED,
        "second": cri.RUNNING,
    }

    second.call("StopContainer", timeout=60)
    ended = second.status()
    assert (ended.state, ended.exit_code) == (cri.EXITED, 3)
    assert second.logged("bye")[-1].endswith(" stdout F bye")
    pod.stop()
    assert pod.status().state == cri.NOTREADY


def test_each_container_of_a_pod_and_its_sandbox_is_a_unit(pods: Pods, host: Host) -> None:
    pod = pods.run()
    first, second = pod.run("first", SLEEP), pod.run("second", SLEEP)
    for container in (first, second):
        said = host.run(["systemctl", "status", container.unit]).stdout
        assert f"({BUSYBOX}, {pod.config['metadata']['name']}, " in said
    shown = host.run(["systemctl", "list-units", "--plain", "--no-legend", "sdshim-k8s.io-*"])
    running = [line.split()[0] for line in shown.stdout.splitlines() if ".service" in line]
    assert len(running) == 3 and {first.unit, second.unit} < set(running)


def test_an_exec_that_takes_too_long_is_killed_and_the_container_lives_on(pods: Pods) -> None:
    container = pods.run().run("c", SLEEP)
    with pytest.raises(grpc.RpcError) as caught:
        container.exec("sleep", "2000", timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "timeout 1s exceeded" in caught.value.details()
    assert container.exec("true", timeout=10) == (0, "")
    assert "sleep 2000" not in container.exec("ps", "-o", "args")[1]
    assert container.status().state == cri.RUNNING


def test_an_exec_of_a_missing_program_says_so(pods: Pods) -> None:
    container = pods.run().run("c", SLEEP)
    with pytest.raises(grpc.RpcError) as caught:
        container.exec("no-such-program")
    assert 'exec: "no-such-program": executable file not found in $PATH' in caught.value.details()
    assert container.exec("echo", "still here") == (0, "still here\n")


def test_a_missing_program_fails_the_start_of_a_container(pods: Pods) -> None:
    container = pods.run().create("c", "", command=["no-such-program"])
    with pytest.raises(grpc.RpcError) as caught:
        container.call("StartContainer")
    assert "executable file not found in $PATH" in caught.value.details()
    status = container.status()
    assert (status.state, status.exit_code, status.reason) == (cri.EXITED, 128, "StartError")


def test_stop_gives_a_container_its_time_and_then_kills_it(pods: Pods) -> None:
    pod = pods.run()
    graceful, stubborn = pod.run("graceful", GRACEFUL), pod.run("stubborn", STUBBORN)
    for container in (graceful, stubborn):
        container.logged("ready")
    graceful.call("StopContainer", timeout=60)
    assert graceful.status().exit_code == 3
    stubborn.call("StopContainer", timeout=1)
    assert (stubborn.status().exit_code, stubborn.status().reason) == (137, "Error")
    stubborn.call("StopContainer", timeout=1)  # what has stopped is stopped again in peace
    quick = pod.run("quick", STUBBORN)
    quick.call("StopContainer", timeout=0)
    assert quick.status().exit_code == 137


def test_a_stopped_pod_takes_what_still_runs_in_it_along(pods: Pods, host: Host) -> None:
    pod = pods.run()
    left = [pod.run("stubborn", STUBBORN), pod.run("plain", SLEEP), pod.create("never", SLEEP)]
    pod.stop()
    pod.stop()
    assert [c.status().state for c in left] == [cri.EXITED, cri.EXITED, cri.CREATED]
    shown = host.run(["systemctl", "list-units", "--plain", "--no-legend", "sdshim-k8s.io-*"])
    assert ".service" not in shown.stdout
    pod.remove()
    with pytest.raises(grpc.RpcError) as caught:
        left[0].status()
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_container_that_failed_is_made_again_in_the_same_pod(pods: Pods) -> None:
    pod = pods.run()
    first = pod.run("c", "echo first try; exit 1")
    assert first.exited().exit_code == 1
    second = pod.run("c", "echo second try; exit 0", attempt=1)
    ended = second.exited()
    assert (ended.metadata.attempt, ended.exit_code, ended.reason) == (1, 0, "Completed")
    first.call("RemoveContainer")
    assert first.logged("first try") and second.logged("second try")
    assert pod.status().state == cri.READY


def test_the_containers_of_a_pod_share_network_and_ipc_but_not_processes(pods: Pods) -> None:
    pod = pods.run()
    first, second = pod.run("first", "sleep 1111 & wait"), pod.run("second", SLEEP)
    shared = ("net", "ipc", "uts")
    assert first.namespaces(*shared) == second.namespaces(*shared)
    assert first.namespaces("net") != [namespace(pods.host, 1, "net")]
    own = zip(first.namespaces("mnt", "pid"), second.namespaces("mnt", "pid"), strict=True)
    assert all(one != other for one, other in own)
    seen = first.exec("ps", "-o", "args")[1]
    assert "sleep 1111" in seen and "sleep 1000" not in seen


def test_a_shared_pid_namespace_outlives_a_container_but_keeps_nothing_of_it(pods: Pods) -> None:
    pod = pods.run(pid=cri.POD)
    first = pod.run("first", "setsid sleep 1111 & setsid sleep 2222 & sleep 0.2; exit 5")
    second = pod.run("second", SLEEP)
    assert first.namespaces("pid") == second.namespaces("pid")
    assert first.exited().exit_code == 5
    seen = second.exec("ps", "-o", "args")[1]
    assert "1111" not in seen and "2222" not in seen and "sleep 1000" in seen
    second.call("StopContainer", timeout=5)
    assert second.status().exit_code == 143  # not the first process: SIGTERM ends it
    assert pod.status().state == cri.READY


def test_a_pod_can_use_the_hosts_network(pods: Pods, host: Host) -> None:
    pod = pods.run(network=cri.NODE)
    assert pod.status().network.ip == ""
    container = pod.run("c", SLEEP)
    assert container.exec("hostname")[1].strip() == host.path("/etc/hostname").read_text().strip()
    assert container.namespaces("net") == [namespace(host, 1, "net")]


def test_a_pods_slice_holds_its_containers_and_is_the_kubelets_to_end(
    host: Host, kubepods: str, pods: Pods
) -> None:
    """The kubelet's systemd cgroup driver: it makes a slice for the pod, with the pod's limits."""
    name = kubepods.rpartition("/")[2]
    pod = pods.run(parent=kubepods)
    container = pod.run("c", SLEEP)
    where = f"{kubepods}/{container.unit}/container"
    assert _cgroup(host, container.pid(), "memory") == where
    assert host.run(["systemctl", "show", "-P", "Slice", container.unit]).stdout == f"{name}\n"
    host.run(["systemctl", "set-property", "--runtime", name, "MemoryMax=100M"])
    limit = host.path(f"/sys/fs/cgroup/memory{kubepods}/memory.limit_in_bytes")
    assert int(limit.read_text()) == 100 * MEGABYTE
    assert container.exec("echo", "hello") == (0, "hello\n")
    pod.remove()
    assert host.run(["systemctl", "is-active", name]).stdout == "active\n"


def test_a_plain_cgroup_path_is_honoured_as_given(pods: Pods, host: Host) -> None:
    """The kubelet's cgroupfs driver."""
    pod = pods.run("as-runc", parent="/kubepods/podx")
    container = pod.run("c", GRACEFUL)
    container.logged("ready")
    where = f"/kubepods/podx/{container.id}"
    assert _cgroup(host, container.pid(), "memory") == where
    container.exec("true")
    assert container.call("ContainerStats").stats.memory.usage_bytes.value > 0
    container.call("StopContainer", timeout=60)
    assert container.status().exit_code == 3
    pod.remove()
    for tree in host.path("/sys/fs/cgroup").iterdir():
        left = tree / "kubepods/podx"
        if left.exists() and not tree.is_symlink():
            left.rmdir()  # empty: the kubelet's own
            left.parent.rmdir()


def _cgroup(host: Host, pid: int, controller: str) -> str:
    lines = host.run(["cat", f"/proc/{pid}/cgroup"]).stdout.splitlines()
    split = [line.split(":", 2) for line in lines]
    return next(path for _, names, path in split if controller in names.split(","))


def test_statistics_of_a_container_and_of_its_pod(kubepods: str, pods: Pods) -> None:
    pod = pods.run(parent=kubepods)
    container = pod.run(
        "c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo done; " + SLEEP
    )
    container.logged("done")
    stats = container.call("ContainerStats").stats
    assert stats.attributes.metadata.name == "c"
    assert stats.cpu.usage_core_nano_seconds.value > 10_000_000
    memory = stats.memory
    assert 0 < memory.rss_bytes.value <= memory.usage_bytes.value
    assert memory.working_set_bytes.value > 0 and memory.page_faults.value > 0
    whole = pods.cri("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux
    assert [c.attributes.id for c in whole.containers] == [container.id]
    assert whole.process.process_count.value == 2  # containerd leaves the pause container out


def test_limits_hold_and_can_be_changed(pods: Pods, host: Host) -> None:
    resources = {"memory_limit_in_bytes": 64 * MEGABYTE, "cpu_period": 100_000, "cpu_quota": 50_000}
    container = pods.run().run("c", SLEEP, linux={"resources": resources})
    where = _cgroup(host, container.pid(), "memory")

    def limits() -> tuple[int, str]:
        inside = host.path(f"/sys/fs/cgroup/memory{where}/memory.limit_in_bytes").read_text()
        unit = host.run(["systemctl", "show", "-P", "MemoryMax", container.unit]).stdout
        return int(inside), unit.strip()

    assert limits() == (64 * MEGABYTE, str(64 * MEGABYTE))
    said = container.status().resources.linux
    assert (said.memory_limit_in_bytes, said.cpu_quota) == (64 * MEGABYTE, 50_000)
    changed = {"memory_limit_in_bytes": 32 * MEGABYTE, "cpu_quota": 20_000}
    container.call("UpdateContainerResources", linux=changed)
    assert limits() == (32 * MEGABYTE, str(32 * MEGABYTE))
    assert host.run(
        ["systemctl", "show", "-P", "CPUQuotaPerSecUSec", container.unit]
    ).stdout.startswith("200ms")


def test_a_log_that_was_moved_away_is_opened_anew(pods: Pods, host: Host) -> None:
    container = pods.run().run(
        "c", "echo before; trap 'echo after' USR1; " + "while :; do sleep 0.05; done"
    )
    container.logged("before")
    log = host.path(f"{container.pod.logs}/{container.log_name}")
    log.rename(log.with_suffix(".old"))
    container.call("ReopenContainerLog")
    host.run(["systemctl", "kill", "--kill-whom=main", "-s", "USR1", container.unit])
    assert [line.split(" ", 1)[1] for line in container.logged("after")] == ["stdout F after"]
    assert len(log.with_suffix(".old").read_text().splitlines()) == 1


@pytest.mark.parametrize("handler", HANDLERS)
def test_pods_live_on_through_a_restart_of_containerd(pods: Pods, host: Host, handler: str) -> None:
    pod = pods.run(handler)
    running = pod.run("running", GRACEFUL)
    ended = pod.run("ended", "exit 7")
    dies = pod.run("dies", "while ! [ -e /tmp/now ]; do sleep 0.05; done; exit 9")
    created = pod.create("created", "exit 4")
    running.logged("ready")
    ended.exited()
    pid = running.pid()
    rootfs = host.path(f"/proc/{dies.pid()}/root")
    host.run(["systemctl", "stop", "containerd"])
    (rootfs / "tmp/now").touch()
    host.run(["systemctl", "start", "containerd"])
    ready(pods.cri)
    assert pod.status().state == cri.READY
    assert (running.status().state, running.pid()) == (cri.RUNNING, pid)
    assert ended.status().exit_code == 7
    assert dies.exited().exit_code == 9
    assert running.exec("echo", "hello") == (0, "hello\n")
    created.call("StartContainer")
    assert created.exited().exit_code == 4
    running.call("StopContainer", timeout=60)
    assert running.status().exit_code == 3
    assert running.logged("bye")  # its log was taken up again


def test_no_call_is_lost_when_the_daemon_is_killed(pods: Pods, host: Host) -> None:
    pod = pods.run()
    living = pod.run("living", GRACEFUL)
    living.logged("ready")
    slow = pods.cri.start("ExecSync", container_id=living.id, cmd=["sh", "-c", "sleep 1; exit 6"])
    starts = [pod.create(f"c{n}", f"exit {n}") for n in range(4)]
    calls = []
    for container in starts:
        calls.append(pods.cri.start("StartContainer", container_id=container.id))
        _kill_daemon(host)
    for call in calls:
        call.result()
    assert [container.exited().exit_code for container in starts] == [0, 1, 2, 3]
    assert slow.result().exit_code == 6
    assert living.exec("echo", "hello") == (0, "hello\n")
    _kill_daemon(host)
    living.call("StopContainer", timeout=60)
    assert living.status().exit_code == 3


def _kill_daemon(host: Host) -> None:
    host.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "sdshim.service"])
    host.run(["systemctl", "start", "sdshim.service"])


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


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_container_over_its_memory_limit_is_oom_killed(pods: Pods, handler: str) -> None:
    pod = pods.run(handler)
    resources = {"memory_limit_in_bytes": 16 * MEGABYTE}
    greedy = pod.run("greedy", "x=x; while :; do x=$x$x; done", linux={"resources": resources})
    ended = greedy.exited()
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert pod.status().state == cri.READY


def test_an_oom_kill_of_a_child_does_not_end_its_container(pods: Pods) -> None:
    resources = {"memory_limit_in_bytes": 16 * MEGABYTE}
    script = "sh -c 'x=x; while :; do x=$x$x; done'; echo child: $?; exit 0"
    container = pods.run().run("c", script, linux={"resources": resources})
    ended = container.exited()
    assert (ended.exit_code, ended.reason) == (0, "OOMKilled")  # of any kill in it, says the CRI
    assert container.logged("child: 137")
