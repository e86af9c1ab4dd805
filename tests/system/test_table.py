"""The table of protocol 3.4, cell by cell: each RPC in each state of an init process and of an
exec, its code and exact text, the state it leaves, the events it publishes.

What a table cannot say (values of answers, races, streams) is in the modules of each RPC.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.pb import task_types_pb2
from sdshim.pb.wellknown import RESOURCES_URL
from tests.system.taskclient import MESSAGES, ZERO_SECONDS, Rig, exec_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.system

UNKNOWN, NOT_FOUND, EXISTS, PRECONDITION = 2, 5, 6, 9
SIGKILL = 9
COLUMNS = ("created", "running", "paused", "stopped")
CREATED, RUNNING, PAUSED, STOPPED = "CREATED", "RUNNING", "PAUSED", "STOPPED"
STATUS = dict(zip(COLUMNS, (CREATED, RUNNING, PAUSED, STOPPED), strict=True))
GONE = "deleted"
BOX, X = "box", "x"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a call does in a state."""

    error: tuple[int, str] | None = None
    then: str = ""
    """The state afterwards; empty for the same."""
    events: tuple[str, ...] = ()
    blocks: bool = False


def _no(text: str, code: int = UNKNOWN) -> Cell:
    return Cell(error=(code, text))


OK = Cell()
BLOCKS = Cell(blocks=True)
ENDED = Cell(then=STOPPED, events=("exit",))
ADDED = Cell(events=("exec-added",))
FINISHED = _no("process already finished: not found", NOT_FOUND)
NOT_CREATED = _no("process not created: failed precondition", PRECONDITION)
ELSEWHERE = None
"""Checkpoint where it works has modules of its own: it needs criu."""

# fmt: off
INIT: dict[str, tuple[Cell | None, ...]] = {
    # method:    created, running, paused, stopped
    "State": (OK, OK, OK, OK),
    "Start": (
        Cell(then=RUNNING, events=("start",)),
        _no("cannot start a running process"),
        _no("cannot start a paused process"),
        _no("cannot start a stopped process"),
    ),
    "Delete": (
        Cell(then=GONE, events=("exit", "delete")),
        _no("cannot delete a running process"),
        _no("cannot delete a paused process"),
        Cell(then=GONE, events=("delete",)),
    ),
    "Exec": (
        ADDED,
        ADDED,
        _no("cannot exec in a paused state"),
        _no("cannot exec in a stopped state"),
    ),
    "Kill": (ENDED, ENDED, ENDED, FINISHED),
    "Kill all": (ENDED, ENDED, ENDED, FINISHED),
    "Pause": (
        _no("cannot pause task in created state"),
        Cell(then=PAUSED, events=("paused",)),
        _no("cannot pause a paused container"),
        _no("cannot pause a stopped container"),
    ),
    "Resume": (
        _no("cannot resume task in created state"),
        _no("cannot resume a running process"),
        Cell(then=RUNNING, events=("resumed",)),
        _no("cannot resume a stopped container"),
    ),
    "Update": (OK, OK, OK, _no("cannot update a stopped container")),
    "Checkpoint": (
        _no("cannot checkpoint a task in created state"),
        ELSEWHERE,
        ELSEWHERE,
        _no("cannot checkpoint a stopped container"),
    ),
    "Wait": (BLOCKS, BLOCKS, BLOCKS, OK),
    "Pids": (OK, OK, OK, OK),
    "ResizePty": (OK, OK, OK, OK),
    "CloseIO": (OK, OK, OK, OK),
    "Stats": (OK, OK, OK, OK),
    "Connect": (OK, OK, OK, OK),
    "Shutdown": (OK, OK, OK, OK),
}
EXEC: dict[str, tuple[Cell | None, ...]] = {
    # of an exec; `paused` is one that runs in a paused container
    "State": (OK, OK, OK, OK),
    "Start": (
        Cell(then=RUNNING, events=("exec-started",)),
        _no("cannot start a running process"),
        _no("cannot start a running process"),
        _no("cannot start a stopped process"),
    ),
    "Delete": (
        Cell(then=GONE),
        _no("cannot delete a running process"),
        _no("cannot delete a running process"),
        Cell(then=GONE),
    ),
    "Exec": (_no("id x: already exists", EXISTS),) * 4,
    "Kill": (NOT_CREATED, ENDED, OK, FINISHED),
    "Wait": (BLOCKS, BLOCKS, BLOCKS, OK),
    "ResizePty": (OK, OK, OK, _no("cannot resize a stopped container")),
    "CloseIO": (OK, OK, OK, OK),
}
# fmt: on


def _cells(table: Mapping[str, tuple[Cell | None, ...]]) -> list[Any]:
    return [
        pytest.param(method, state, cell, id=f"{method}-{state}")
        for method, row in table.items()
        for state, cell in zip(COLUMNS, row, strict=True)
        if cell is not ELSEWHERE
    ]


def _fields(method: str) -> dict[str, Any]:
    """What a request has beside the ids."""
    resources = AnyMessage(type_url=RESOURCES_URL, value=json.dumps({}).encode())
    fields: dict[str, dict[str, Any]] = {
        "Kill": {"signal": SIGKILL},
        "Kill all": {"signal": SIGKILL, "all": True},
        "Exec": {"exec_id": X, "spec": exec_spec("true")},
        "Update": {"resources": resources},
        "Checkpoint": {"path": "/tmp/never"},
        "ResizePty": {"width": 80, "height": 25},
        "CloseIO": {"stdin": True},
    }
    return fields.get(method, {})


def _init_in(rig: Rig, state: str) -> None:
    if state == "created":
        rig.created(BOX)
        return
    rig.running(BOX)
    if state == "paused":
        rig.call("Pause", id=BOX)
    elif state == "stopped":
        rig.call("Kill", id=BOX, signal=SIGKILL)
        rig.call("Wait", id=BOX)


def _exec_in(rig: Rig, state: str) -> None:
    rig.running(BOX)
    rig.call("Exec", id=BOX, exec_id=X, spec=exec_spec("sleep", "1000"))
    if state == "created":
        return
    rig.call("Start", id=BOX, exec_id=X)
    if state == "paused":
        rig.call("Pause", id=BOX)
    elif state == "stopped":
        rig.call("Kill", id=BOX, exec_id=X, signal=SIGKILL)
        rig.call("Wait", id=BOX, exec_id=X)


def _check(rig: Rig, method: str, state: str, cell: Cell, ids: dict[str, str]) -> None:
    """Make the call; what it answers and the state it leaves are the cell's."""
    before = rig.call("State", **ids)
    assert task_types_pb2.Status.Name(before.status) == STATUS[state]
    name, fields = method.partition(" ")[0], {**ids, **_fields(method)}
    if cell.error:
        assert rig.refused(name, **fields) == cell.error
    else:
        pending = rig.begin(name, **fields)
        if cell.blocks:
            rig.call("State", **ids)
            assert not pending.done()
        else:
            pending.result(15)
    if "exit" in cell.events and cell.then == STOPPED:
        rig.call("Wait", **ids)
    if cell.then == GONE:
        assert rig.refused("State", **ids)[0] == NOT_FOUND
        return
    after = rig.call("State", **ids)
    if cell.then:
        assert task_types_pb2.Status.Name(after.status) == cell.then
        assert after.pid == before.pid or before.pid == 0
    elif (method, state) != ("Kill", "paused"):  # on v1 it dies at Resume, on v2 at once
        assert after == before


def _all_events(rig: Rig) -> list[str]:
    """Everything published for the container, once it is over; an exec's exit is `exit x`."""
    try:
        over = rig.call("State", id=BOX).status == task_types_pb2.STOPPED
    except Exception:
        rig.events.until(BOX, "delete")
    else:
        if not over:
            rig.call("Kill", id=BOX, signal=SIGKILL)
        rig.events.wait_for(lambda: "exit" in _told(rig), 10)
    return _told(rig)


def _told(rig: Rig) -> list[str]:
    told = []
    for event in rig.events.all(BOX):
        of_exec = getattr(event.body, "id", "") == X
        told.append(event.topic.removeprefix("/tasks/") + (" x" if of_exec else ""))
    return told


@pytest.mark.parametrize(("method", "state", "cell"), _cells(INIT))
def test_a_call_about_init(rig: Rig, method: str, state: str, cell: Cell) -> None:
    _init_in(rig, state)
    _check(rig, method, state, cell, {"id": BOX})
    begun = {
        "created": ["create"],
        "running": ["create", "start"],
        "paused": ["create", "start", "paused"],
        "stopped": ["create", "start", "exit"],
    }[state]
    wanted = [*begun, *cell.events]
    if "exit" not in wanted:
        wanted.append("exit")  # by the test
    assert _all_events(rig) == wanted


@pytest.mark.parametrize(("method", "state", "cell"), _cells(EXEC))
def test_a_call_about_an_exec(rig: Rig, method: str, state: str, cell: Cell) -> None:
    _exec_in(rig, state)
    _check(rig, method, state, cell, {"id": BOX, "exec_id": X})
    begun = {
        "created": [],
        "running": ["exec-started"],
        "paused": ["exec-started", "paused"],
        "stopped": ["exec-started", "exit x"],
    }[state]
    own = [event.replace("exit", "exit x") for event in cell.events]
    wanted = ["create", "start", "exec-added", *begun, *own]
    if "exec-started" in wanted and "exit x" not in wanted:
        wanted.append("exit x")  # it goes with its container, and before it
    assert _all_events(rig) == [*wanted, "exit"]


@pytest.mark.parametrize("state", ["created", "stopped"])
def test_an_exec_that_does_not_run_is_paused_with_its_container_too(rig: Rig, state: str) -> None:
    _exec_in(rig, state)
    rig.call("Pause", id=BOX)
    assert rig.call("State", id=BOX, exec_id=X).status == task_types_pb2.PAUSED
    rig.call("Resume", id=BOX)
    status = rig.call("State", id=BOX, exec_id=X).status
    assert task_types_pb2.Status.Name(status) == STATUS[state]


def test_a_created_exec_that_is_deleted_has_ended_with_0_at_no_time(rig: Rig) -> None:
    _exec_in(rig, "created")
    answer = rig.call("Delete", id=BOX, exec_id=X)
    assert (answer.pid, answer.exit_status, answer.exited_at.seconds) == (0, 0, ZERO_SECONDS)


@pytest.mark.parametrize("method", ["State", "Start", "Delete", "Kill", "Wait", "ResizePty"])
@pytest.mark.parametrize("state", COLUMNS)
def test_an_exec_that_is_not_there_is_not_found(rig: Rig, method: str, state: str) -> None:
    _init_in(rig, state)
    error = rig.refused(method, id=BOX, exec_id=X, **_fields(method))
    assert error == (NOT_FOUND, "process does not exist x: not found")


@pytest.mark.parametrize("method", sorted(MESSAGES.keys() - {"Create", "Connect", "Shutdown"}))
def test_every_call_about_an_unknown_task_is_not_found(rig: Rig, method: str) -> None:
    rig.listen("default")
    error = rig.refused(method, id="nobody", **_fields(method))
    assert error == (NOT_FOUND, "container not created: not found")


def test_the_table_has_every_method() -> None:
    assert {method.partition(" ")[0] for method in INIT} == MESSAGES.keys() - {"Create"}
