"""Execs: a unit each, exit codes of processes of any age, events, what a dead init means."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import runc_pb2, task_types_pb2
from tests.system.client import Ctr, events
from tests.system.taskclient import Rig, eventually, exec_spec, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def box(ctr: Ctr) -> Iterator[Ctr]:
    """A running container `box`."""
    ctr.start("box", "sleep", "1000")
    yield ctr
    ctr.remove("box")
    # ctr's own: it removes the FIFOs of an exec only if it lives to see its end.
    ctr.host.run(["sh", "-c", "rm -rf /run/containerd/fifo/*"])


def _exec(ctr: Ctr, exec_id: str, *command: str) -> subprocess.CompletedProcess[str]:
    return ctr.call("task", "exec", "--exec-id", exec_id, "box", *command, check=False)


def test_an_exec_prints_its_output_and_returns_its_exit_code(box: Ctr) -> None:
    done = _exec(box, "one", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")


def test_an_exec_id_can_be_used_again_after_its_delete(box: Ctr) -> None:
    for code in range(5):
        assert _exec(box, "again", "sh", "-c", f"exit {code}").returncode == code


def test_a_program_that_does_not_exist_fails_the_start_in_the_runtimes_words(box: Ctr) -> None:
    done = _exec(box, "nope", "/does/not/exist")
    assert done.returncode != 0
    assert "OCI runtime exec failed" in done.stderr
    assert "/does/not/exist" in done.stderr
    assert _exec(box, "nope", "true").returncode == 0


def test_a_background_child_that_keeps_stdout_does_not_delay_the_exit(box: Ctr) -> None:
    with events(box.host) as seen:
        process = box.host.popen(
            box.argv("task", "exec", "--exec-id", "bg", "box", "sh", "-c", "sleep 30 & exit 3"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        begun = time.monotonic()
        seen.read(lambda: any(b.get("id") == "bg" for b in seen.bodies("exit", "box")), 20, "exit")
        assert time.monotonic() - begun < 20
        (body,) = (b for b in seen.bodies("exit", "box") if b["id"] == "bg")
        assert body["exit_status"] == 3
        box.host.send_signal(process, 9)
        process.kill()
        process.wait()
    box.host.run(["ctr", "task", "delete", "--exec-id", "bg", "box"], check=False)


def test_the_events_of_an_exec_come_once_and_in_order(box: Ctr) -> None:
    with events(box.host) as seen:
        assert _exec(box, "life", "sh", "-c", "exit 4").returncode == 4
        seen.until("box", "exit")
    assert seen.of("box") == ["exec-added", "exec-started", "exit"]
    (body,) = seen.bodies("exit", "box")
    assert (body["id"], body["exit_status"]) == ("life", 4)


def test_an_exec_is_a_unit_and_its_process_is_in_the_containers_cgroup(
    box: Ctr, host: Host
) -> None:
    box.call("task", "exec", "-d", "--exec-id", "unit", "box", "sleep", "777")
    shown = host.run(["systemctl", "show", "-P", "ActiveState", "sdshim-default-box:unit.service"])
    assert shown.stdout.strip() == "active"
    assert "sleep 777" in host.run(["systemctl", "status", "sdshim-default-box.service"]).stdout
    assert "unit" in box.call("task", "ps", "box").stdout
    with events(host) as seen:
        box.call("task", "kill", "--exec-id", "unit", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    assert seen.bodies("exit", "box")[0]["exit_status"] == 137
    box.call("task", "delete", "--exec-id", "unit", "box", check=False)


def test_twenty_execs_at_once(box: Ctr) -> None:
    # The nap is for ctr: when it hears of an exit before its own open of a FIFO has returned, which
    # takes a while with twenty of them on two cores, it gives the stream up, whatever the shim.
    running = [
        box.host.popen(
            box.argv(
                "task",
                "exec",
                "--exec-id",
                f"e{n}",
                "box",
                "sh",
                "-c",
                f"echo {n}; sleep 0.5; exit {n}",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(20)
    ]
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=90)
        assert (out, process.returncode) == (f"{number}\n", number), err


def test_the_exit_of_init_is_published_after_those_of_its_execs(box: Ctr, host: Host) -> None:
    for number in range(3):
        box.call("task", "exec", "-d", "--exec-id", f"x{number}", "box", "sleep", "1000")
    with events(host) as seen:
        box.call("task", "kill", "-s", "SIGKILL", "box")
        seen.read(lambda: any(b["id"] == "box" for b in seen.bodies("exit", "box")), 20, "exit")
    ids = [body["id"] for body in seen.bodies("exit", "box")]
    assert sorted(ids) == ["box", "x0", "x1", "x2"]
    assert ids[-1] == "box"
    assert {body["exit_status"] for body in seen.bodies("exit", "box")} == {137}


def test_no_exec_starts_in_a_container_whose_init_has_ended(box: Ctr, host: Host) -> None:
    with events(host) as seen:
        box.call("task", "kill", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    done = _exec(box, "late", "true")
    assert done.returncode != 0
    assert "cannot exec in a stopped state" in done.stderr


# --- by our own client


def _spaces(*, shared: bool) -> dict[str, Any]:
    """A spec of `sleep 1000`, in the host's pid namespace if shared."""
    spec = spec_of("sleep", "1000")
    if shared:
        spaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]
    return spec


def _started(rig: Rig, id_: str, exec_id: str, *command: str) -> int:
    """An exec that runs; its pid."""
    rig.call("Exec", id=id_, exec_id=exec_id, spec=exec_spec(*(command or ("sleep", "1000"))))
    return int(rig.call("Start", id=id_, exec_id=exec_id).pid)


def _exits(rig: Rig, id_: str) -> list[str]:
    return [e.body.id for e in rig.events.all(id_) if e.topic == "/tasks/exit"]


@pytest.mark.parametrize("cgroup", ["", "/elsewhere/box"], ids=["unit's cgroup", "foreign cgroup"])
@pytest.mark.parametrize("shared", [False, True], ids=["own pids", "shared pids"])
@pytest.mark.parametrize("everyone", [False, True], ids=["kill", "kill all"])
def test_the_end_of_init_ends_its_execs_and_is_published_last(
    rig: Rig, *, shared: bool, cgroup: str, everyone: bool
) -> None:
    spec = _spaces(shared=shared)
    spec["linux"]["cgroupsPath"] = cgroup
    rig.running("box", spec=spec)
    for exec_id in ("x1", "x2", "x3"):
        _started(rig, "box", exec_id)
    waits = [rig.begin("Wait", id="box", exec_id=who) for who in ("x1", "x2", "x3", "")]
    rig.call("Kill", id="box", signal=9, all=everyone)
    assert [wait.result(10).exit_status for wait in waits] == [137] * 4
    rig.events.wait_for(lambda: "box" in _exits(rig, "box"), 10)
    *execs, last = _exits(rig, "box")
    assert (sorted(execs), last) == (["x1", "x2", "x3"], "box")


def test_kill_all_of_an_exec_is_for_its_process_alone(rig: Rig) -> None:
    rig.running("box")
    for exec_id in ("x1", "x2"):
        _started(rig, "box", exec_id)
    rig.call("Kill", id="box", exec_id="x1", signal=9, all=True)
    assert rig.call("Wait", id="box", exec_id="x1").exit_status == 137
    for who in ("x2", ""):
        assert rig.call("State", id="box", exec_id=who).status == task_types_pb2.RUNNING


def test_pids_tell_which_process_is_an_execs(rig: Rig, host: Host) -> None:
    rig.running("box")
    init = rig.call("State", id="box").pid
    pid = _started(rig, "box", "x1", "sh", "-c", "sleep 1000 & wait")
    rig.call("Exec", id="box", exec_id="unborn", spec=exec_spec("true"))

    def children() -> list[str]:
        listed = host.run(["ps", "-o", "pid=", "--ppid", str(pid)], check=False).stdout
        return str(listed).split()

    eventually(lambda: bool(children()), "the exec's child runs")
    found = {p.pid: p.info for p in rig.call("Pids", id="box").processes}
    assert found.keys() == {init, pid, int(children()[0])}
    assert found[pid].type_url == "containerd.runc.v1.ProcessDetails"
    assert runc_pb2.ProcessDetails.FromString(found[pid].value).exec_id == "x1"
    assert [number for number, info in found.items() if info.type_url] == [pid]


def test_an_exec_that_waits_for_its_start_cannot_have_it_after_the_end_of_init(rig: Rig) -> None:
    rig.running("box")
    rig.call("Exec", id="box", exec_id="late", spec=exec_spec("true"))
    wait = rig.begin("Wait", id="box", exec_id="late")
    rig.call("Kill", id="box", signal=9)
    rig.call("Wait", id="box")
    error = rig.refused("Start", id="box", exec_id="late")
    assert error == (9, "container box init process is not running: failed precondition")
    assert not wait.done()
    assert rig.call("State", id="box", exec_id="late").status == task_types_pb2.CREATED
    assert rig.call("Delete", id="box", exec_id="late").exit_status == 0
    rig.events.until("box", "exit")
    assert rig.events.of("box") == ["create", "start", "exec-added", "exit"]


def test_an_exec_id_is_free_after_its_delete_also_when_its_start_failed(rig: Rig) -> None:
    rig.running("box")
    for _ in range(3):
        rig.call("Exec", id="box", exec_id="x", spec=exec_spec("/does/not/exist"))
        code, text = rig.refused("Start", id="box", exec_id="x")
        assert code == 2
        assert text.startswith("OCI runtime exec failed: exec failed: ")
        assert rig.call("Wait", id="box", exec_id="x").exit_status == 0
        rig.call("Delete", id="box", exec_id="x")
        _started(rig, "box", "x", "sh", "-c", "exit 4")
        assert rig.call("Wait", id="box", exec_id="x").exit_status == 4
        assert rig.call("Delete", id="box", exec_id="x").exit_status == 4
    rig.call("Kill", id="box", signal=9)
    rig.events.wait_for(lambda: "box" in _exits(rig, "box"), 10)
    life = ["exec-added", "exec-added", "exec-started", "exit"]
    assert rig.events.of("box") == ["create", "start", *life * 3, "exit"]


def test_forty_execs_at_once_by_our_own_client(rig: Rig) -> None:
    rig.running("box")
    names = [f"x{number}" for number in range(40)]
    for number, name in enumerate(names):
        rig.call("Exec", id="box", exec_id=name, spec=exec_spec("sh", "-c", f"exit {number}"))
    waits = [rig.begin("Wait", id="box", exec_id=name) for name in names]
    starts = [rig.begin("Start", id="box", exec_id=name) for name in names]
    assert all(start.result(60).pid > 0 for start in starts)
    assert [wait.result(60).exit_status for wait in waits] == list(range(40))
    for name in names:
        rig.call("Delete", id="box", exec_id=name)
    rig.events.wait_for(lambda: len(_exits(rig, "box")) == 40, 10)
    for name in names:
        own = [
            e.topic.removeprefix("/tasks/")
            for e in rig.events.all("box")
            if name in (getattr(e.body, "exec_id", ""), getattr(e.body, "id", ""))
        ]
        assert own == ["exec-added", "exec-started", "exit"]
