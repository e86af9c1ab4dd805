"""The Task API for init processes: each RPC in each state, its code and exact text (protocol 3)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import task_types_pb2
from sdshim.pb import task_v2_pb2 as pb
from tests.system.rawsocket import RawSocket
from tests.system.taskclient import MESSAGES, V2, V3, ZERO_SECONDS, Rig, spec_of

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = pytest.mark.system

UNKNOWN, INVALID, DEADLINE, NOT_FOUND, EXISTS, UNIMPLEMENTED = 2, 3, 4, 5, 6, 12
NO_TASK = (NOT_FOUND, "container not created: not found")
FINISHED = (NOT_FOUND, "process already finished: not found")
SIGTERM, SIGKILL = 15, 9


def _make(rig: Rig, state: str, id_: str) -> None:
    make: Any = getattr(rig, state, None)
    if make is not None:
        make(id_)


def _without_pid_namespace(*command: str) -> dict[str, Any]:
    """Init of a pid namespace ignores the signals it has no handler for; this one does not."""
    spec = spec_of(*command)
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]
    return spec


# --- errors: RPC × state


@pytest.mark.parametrize("state", ["unknown", "deleted"])
@pytest.mark.parametrize("method", ["State", "Start", "Delete", "Kill", "Wait", "Pids", "CloseIO"])
def test_a_task_that_is_not_there_is_not_found(rig: Rig, method: str, state: str) -> None:
    _make(rig, state, "gone")
    if state == "unknown":
        rig.listen("default")
    fields: dict[str, Any] = {"signal": SIGKILL} if method == "Kill" else {}
    assert rig.refused(method, id="gone", **fields) == NO_TASK


@pytest.mark.parametrize("state", ["created", "running", "stopped"])
def test_an_id_that_is_taken_already_exists(rig: Rig, state: str) -> None:
    _make(rig, state, "twice")
    again = rig.refused("Create", id="twice", bundle="/tmp")
    assert again == (EXISTS, "task twice: already exists")


@pytest.mark.parametrize("state", ["created", "running", "stopped"])
@pytest.mark.parametrize("method", ["State", "Start", "Delete", "Kill", "Wait", "CloseIO"])
def test_an_exec_that_is_not_there_is_not_found(rig: Rig, method: str, state: str) -> None:
    _make(rig, state, "host-of-exec")
    error = rig.refused(method, id="host-of-exec", exec_id="x1")
    assert error == (NOT_FOUND, "process does not exist x1: not found")


@pytest.mark.parametrize("number", [65, 1000, 2**32 - 1])
def test_a_signal_that_does_not_exist_is_refused(rig: Rig, number: int) -> None:
    rig.running("steady")
    error = rig.refused("Kill", id="steady", signal=number)
    assert error == (INVALID, f"signal {number} does not exist")
    assert rig.call("State", id="steady").status == task_types_pb2.RUNNING


def test_unknown_services_and_methods_are_unimplemented(rig: Rig, host: Host) -> None:
    rig.listen("default")
    with RawSocket(host) as raw:
        raw.request(1, "State", service="containerd.task.v9.Task")
        raw.request(3, "Nonsense")
        raw.request(5, "Ping", service="containerd.runtime.sandbox.v1.Sandbox")
        got = {stream: (r.code, r.message) for stream, r in (raw.response() for _ in range(3))}
    assert got[1] == (UNIMPLEMENTED, "service containerd.task.v9.Task")
    assert got[3] == (UNIMPLEMENTED, "method Nonsense")
    assert got[5] == (UNIMPLEMENTED, "service containerd.runtime.sandbox.v1.Sandbox")


# --- Connect and Shutdown


def test_connect_of_an_unknown_id_is_a_success_with_pid_0(rig: Rig) -> None:
    rig.listen("default")
    rig.refused("State", id="nobody")
    answer = rig.call("Connect", id="nobody")
    assert answer.task_pid == 0
    assert answer.shim_pid == rig.daemon_pid()
    assert answer.version


def test_a_containerd_that_comes_back_to_a_task_that_is_gone_is_told_so(rig: Rig) -> None:
    """Else 1.6 would keep it for ever."""
    rig.running("stays")
    rig.listen("default")
    assert rig.connect().fails("Connect", id="gone") == NO_TASK
    assert rig.connect().call("Connect", id="stays").task_pid > 0


@pytest.mark.parametrize("state", ["created", "running", "stopped"])
def test_connect_and_shutdown_change_nothing(rig: Rig, state: str) -> None:
    _make(rig, state, "calm")
    before = rig.call("State", id="calm")
    assert rig.call("Connect", id="calm").task_pid == before.pid
    daemon = rig.daemon_pid()
    rig.call("Shutdown", id="calm")
    rig.call("Shutdown", id="calm", now=True)
    assert rig.call("State", id="calm") == before
    assert rig.daemon_pid() == daemon


def test_shutdown_after_the_last_delete_leaves_the_daemon_running(rig: Rig) -> None:
    rig.deleted("last")
    daemon = rig.daemon_pid()
    rig.call("Shutdown", id="last", now=True)
    assert rig.call("Connect", id="last").shim_pid == daemon


# --- State


@pytest.mark.parametrize("service", [V2, V3])
def test_state_tells_all_fields_from_create_to_exit(rig: Rig, service: str) -> None:
    bundle = rig.bundle("life", "sh", "-c", "exit 7")
    paths: dict[str, Any] = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}

    def state() -> Any:
        return rig.call("State", service=service, id="life")

    made = rig.call("Create", service=service, id="life", bundle=bundle.path, **paths)
    created = state()
    wanted = pb.StateResponse(
        id="life", bundle=bundle.path, pid=made.pid, status=task_types_pb2.CREATED, **paths
    )
    wanted.exited_at.seconds = ZERO_SECONDS
    assert created == wanted
    assert made.pid > 0
    begun = time.time()
    assert rig.call("Start", service=service, id="life").pid == made.pid
    ended = rig.call("Wait", service=service, id="life")
    stopped = state()
    wanted.status = task_types_pb2.STOPPED
    wanted.exit_status = 7
    wanted.exited_at.CopyFrom(ended.exited_at)
    assert stopped == wanted
    assert begun - 0.1 < ended.exited_at.ToNanoseconds() / 1e9 < time.time() + 0.1
    removed = rig.call("Delete", service=service, id="life")
    assert (removed.pid, removed.exit_status) == (made.pid, 7)
    assert removed.exited_at == ended.exited_at


def test_state_of_a_running_task_has_gos_zero_time(rig: Rig) -> None:
    rig.running("runs")
    state = rig.call("State", id="runs")
    assert (state.status, state.exit_status) == (task_types_pb2.RUNNING, 0)
    assert (state.exited_at.seconds, state.exited_at.nanos) == (ZERO_SECONDS, 0)


def test_a_task_is_not_found_until_its_create_has_answered(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("slow", "true")
    # The mount waits for a FIFO's other end: as long as the test likes.
    hook = bundle.outside / "hook"
    hook.write_text(f"#!/bin/sh\necho >{bundle.path}/reached; read x <{bundle.path}/go\n")
    hook.chmod(0o700)
    for name in ("reached", "go"):
        os.mkfifo(bundle.outside / name)
    spec = spec_of("true")
    spec["hooks"] = {"createRuntime": [{"path": f"{bundle.path}/hook"}]}
    bundle.write_spec(spec)
    made = rig.begin("Create", id="slow", bundle=bundle.path)
    (bundle.outside / "reached").read_text()
    for method in ("State", "Pids", "Wait", "Start", "Kill"):
        fields: dict[str, Any] = {"signal": SIGKILL} if method == "Kill" else {}
        assert rig.refused(method, id="slow", **fields) == NO_TASK
    assert rig.call("Connect", id="slow").task_pid == 0
    removed = rig.begin("Delete", id="slow")  # waits for the Create, then takes it back
    (bundle.outside / "go").write_text("\n")
    assert made.result(10).pid > 0
    assert removed.result(10).exit_status == 128 + SIGKILL
    assert rig.refused("State", id="slow") == NO_TASK


# --- Wait


def test_wait_before_start_and_many_waits_get_the_same_answer(rig: Rig) -> None:
    rig.created("awaited", "sh", "-c", "exit 9")
    waits = [rig.begin("Wait", id="awaited") for _ in range(50)]
    rig.call("Start", id="awaited")
    answers = [wait.result(10) for wait in waits]
    assert answers[0].exit_status == 9
    assert all(answer == answers[0] for answer in answers)
    for _ in range(3):
        assert rig.call("Wait", id="awaited") == answers[0]
    rig.call("Delete", id="awaited")
    assert rig.refused("Wait", id="awaited") == NO_TASK


def test_wait_holds_up_nothing_else_on_its_connection(rig: Rig) -> None:
    bundle = rig.bundle("busy", "sleep", "1000")
    one = rig.connect()
    one.call("Create", id="busy", bundle=bundle.path)
    wait = one.begin("Wait", id="busy")
    one.call("Start", id="busy")
    assert one.call("State", id="busy").status == task_types_pb2.RUNNING
    assert not wait.done()
    one.call("Kill", id="busy", signal=SIGKILL)
    assert wait.result(10).exit_status == 137


# --- Kill


@pytest.mark.parametrize(("number", "status"), [(SIGTERM, 143), (SIGKILL, 137)])
def test_a_killed_process_has_128_plus_the_signal(rig: Rig, number: int, status: int) -> None:
    rig.running("victim", spec=_without_pid_namespace("sleep", "1000"))
    rig.call("Kill", id="victim", signal=number)
    assert rig.call("Wait", id="victim").exit_status == status
    assert rig.events.until("victim", "exit").body.exit_status == status


def test_kill_of_a_created_task_ends_it_before_its_start(rig: Rig) -> None:
    rig.created("early")
    rig.call("Kill", id="early", signal=SIGKILL)
    assert rig.call("Wait", id="early").exit_status == 137
    assert rig.call("State", id="early").status == task_types_pb2.STOPPED
    assert rig.refused("Start", id="early") == (UNKNOWN, "cannot start a stopped process")
    assert rig.call("Delete", id="early").exit_status == 137
    rig.events.until("early", "delete")
    assert rig.events.of("early") == ["create", "exit", "delete"]


def test_kill_all_reaches_every_process_of_the_container(rig: Rig) -> None:
    script = "sleep 1000 & sleep 1000 & echo up; wait"
    bundle = rig.bundle("family", "sh", "-c", script)
    bundle.write_spec(_without_pid_namespace("sh", "-c", script))
    rig.call("Create", id="family", bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id="family")
    rig.call("Kill", id="family", signal=SIGKILL, all=True)
    assert rig.call("Wait", id="family").exit_status == 137
    bundle.read("stdout")  # its end comes when the last holder is dead


def test_signal_0_asks_whether_the_process_is_there(rig: Rig) -> None:
    rig.running("probed")
    rig.call("Kill", id="probed", signal=0)
    rig.call("Kill", id="probed", signal=SIGKILL)
    rig.call("Wait", id="probed")
    assert rig.refused("Kill", id="probed", signal=0) == FINISHED


# --- Delete


def test_delete_of_a_created_task_ends_and_removes_it(rig: Rig) -> None:
    bundle = rig.bundle("unborn", "sleep", "1000")
    pid = rig.call("Create", id="unborn", bundle=bundle.path).pid
    wait = rig.begin("Wait", id="unborn")
    answer = rig.call("Delete", id="unborn")
    assert (answer.pid, answer.exit_status) == (pid, 137)
    assert wait.result(5).exit_status == 137
    assert not rig.unit_exists("unborn")
    rig.events.until("unborn", "delete")
    assert "start" not in rig.events.of("unborn")


def test_after_delete_the_id_can_be_used_at_once(rig: Rig) -> None:
    for code in (1, 2, 3):
        bundle = rig.bundle("reused", "sh", "-c", f"exit {code}")
        rig.call("Create", id="reused", bundle=bundle.path)
        rig.call("Start", id="reused")
        assert rig.call("Wait", id="reused").exit_status == code
        assert rig.call("Delete", id="reused").exit_status == code
        rig.give_up(bundle)


def test_the_launchers_delete_after_delete_tells_the_same_end(rig: Rig) -> None:
    bundle = rig.stopped("told")
    answer = rig.call("Delete", id="told")
    assert rig.give_up(bundle) == answer


# --- Pids


def test_pids_are_the_processes_in_the_container(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("crowd", "sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait")
    out = bundle.fifo("stdout")
    pid = rig.call("Create", id="crowd", bundle=bundle.path, stdout=out).pid
    assert [p.pid for p in rig.call("Pids", id="crowd").processes] == [pid]
    rig.call("Start", id="crowd")
    bundle.read_line("stdout")
    found = {p.pid for p in rig.call("Pids", id="crowd").processes}
    children = host.run(["ps", "-o", "pid=", "--ppid", str(pid)]).stdout.split()
    assert found == {pid, *map(int, children)}
    assert len(found) == 3


def test_pids_of_a_stopped_task_still_names_its_init(rig: Rig) -> None:
    rig.stopped("past")
    pid = rig.call("State", id="past").pid
    assert [p.pid for p in rig.call("Pids", id="past").processes] == [pid]


# --- streams


def test_close_io_ends_stdin_when_the_client_has_closed_its_own(rig: Rig) -> None:
    bundle = rig.bundle("pipe", "sh", "-c", "cat; echo over")
    paths = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id="pipe", bundle=bundle.path, **paths)
    rig.call("Start", id="pipe")
    with (bundle.outside / "stdin").open("wb", buffering=0) as stdin:
        stdin.write(b"hello\n")
        assert bundle.read_line("stdout") == b"hello\n"
    # The client has left: that alone is no end of file.
    assert rig.call("State", id="pipe").status == task_types_pb2.RUNNING
    for _ in range(2):
        rig.call("CloseIO", id="pipe", stdin=True)
    assert bundle.read("stdout") == b"over\n"
    assert rig.call("Wait", id="pipe").exit_status == 0
    rig.call("CloseIO", id="pipe", stdin=True)


# --- beside systemd


def test_a_create_while_its_slice_is_being_stopped_comes_after_it(rig: Rig, host: Host) -> None:
    script = "trap 'head -n 1 <&3 >/dev/null; exit' TERM; echo up; while :; do sleep 0.01; done"
    bundle = rig.bundle("leaving", "sh", "-c", f"exec 3<&0; {script}")
    paths = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id="leaving", bundle=bundle.path, **paths)
    rig.call("Start", id="leaving")
    bundle.read_line("stdout")
    host.run(["systemctl", "stop", "--no-block", "sdshim-default.slice"])
    coming = rig.bundle("coming", "sleep", "1000")
    created = rig.begin("Create", id="coming", bundle=coming.path)
    (bundle.outside / "stdin").write_text("go\n")  # until now the slice's stop has to wait
    assert created.result(10).pid > 0
    assert rig.call("State", id="coming").status == task_types_pb2.CREATED


# --- what travels with a call


def test_a_deadline_is_answered_and_the_operation_goes_on(rig: Rig, host: Host) -> None:
    rig.running("endless")
    request = pb.WaitRequest(id="endless").SerializeToString()
    with RawSocket(host) as raw:
        begun = time.monotonic()
        raw.request(1, "Wait", request, nano=300_000_000)
        stream, answer = raw.response()
        passed = time.monotonic() - begun
        assert (stream, answer.code) == (1, DEADLINE)
        assert answer.message == "context deadline exceeded"
        assert 0.29 < passed < 2
        raw.request(3, "Wait", request, nano=-1)
        assert raw.response()[1].code == DEADLINE
        raw.request(5, "Connect", pb.ConnectRequest(id="endless").SerializeToString())
        assert raw.response()[1].code == 0


def test_a_create_goes_on_when_its_deadline_has_passed(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("late", "sleep", "1000")
    request = pb.CreateTaskRequest(id="late", bundle=bundle.path).SerializeToString()
    with RawSocket(host) as raw:
        raw.request(1, "Create", request, nano=1_000_000)
        assert raw.response()[1].code == DEADLINE
        rig.events.until("late", "create")
        assert rig.call("State", id="late").status == task_types_pb2.CREATED


def test_the_namespace_in_the_metadata_must_be_that_of_the_socket(rig: Rig) -> None:
    rig.running("spaced")
    key = "containerd-namespace-ttrpc"
    assert rig.call("State", id="spaced", metadata={key: "default"}).pid
    wrong = rig.refused("State", id="spaced", metadata={key: "other"})
    assert wrong == (
        INVALID,
        "namespace 'other' in the metadata, but this is the socket of 'default'",
    )


def test_the_task_service_is_not_on_the_main_socket(rig: Rig) -> None:
    rig.listen("default")
    error = rig.connect_main().fails("Connect", id="x")
    assert error == (
        UNIMPLEMENTED,
        "service containerd.task.v2.Task is not served on this socket",
    )


def test_tasks_of_one_namespace_are_unknown_in_another(rig: Rig) -> None:
    rig.running("mine")
    rig.listen("elsewhere")
    assert rig.refused("State", id="mine", namespace="elsewhere") == NO_TASK
    assert rig.call("Connect", id="mine", namespace="elsewhere").task_pid == 0


def test_every_method_of_the_service_is_known_to_these_tests() -> None:
    assert len(MESSAGES) == 17
