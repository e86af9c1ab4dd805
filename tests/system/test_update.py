"""Update and limits at the start: the container's cgroup and its unit. Where the machine's cgroup
v2 has no controllers (tests/emulated has), its v2 hosts show that nothing is in the way."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.pb import task_types_pb2
from sdshim.pb.wellknown import RESOURCES_URL
from tests.system.limits import MIB, bound, cpu_weight
from tests.system.taskclient import Rig, eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = pytest.mark.system

UNKNOWN, INVALID = 2, 3
WEIGHT = {"v1": "512", "v2": "20"}
"""512 shares as systemd shows them."""
LIMITS = {
    "memory": {"limit": 64 * MIB},
    "pids": {"limit": 50},
    "cpu": {"quota": 50_000, "period": 100_000, "shares": 512},
}


def _any(resources: Any, prefix: str = "") -> AnyMessage:
    data = resources if isinstance(resources, bytes) else json.dumps(resources).encode()
    return AnyMessage(type_url=prefix + RESOURCES_URL, value=data)


def _shown(host: Host, id_: str) -> dict[str, str]:
    names = ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec")
    weight = "CPUWeight" if host.cgroup == "v2" else "CPUShares"
    argv = ["systemctl", "show", *(f"-p{name}" for name in (*names, weight))]
    lines = host.run([*argv, f"sdshim-default-{id_}.service"]).stdout.splitlines()
    shown = dict(line.split("=", 1) for line in lines)
    shown["weight"] = shown.pop(weight)
    return shown


def _limited(resources: Any, *command: str) -> dict[str, Any]:
    spec = spec_of(*(command or ("sleep", "1000")))
    spec["linux"]["resources"] = resources
    return spec


def _update(rig: Rig, id_: str, resources: Any, **more: Any) -> None:
    rig.call("Update", id=id_, resources=_any(resources), **more)


@pytest.mark.parametrize("state", ["created", "running", "paused"])
def test_update_changes_the_unit_and_the_cgroup(rig: Rig, host: Host, state: str) -> None:
    (rig.created if state == "created" else rig.running)("tuned")
    if state == "paused":
        rig.call("Pause", id="tuned")
    before = rig.call("State", id="tuned")
    wanted = LIMITS if host.controllers else {"pids": {}, "cpu": {}, "memory": {}}
    _update(rig, "tuned", wanted)
    assert rig.call("State", id="tuned") == before
    if not host.controllers:
        return
    shown = _shown(host, "tuned")
    assert shown["MemoryMax"] == str(64 * MIB)
    assert shown["TasksMax"] == "50"
    assert shown["CPUQuotaPerSecUSec"] == "500ms"
    assert shown["weight"] == WEIGHT[host.cgroup]
    for of in ("unit", "container"):
        assert bound(host, "tuned", "memory", of) == 64 * MIB
        assert bound(host, "tuned", "pids", of) == 50
        assert bound(host, "tuned", "cpu quota", of) == 50_000
        assert cpu_weight(host, "tuned", of) == WEIGHT[host.cgroup]


@pytest.mark.controllers
def test_limits_go_up_and_down(rig: Rig, host: Host) -> None:
    rig.running("moved", spec=_limited(LIMITS))
    for factor in (2, 4, 1, 3, 1):
        _update(
            rig,
            "moved",
            {
                "memory": {"limit": factor * 32 * MIB, "swap": -1},
                "pids": {"limit": factor * 10},
                "cpu": {"quota": factor * 10_000, "period": 100_000},
            },
        )
        for of in ("unit", "container"):
            assert bound(host, "moved", "memory", of) == factor * 32 * MIB
            assert bound(host, "moved", "pids", of) == factor * 10
            assert bound(host, "moved", "cpu quota", of) == factor * 10_000
    _update(rig, "moved", {"pids": {"limit": -1}, "cpu": {"quota": -1, "period": 100_000}})
    for of in ("unit", "container"):
        assert bound(host, "moved", "pids", of) is None
        assert bound(host, "moved", "cpu quota", of) is None


@pytest.mark.controllers
def test_an_update_that_the_runtime_refuses_leaves_the_unit_as_it_was(rig: Rig, host: Host) -> None:
    rig.running("firm", spec=_limited(LIMITS))
    before = _shown(host, "firm")
    wanted = {"memory": {"limit": 128 * MIB}, "cpu": {"cpus": "7000"}}
    code, text = rig.refused("Update", id="firm", resources=_any(wanted))
    assert code == UNKNOWN
    assert text.startswith("OCI runtime update failed: ")
    assert _shown(host, "firm") == before


@pytest.mark.controllers
def test_a_limit_of_memory_binds_after_an_update(rig: Rig, host: Host) -> None:
    script = "read x; dd if=/dev/zero of=/dev/null bs=48M count=1 2>/dev/null; echo $?"
    for limit, code in ((16, b"137"), (0, b"0")):
        bundle = rig.bundle(f"fed{limit}", "sh", "-c", script)
        paths: dict[str, Any] = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
        rig.call("Create", id=bundle.id, bundle=bundle.path, **paths)
        rig.call("Start", id=bundle.id)
        if limit:
            _update(rig, bundle.id, {"memory": {"limit": limit * MIB, "swap": limit * MIB}})
        (bundle.outside / "stdin").write_text("go\n")
        assert bundle.read("stdout").strip() == code
        rig.call("Wait", id=bundle.id)


def test_a_stopped_container_cannot_be_updated(rig: Rig) -> None:
    rig.stopped("over")
    error = rig.refused("Update", id="over", resources=_any({"pids": {"limit": 5}}))
    assert error == (UNKNOWN, "cannot update a stopped container")
    assert rig.call("State", id="over").status == task_types_pb2.STOPPED


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"memory": {"limit": "6m"}}'])
def test_malformed_resources_are_refused(rig: Rig, value: bytes) -> None:
    rig.running("same")
    code, _ = rig.refused("Update", id="same", resources=_any(value))
    assert code == INVALID
    code, _ = rig.refused("Update", id="same", resources=AnyMessage(type_url="x", value=b"{}"))
    assert code == INVALID
    assert rig.call("State", id="same").status == task_types_pb2.RUNNING


def test_the_prefix_of_foreign_clients_is_tolerated(rig: Rig) -> None:
    rig.running("foreign")
    rig.call("Update", id="foreign", resources=_any({}, "type.googleapis.com/"))


# --- limits at the start


def _has(host: Host, id_: str, limit: int, of: str) -> bool:
    return bound(host, id_, "memory", of) == limit


TIGHT = {
    "memory": {"limit": 6 * MIB},
    "pids": {"limit": 5},
    "cpu": {"quota": 1000, "period": 100_000},
}


@pytest.mark.controllers
@pytest.mark.parametrize("limits", [*TIGHT, "all"])
def test_tight_limits_hit_neither_the_runtime_nor_the_exit_hook(
    rig: Rig, host: Host, limits: str
) -> None:
    resources = TIGHT if limits == "all" else {limits: TIGHT[limits]}
    for number in range(3):
        id_ = f"tight{number}"
        rig.running(id_, spec=_limited(resources, "sh", "-c", "exit 7"))
        assert rig.call("Wait", id=id_).exit_status == 7
        assert rig.call("Delete", id=id_).exit_status == 7


@pytest.mark.controllers
def test_six_mebibytes_bind_in_container_and_unit(rig: Rig, host: Host) -> None:
    rig.running("six", spec=_limited({"memory": {"limit": 6 * MIB}}))
    for of in ("container", "unit"):
        eventually(partial(_has, host, "six", 6 * MIB, of), f"the {of} is limited")


@pytest.fixture
def ballast(host: Host) -> Iterator[str]:
    """The unit of the container `laden` uses 24 MiB more than the container: a file on /run that
    something in the unit wrote, and that the kernel cannot reclaim. Its path."""
    path = "/run/ballast"
    drop_ins = host.path("/run/systemd/system/sdshim-default-laden.service.d")
    drop_ins.mkdir()
    line = f"ExecStartPre=/bin/dd if=/dev/zero of={path} bs=1M count=24 status=none"
    (drop_ins / "ballast.conf").write_text(f"[Service]\n{line}\n")
    host.run(["systemctl", "daemon-reload"])
    yield path
    host.path(path).unlink(missing_ok=True)
    shutil.rmtree(drop_ins)
    host.run(["systemctl", "daemon-reload"])


@pytest.mark.controllers
@pytest.mark.parametrize("dies", [False, True], ids=["daemon stays", "daemon killed"])
def test_a_limit_below_what_the_unit_uses_waits_until_it_fits(
    rig: Rig, host: Host, ballast: str, dies: bool
) -> None:
    bundle = rig.created("laden", spec=_limited({"memory": {"limit": 16 * MIB}}))
    assert bound(host, "laden", "memory", "container") == 16 * MIB
    assert _shown(host, "laden")["MemoryMax"] == "infinity"
    rig.call("Start", id="laden")
    assert bound(host, "laden", "memory", "unit") is None
    if dies:
        host.run(["systemctl", "kill", "--signal=KILL", "sdshim.service"])
    host.path(ballast).unlink()
    limited = partial(_has, host, "laden", 16 * MIB, "unit")
    eventually(limited, "the unit is limited", timeout=60)  # also by a daemon on a slow machine
    assert _shown(host, "laden")["MemoryMax"] == str(16 * MIB)
    rig.call("Kill", id="laden", signal=9)
    assert rig.call("Wait", id="laden").exit_status == 137
    assert rig.events.of("laden").count("oom") == 0
    assert rig.give_up(bundle).exit_status == 137


@pytest.mark.controllers
def test_an_update_takes_the_place_of_a_limit_that_waits(
    rig: Rig, host: Host, ballast: str
) -> None:
    rig.running("laden", spec=_limited({"memory": {"limit": 16 * MIB}}))
    _update(rig, "laden", {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}})
    assert bound(host, "laden", "memory", "unit") == 64 * MIB
    host.path(ballast).unlink()
    _update(rig, "laden", {"pids": {"limit": 20}})
    assert bound(host, "laden", "pids", "unit") == 20
    assert bound(host, "laden", "memory", "unit") == 64 * MIB


@pytest.mark.controllers
def test_the_unit_has_the_limits_until_the_exit(rig: Rig, host: Host) -> None:
    rig.running("shown", spec=_limited(LIMITS))
    shown = _shown(host, "shown")
    assert (shown["MemoryMax"], shown["TasksMax"]) == (str(64 * MIB), "50")
    assert (shown["CPUQuotaPerSecUSec"], shown["weight"]) == ("500ms", WEIGHT[host.cgroup])
    rig.call("Kill", id="shown", signal=9)
    rig.call("Wait", id="shown")
    eventually(lambda: _shown(host, "shown")["MemoryMax"] == "infinity", "opened again")
    assert _shown(host, "shown")["TasksMax"] == "infinity"
    assert rig.call("Delete", id="shown").exit_status == 137


@pytest.mark.controllers
def test_a_container_with_five_processes_at_most(rig: Rig, host: Host) -> None:
    script = "for n in 1 2 3 4 5 6; do sleep 1000 & done; echo all"
    spec = _limited({"pids": {"limit": 5}}, "sh", "-c", script)
    bundle = rig.bundle("few", spec=spec)
    paths = {name: bundle.fifo(name) for name in ("stdout", "stderr")}
    rig.call("Create", id="few", bundle=bundle.path, **paths)
    rig.call("Start", id="few")
    assert rig.call("Wait", id="few").exit_status != 0
    assert b"fork" in bundle.read("stderr")
