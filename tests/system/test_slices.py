"""A pod is a slice: what names it, what it holds, what stops and binds it (design 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.client import Ctr, events
from tests.system.taskclient import Rig, eventually, exec_spec, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CRI = "io.kubernetes.cri.sandbox-"
WEB = {f"{CRI}id": "5ba0", f"{CRI}name": "web-7d9f", f"{CRI}namespace": "shop"}
WEB_SLICE = "sdshim-default-shop_web:7d9f.slice"


def _start(ctr: Ctr, task: str, notes: dict[str, str], *command: str) -> None:
    options = [word for pair in notes.items() for word in ("--annotation", "=".join(pair))]
    argv = command or ("sleep", "1000")
    ctr.run(task, *argv, options=["-d", *options], check=True)


def _slice(host: Host, task: str) -> str:
    unit = f"sdshim-default-{task}.service"
    return str(host.run(["systemctl", "show", "-P", "Slice", unit]).stdout.strip())


def _active(host: Host, name: str) -> bool:
    return bool(host.run(["systemctl", "is-active", name], check=False).returncode == 0)


@pytest.fixture
def pod(ctr: Ctr) -> Iterator[list[str]]:
    """Two containers of one pod."""
    names = ["front", "back"]
    for name in names:
        _start(ctr, name, WEB)
    yield names
    ctr.remove(*names)


def test_the_containers_of_a_pod_are_in_one_slice_below_the_namespaces(
    ctr: Ctr, host: Host, pod: list[str]
) -> None:
    assert [_slice(host, name) for name in pod] == [WEB_SLICE, WEB_SLICE]
    group = host.run(["systemctl", "show", "-P", "ControlGroup", WEB_SLICE]).stdout.strip()
    assert group == f"/sdshim.slice/sdshim-default.slice/{WEB_SLICE}"
    _start(ctr, "alone", {})
    assert _slice(host, "alone") == "sdshim-default.slice"
    ctr.remove("alone")


def test_stopping_a_pods_slice_stops_the_pod_and_containerd_hears_of_each_exit(
    ctr: Ctr, host: Host, pod: list[str]
) -> None:
    _start(ctr, "other", {**WEB, f"{CRI}name": "db-0"})
    with events(host) as seen:
        host.run(["systemctl", "kill", "--signal=KILL", WEB_SLICE])
        host.run(["systemctl", "stop", WEB_SLICE])
        for name in pod:
            seen.until(name, "exit")
    assert [seen.bodies("exit", name)[0]["exit_status"] for name in pod] == [137, 137]
    assert [ctr.status(name) for name in pod] == ["STOPPED", "STOPPED"]
    assert ctr.status("other") == "RUNNING"
    ctr.remove("other")


def test_the_tools_of_every_day_list_a_container_and_its_execs(rig: Rig, host: Host) -> None:
    rig.running("web", "sleep", "1111")
    rig.call("Exec", id="web", exec_id="x", spec=exec_spec("sleep", "2222"))
    rig.call("Start", id="web", exec_id="x")
    unit = "sdshim-default-web.service"
    cgls = ["systemd-cgls", "--no-pager", "--full"]
    for argv in (["systemctl", "status", unit], [*cgls, "-u", unit], [*cgls, "-u", "sdshim.slice"]):
        shown = host.run(argv).stdout
        assert "sleep 1111" in shown, argv
        assert "sleep 2222" in shown, argv
    top = host.run(["systemd-cgtop", "--batch", "--iterations=1", "--depth=9"]).stdout
    assert f"sdshim.slice/sdshim-default.slice/{unit}" in top


def test_a_path_of_the_systemd_cgroup_driver_names_the_slice(rig: Rig, host: Host) -> None:
    spec = spec_of("sleep", "1000")
    spec["linux"]["cgroupsPath"] = "mine-pod1.slice:cri:web"
    rig.running("web", spec=spec)
    unit = "sdshim-default-web.service"
    shown = host.run(["systemctl", "show", "-P", "ControlGroup", unit]).stdout.strip()
    assert shown == f"/mine.slice/mine-pod1.slice/{unit}"
    pid = rig.call("State", id="web").pid
    assert f":{shown}/container\n" in host.run(["cat", f"/proc/{pid}/cgroup"]).stdout
    rig.call("Kill", id="web", signal=9)
    rig.call("Wait", id="web")
    rig.call("Delete", id="web")
    # It is whoever's who has named it: not ours to end.
    assert host.run(["systemctl", "is-active", "mine-pod1.slice"], check=False).stdout == "active\n"
    host.run(["systemctl", "stop", "mine.slice", "mine-pod1.slice"])


def test_a_pods_slice_goes_with_its_last_container(ctr: Ctr, host: Host, pod: list[str]) -> None:
    ctr.remove("front")
    assert _active(host, WEB_SLICE)
    ctr.remove("back")
    eventually(lambda: not _active(host, WEB_SLICE), "the slice has gone")
    _start(ctr, "front", WEB)  # and is made again
    assert _slice(host, "front") == WEB_SLICE


def test_execs_are_in_the_slice_of_their_pod(rig: Rig, host: Host) -> None:
    rig.running("front", spec={**spec_of("sleep", "1000"), "annotations": WEB})
    rig.call("Exec", id="front", exec_id="extra", spec=exec_spec("sleep", "500"))
    rig.call("Start", id="front", exec_id="extra")
    assert _slice(host, "front:extra") == WEB_SLICE


@pytest.mark.controllers
def test_a_limit_of_the_slice_binds_all_in_it(ctr: Ctr, host: Host, pod: list[str]) -> None:
    host.run(["systemctl", "set-property", "--runtime", WEB_SLICE, "TasksMax=6"])
    try:
        script = "for n in 1 2 3 4 5 6 7 8; do sleep 5 & done"
        done = ctr.call(
            "task", "exec", "--exec-id", "many", pod[1], "sh", "-c", script, check=False
        )
        assert done.returncode != 0
        assert "fork" in done.stderr or "temporarily unavailable" in done.stderr
    finally:
        host.run(["systemctl", "revert", WEB_SLICE])


@pytest.mark.parametrize(
    ("notes", "wanted"),
    [
        ({f"{CRI}id": "0f3a"}, "sdshim-default-0f3a.slice"),
        ({**WEB, "io.sdshim.pod": "mine"}, "sdshim-default-mine.slice"),
        (
            {"io.sdshim.pod": "a b/ü:%n$x-"},
            r"sdshim-default-a\x20b\x2f\xc3\xbc\x3a\x25n\x24x:.slice",
        ),
    ],
    ids=["by id", "ours", "odd"],
)
def test_a_pod_may_be_named_by_its_id_or_by_an_annotation_of_ours(
    ctr: Ctr, host: Host, notes: dict[str, str], wanted: str
) -> None:
    _start(ctr, "lone", notes, "sh", "-c", "exit 3")
    ctr.await_status("lone", "STOPPED")
    host.run(["systemctl", "daemon-reload"])
    assert _slice(host, "lone") == wanted
    assert ctr.delete("lone") == 3
    ctr.remove("lone")
