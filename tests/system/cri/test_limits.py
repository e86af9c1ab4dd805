"""Limits of a pod's containers, their statistics, and the reason OOMKilled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.cri.pods import HANDLERS, MARKS, SLEEP, cgroup_of
from tests.tools import cri

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.cri.pods import Pods

pytestmark = [*MARKS, pytest.mark.controllers]
MEGABYTE = 1 << 20


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
    container = pods.run().run("c", SLEEP, resources=resources)
    where = cgroup_of(host, container.pid(), "memory")
    v1 = host.cgroup == "v1"
    file = f"memory{where}/memory.limit_in_bytes" if v1 else f"{where}/memory.max"

    def limits() -> tuple[int, str]:
        inside = host.path(f"/sys/fs/cgroup/{file}").read_text()
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


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_container_over_its_memory_limit_is_oom_killed(pods: Pods, handler: str) -> None:
    pod = pods.run(handler)
    resources = {"memory_limit_in_bytes": 16 * MEGABYTE}
    greedy = pod.run("greedy", "x=x; while :; do x=$x$x; done", resources=resources)
    ended = greedy.exited()
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert pod.status().state == cri.READY


def test_an_oom_kill_of_a_child_does_not_end_its_container(pods: Pods) -> None:
    resources = {"memory_limit_in_bytes": 16 * MEGABYTE}
    script = "sh -c 'x=x; while :; do x=$x$x; done'; echo child: $?; exit 0"
    container = pods.run().run("c", script, resources=resources)
    ended = container.exited()
    assert (ended.exit_code, ended.reason) == (0, "OOMKilled")  # of any kill in it, says the CRI
    assert container.logged("child: 137")
