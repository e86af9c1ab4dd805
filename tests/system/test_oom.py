"""OOM kills: /tasks/oom before the exit it caused, told once, and the word in record and unit.

Where cgroup v2 has no memory controller (most machines these tests run on bind it to v1), its
counter is watched by what else a cgroup counts and tells in the same way.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.host import oom
from sdshim.pb import metrics_v1_pb2, metrics_v2_pb2
from sdshim.pb.wellknown import PROCESS_URL
from tests.system.limits import MIB, folder
from tests.system.taskclient import Bundle, Rig, dead_daemon, eventually, spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host import Host

pytestmark = pytest.mark.system

KILLED = 137
HOG = "tail /dev/zero"
"""Takes memory until it is stopped."""


def _limited(script: str, memory: int = 16 * MIB) -> dict[str, Any]:
    spec = spec_of("sh", "-c", script)
    spec["linux"]["resources"] = {"memory": {"limit": memory}}
    return spec


def _talking(rig: Rig, id_: str, script: str, **more: Any) -> Bundle:
    """A running container that reads lines and writes some."""
    bundle = rig.bundle(id_, spec=_limited(script, **more))
    paths = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id=id_, bundle=bundle.path, **paths)
    rig.call("Start", id=id_)
    return bundle


def _say(bundle: Bundle) -> None:
    (bundle.outside / "stdin").write_text("go\n")


def _show(host: Host, id_: str, name: str) -> str:
    argv = ["systemctl", "show", "-P", name, f"sdshim-default-{id_}.service"]
    return str(host.run(argv).stdout).strip()


def _record(host: Host, id_: str) -> dict[str, Any]:
    found = list(host.path(f"/run/sdshim/t/default/{id_}").glob("*/task.json"))
    assert len(found) == 1
    return dict(json.loads(found[0].read_bytes()))


def _whole(file: Path) -> bool:
    return file.exists() and file.read_text().endswith("\n")


def _kills(rig: Rig, host: Host, id_: str) -> int:
    data = rig.call("Stats", id=id_).stats.value
    if host.cgroup == "v1":
        return int(metrics_v1_pb2.Metrics.FromString(data).memory_oom_control.oom_kill)
    return int(metrics_v2_pb2.Metrics.FromString(data).memory_events.oom_kill)


def _await_oom(rig: Rig, host: Host, id_: str, count: int) -> None:
    eventually(lambda: rig.events.of(id_).count("oom") == count, "it is told")
    text = f"{count} so far"
    eventually(lambda: text in _show(host, id_, "StatusText"), "the unit's status says so")


@pytest.mark.controllers
def test_the_oom_kill_of_init_is_told_before_its_exit(rig: Rig, host: Host) -> None:
    rig.running("hungry", spec=_limited(f"exec {HOG}"))
    assert rig.call("Wait", id="hungry").exit_status == KILLED
    rig.events.until("hungry", "exit")
    assert rig.events.of("hungry") == ["create", "start", "oom", "exit"]
    assert _record(host, "hungry")["exit"]["reason"] == "oom-kill"
    eventually(lambda: "OOM" in _show(host, "hungry", "StatusText"), "the status text says OOM")
    assert _kills(rig, host, "hungry") == 1
    eventually(lambda: _show(host, "hungry", "ActiveState") == "failed", "the unit has ended")
    assert "OOM" in host.run(["systemctl", "status", "sdshim-default-hungry"], check=False).stdout
    assert _kills(rig, host, "hungry") == 1
    rig.call("Delete", id="hungry")
    rig.events.until("hungry", "delete")
    assert rig.events.of("hungry") == ["create", "start", "oom", "exit", "delete"]


@pytest.mark.controllers
def test_the_oom_kill_of_a_child_does_not_end_the_container(rig: Rig, host: Host) -> None:
    bundle = _talking(rig, "parent", f"while read x; do {HOG}; echo $?; done; exit 7")
    for count in (1, 2, 3):
        _say(bundle)
        assert bundle.read_line("stdout").strip() == b"137"
        _await_oom(rig, host, "parent", count)
    assert _show(host, "parent", "ActiveState") == "active"
    assert _kills(rig, host, "parent") == 3
    rig.call("CloseIO", id="parent", stdin=True)
    assert rig.call("Wait", id="parent").exit_status == 7
    rig.events.until("parent", "exit")
    assert rig.events.of("parent") == ["create", "start", "oom", "oom", "oom", "exit"]
    assert _record(host, "parent")["exit"]["reason"] != "oom-kill"


@pytest.mark.controllers
def test_an_exec_that_is_killed_is_told_before_its_exit(rig: Rig, host: Host) -> None:
    rig.running("room", spec=_limited("sleep 1000"))
    process = {**spec_of("sh", "-c", f"exec {HOG}")["process"]}
    spec = AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode())
    rig.call("Exec", id="room", exec_id="guest", spec=spec)
    rig.call("Start", id="room", exec_id="guest")
    assert rig.call("Wait", id="room", exec_id="guest").exit_status == KILLED
    rig.events.until("room", "exit")
    told = ["create", "start", "exec-added", "exec-started", "oom", "exit"]
    assert rig.events.of("room") == told
    assert _show(host, "room", "ActiveState") == "active"
    found = host.path("/run/sdshim/t/default/room").glob("*/x/guest/*/task.json")
    assert json.loads(next(found).read_bytes())["exit"]["reason"] == "oom-kill"
    rig.call("Kill", id="room", signal=9)
    assert rig.call("Wait", id="room").exit_status == KILLED


@pytest.mark.controllers
@pytest.mark.parametrize("everyone", [False, True], ids=["init", "all"])
def test_a_clients_sigkill_after_an_oom_kill_is_no_oom_kill(
    rig: Rig, host: Host, everyone: bool
) -> None:
    bundle = _talking(rig, "ended", f"while read x; do {HOG}; echo $?; done")
    _say(bundle)
    assert bundle.read_line("stdout").strip() == b"137"
    rig.events.until("ended", "oom")
    rig.call("Kill", id="ended", signal=9, all=everyone)
    assert rig.call("Wait", id="ended").exit_status == KILLED
    rig.events.until("ended", "exit")
    assert rig.events.of("ended") == ["create", "start", "oom", "exit"]
    assert _record(host, "ended")["exit"]["reason"] != "oom-kill"
    hook = next(host.path("/run/sdshim/t/default/ended").glob("*")) / "exit"
    eventually(partial(_whole, hook), "the exit hook has written its line")
    assert hook.read_text().split()[2:] == ["signal", "killed", "KILL"]


@pytest.mark.controllers
@pytest.mark.cgroup("v1")  # v2 counts them by itself
def test_a_kill_in_a_cgroup_that_the_container_made_is_told(rig: Rig, host: Host) -> None:
    spec = _limited(
        "mkdir /mem/inner && cd /mem/inner && while read x; do"
        f" sh -c 'echo 0 >/mem/inner/cgroup.procs; exec {HOG}'; echo $?; done"
    )
    options = ["bind", "rw"]
    cgroup = (
        "/sys/fs/cgroup/memory/sdshim.slice/sdshim-default.slice/"
        "sdshim-default-nest.service/container"
    )
    spec["mounts"].append(
        {"destination": "/mem", "type": "bind", "source": cgroup, "options": options}
    )
    bundle = rig.bundle("nest", spec=spec)
    paths = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id="nest", bundle=bundle.path, **paths)
    rig.call("Start", id="nest")
    _say(bundle)
    assert bundle.read_line("stdout").strip() == b"137"
    rig.events.until("nest", "oom")
    rig.call("Kill", id="nest", signal=9)
    rig.events.until("nest", "exit")
    assert rig.events.of("nest") == ["create", "start", "oom", "exit"]


@pytest.mark.controllers
def test_a_kill_while_no_daemon_is_there_is_told_by_the_next(rig: Rig, host: Host) -> None:
    bundle = _talking(rig, "alone", f"while read x; do {HOG}; echo $?; done")
    daemon = rig.daemon_pid()
    with dead_daemon(host):
        _say(bundle)
        assert bundle.read_line("stdout").strip() == b"137"
    assert rig.call("State", id="alone").pid
    assert rig.daemon_pid() != daemon
    rig.events.until("alone", "oom")
    eventually(lambda: "OOM" in _show(host, "alone", "StatusText"), "the unit says so")
    rig.call("Kill", id="alone", signal=9)
    rig.events.until("alone", "exit")
    assert rig.events.of("alone") == ["create", "start", "oom", "exit"]


@pytest.mark.controllers
def test_an_end_by_oom_while_no_daemon_is_there_is_told_by_the_next(rig: Rig, host: Host) -> None:
    bundle = _talking(rig, "blind", f"read x; exec {HOG}")
    with dead_daemon(host):
        _say(bundle)
        eventually(lambda: _show(host, "blind", "ActiveState") != "active", "it has ended")
        gone = folder(host, "blind", "memory")
        eventually(lambda: not gone.exists(), "its cgroup has gone")
        record = next(host.path("/run/sdshim/t/default/blind").glob("*/exit")).read_text()
        assert record.split()[2:] == ["oom-kill", "killed", "KILL"]
    assert rig.call("Wait", id="blind").exit_status == KILLED
    rig.events.until("blind", "exit")
    assert rig.events.of("blind") == ["create", "start", "oom", "exit"]
    assert _kills(rig, host, "blind") == 1


@pytest.mark.cgroup("v2")
def test_a_file_of_cgroup_v2_wakes_whenever_its_counters_change(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom, "V2_FILE", "cgroup.events")
    watched = host.cgroup_path / "watched"
    watched.mkdir()
    seen: list[bool] = []

    async def life(sleeper: subprocess.Popen[bytes]) -> None:
        news = asyncio.Event()

        def look() -> bool | None:
            news.set()
            seen.append("populated 1" in (watched / "cgroup.events").read_text())
            return True

        watch = oom.Watch("/watched", look, host.cgroup_path)
        (watched / "cgroup.procs").write_text(str(sleeper.pid))
        await asyncio.wait_for(news.wait(), 10)
        news.clear()
        sleeper.kill()
        await asyncio.wait_for(news.wait(), 10)
        watch.close()

    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        asyncio.run(life(sleeper), debug=True)
    watched.rmdir()
    assert seen == [True, False]
