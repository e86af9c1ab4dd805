"""Pods over the CRI, as the kubelet asks for them: their containers' lives, namespaces, cgroups."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.host import BUSYBOX
from tests.system.cri.pods import (
    GRACEFUL,
    HANDLERS,
    MARKS,
    SLEEP,
    STUBBORN,
    SUBNET,
    namespace,
)
from tests.tools import cri

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.cri.pods import Pods

pytestmark = MARKS
LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] .*"
)


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
    left = "setsid sleep 1111 & setsid sleep 2222 &"
    first = pod.run("first", f"{left} while ! [ -e /tmp/end ]; do sleep 0.05; done; exit 5")
    second = pod.run("second", SLEEP)
    assert first.namespaces("pid") == second.namespaces("pid")
    assert "sleep 2222" in second.exec("ps", "-o", "args")[1]
    first.exec("touch", "/tmp/end")
    assert first.exited().exit_code == 5
    seen = second.exec("ps", "-o", "args")[1]
    assert "1111" not in seen and "2222" not in seen and "sleep 1000" in seen
    second.call("StopContainer", timeout=5)
    assert second.status().exit_code == 143  # not the first process: SIGTERM ends it
    assert pod.status().state == cri.READY


def test_a_container_that_joins_the_processes_of_another_ends_with_it(pods: Pods) -> None:
    """What `kubectl debug` asks for."""
    pod = pods.run()
    target = pod.run("target", "sleep 1111 & wait")
    joined = {"pid": cri.TARGET, "target_id": target.id}
    debugger = pod.run("debugger", SLEEP, namespaces=joined)
    assert debugger.namespaces("pid") == target.namespaces("pid")
    seen = debugger.exec("ps", "-o", "args")[1]
    assert "sleep 1111" in seen and "sleep 1000" in seen
    target.call("StopContainer", timeout=0)
    assert debugger.exited().exit_code == 137


@pytest.mark.roots("self", "trixie", "mixed")  # needs no CNI plugins
def test_a_pod_can_use_the_hosts_network(pods: Pods, host: Host) -> None:
    pod = pods.run(network=cri.NODE)
    assert pod.status().network.ip == ""
    container = pod.run("c", GRACEFUL)
    assert container.logged("ready")
    assert container.exec("hostname")[1].strip() == host.path("/etc/hostname").read_text().strip()
    assert container.namespaces("net") == [namespace(host, 1, "net")]
    container.call("StopContainer", timeout=60)
    assert container.status().exit_code == 3


def test_systemctl_stop_ends_a_container_and_a_pod(pods: Pods, host: Host) -> None:
    pod = pods.run()
    container, other = pod.run("c", GRACEFUL), pod.run("other", SLEEP)
    container.logged("ready")
    host.run(["systemctl", "stop", container.unit])
    ended = container.exited()
    assert (ended.exit_code, ended.reason) == (3, "Error")
    again = pod.run("c", SLEEP, attempt=1)
    assert again.exec("echo", "hello") == (0, "hello\n")
    host.run(["systemctl", "stop", pod.unit])
    assert pod.ended().state == cri.NOTREADY
    assert other.status().state == cri.RUNNING  # the kubelet's to stop
