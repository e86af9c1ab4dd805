"""Whose a unit is after a restart of the daemon, and what is left alone when it is not ours."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core import spans
from sdshim.core.errors import NotFound
from sdshim.core.lifecycle import Life, Phase
from sdshim.core.model import Identity
from sdshim.core.record import Record
from sdshim.daemon import exits, limits, oneshot, units
from sdshim.daemon.kill import kill, kill_exec
from sdshim.daemon.oneshot import Oneshot
from sdshim.daemon.process import Exec, Task
from sdshim.daemon.recovery import runs
from sdshim.host.store import EXEC_PID, EXIT, INIT_PID, MAIN_PID, Store
from sdshim.runtime.commands import state_bundle
from sdshim.systemd.errors import NoSuchUnit, UnitExists
from sdshim.systemd.manager import Manager
from tests.unit.test_systemd_fake import FakeError, fake_bus, got
from tests.unit.ttrpc_kit import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.test_systemd_fake import FakeBus

TOKEN = "0" * 32
OURS, OTHERS = [f"SDSHIM_TOKEN={TOKEN}"], [f"SDSHIM_TOKEN={'1' * 32}"]
ME = Identity(
    "default", "box", TOKEN, "/b", "u.service", "s.slice", "/s.slice/u.service/c", True, ""
)
CHANGES = {"StopUnit", "KillUnit", "ResetFailedUnit", "SetUnitProperties", "RefUnit", "UnrefUnit"}


def _node(folder: Path, manager: Any = None) -> Any:
    node: Any = SimpleNamespace(store=Store(folder / "t"), manager=manager, unsent={})
    node.crash = lambda _point: None
    node.tracer = spans.NULL_TRACER
    return node


def _task(node: Any) -> Task:
    node.store.make(ME)
    return Task(node, Record(ME, life=Life(Phase.RUNNING, 7)))


def _systemd(fake: FakeBus, environment: list[str], state: str = "loaded") -> None:
    """The unit as systemd has it; one that is not found cannot be held."""
    answers = {"Environment": got("as", environment), "LoadState": got("s", state)}
    fake.answers["Get"] = lambda _interface, name: answers[name]
    if state == "not-found":

        def none(*_: object) -> Any:
            raise FakeError("org.freedesktop.systemd1.NoSuchUnit", "not loaded")

        fake.answers["RefUnit"] = none


@pytest.mark.parametrize(
    ("environment", "state", "gone"),
    [
        (OURS, "loaded", False),
        ([*OTHERS, *OURS], "loaded", False),
        (OTHERS, "loaded", True),
        ([], "loaded", True),
        ([], "not-found", True),
        ([], "bad-setting", False),  # a reload has lost what it was
    ],
)
def test_a_unit_is_ours_by_its_token(
    tmp_path: Path, environment: list[str], state: str, gone: bool
) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            _systemd(fake, environment, state)
            node = _node(tmp_path, Manager(bus))
            task = _task(node)
            await units.hold(node, task)
            assert task.unit_gone == gone
            assert ("RefUnit" in fake.members()) == (not gone)

    asyncio.run(main())


@pytest.mark.parametrize("state", ["loaded", "not-found"])
def test_a_unit_whose_process_runs_is_held_without_a_question(tmp_path: Path, state: str) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            _systemd(fake, [], state)
            node = _node(tmp_path, Manager(bus))
            task = _task(node)
            await units.hold(node, task, runs=True)
            assert fake.members() == ["Hello", "RefUnit"]
            assert task.unit_gone == (state == "not-found")

    asyncio.run(main())


def test_a_strangers_unit_is_not_touched_and_the_record_tells_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            _systemd(fake, OTHERS)
            node = _node(tmp_path, Manager(bus))
            task = _task(node)
            node.store.put(ME, EXIT, b"abc 7 exit-code exited 9\n")
            await units.hold(node, task)
            assert (await exits.find_out(node, task)).status == 9
            await limits.give(node, task, [("TasksMax", "t", 5)])
            await units.settle(node, task)
            async with asyncio.timeout(5):  # whoever waits for its removal waits without end
                await units.forget(node, task)
            assert not CHANGES & set(fake.members())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("environment", "touched"),
    [(OURS, {"StopUnit", "ResetFailedUnit", "UnrefUnit"}), (OTHERS, {"UnrefUnit"})],
)
def test_whose_a_unit_is_is_asked_once_more_when_the_bus_has_gone(
    tmp_path: Path, environment: list[str], touched: set[str]
) -> None:
    """And only then. What the new connection holds by that name is let go of."""

    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            _systemd(fake, OURS)
            fake.answers["GetUnit"] = _no_unit
            fake.answers["StopUnit"] = lambda *_: ("o", ["/org/freedesktop/systemd1/job/1"])
            manager = Manager(bus)
            await manager.start()
            node = _node(tmp_path, manager)
            task = _task(node)
            await units.hold(node, task)
            asked = len(fake.calls)
            await units.confirm(node, task)
            assert len(fake.calls) == asked
            fake.cut()
            await until(lambda: fake.held[ME.unit] == 1)  # as if nothing had been
            _systemd(fake, environment)
            fake.calls.clear()
            settled = asyncio.create_task(units.settle(node, task))
            await until(lambda: task.held_since == 1)
            fake.signal("JobRemoved", "uoss", 1, "/job/1", ME.unit, "done")
            await settled
            await units.forget(node, task)
            assert task.unit_gone == (environment == OTHERS)
            assert set(fake.members()) & CHANGES == touched
            assert fake.held[ME.unit] == 0
            await manager.close()

    asyncio.run(asyncio.wait_for(main(), 15))


def _no_unit(*_: object) -> Any:
    raise FakeError("org.freedesktop.systemd1.NoSuchUnit", "not loaded")


@pytest.mark.parametrize("environment", [OTHERS, []])
def test_a_strangers_unit_by_the_name_of_a_checkpoints_is_let_alone(
    tmp_path: Path, environment: list[str]
) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            _systemd(fake, environment)
            folder = tmp_path / "checkpoint"
            folder.mkdir()
            one = Oneshot(ME, folder)
            await oneshot.forget(_node(tmp_path, Manager(bus)), one)
            assert not CHANGES & set(fake.members())
            assert not folder.exists()

    asyncio.run(main())


RUNC = '{"id":"box","config":{"labels":["a=b","bundle=/b/q\\u0026a"],"rootfs":"/b"}}'


@pytest.mark.parametrize(
    ("text", "bundle"),
    [
        (RUNC, "/b/q&a"),
        ('{"pid": 7, "bundle": "\\/b\\/c"}', "/b/c"),
        ('{"config":{"labels":["a=b"]}}', ""),
        ('{"config":{"labels":null}}', ""),
        ('{"config":[]}', ""),
        ("[]", ""),
        ("{", ""),
    ],
)
def test_whose_a_container_is_the_runtimes_state_tells(text: str, bundle: str) -> None:
    assert state_bundle(text) == bundle


class Starter:
    """Starts units, or finds their names taken."""

    losses = 0

    def __init__(self, *, taken: bool) -> None:
        self._taken = taken

    async def start_transient(self, unit: str, _properties: object) -> Any:
        if self._taken:
            raise UnitExists("org.freedesktop.systemd1.UnitExists", "taken", unit)
        raise NoSuchUnit("org.freedesktop.systemd1.NoSuchUnit", "no slice", unit)


@pytest.mark.parametrize("taken", [True, False])
def test_a_start_makes_the_name_ours_unless_it_is_taken(tmp_path: Path, taken: bool) -> None:
    class Null:
        """A span and a program of no kind."""

        def __call__(self, *_: object) -> Any:
            return self

        lend = span = __call__

        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

        async def __aenter__(self) -> str:
            return ""

        async def __aexit__(self, *_: object) -> None:
            return None

    node = _node(tmp_path, Starter(taken=taken))
    node.tracer, node.runtime = Null(), SimpleNamespace(sealed=Null())
    task = _task(node)
    task.unit_gone = True
    with pytest.raises(UnitExists if taken else NoSuchUnit):
        asyncio.run(units.start(node, task, [], "runc"))
    assert task.unit_gone == taken


# --- pids


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        assert process.poll() is None, "it was touched"
        process.kill()


def test_an_execs_pid_that_is_another_process_gets_no_signal(
    tmp_path: Path, innocent: subprocess.Popen[bytes]
) -> None:
    node = _node(tmp_path)
    child = Exec(node, Record(ME, life=Life(Phase.RUNNING, innocent.pid)), _task(node))
    with pytest.raises(NotFound, match="already finished"):
        kill_exec(child, signal.SIGKILL)


@pytest.mark.parametrize("everyone", [False, True])
def test_a_task_whose_unit_is_gone_gets_no_signal(tmp_path: Path, everyone: bool) -> None:
    node = _node(tmp_path)
    task = _task(node)
    task.unit_gone = True
    call: Any = SimpleNamespace(recovered=False, begun=False)
    with pytest.raises(NotFound, match="already finished"):
        asyncio.run(kill(node, call, task, signal.SIGKILL, everyone))


@pytest.mark.parametrize("name", [INIT_PID, EXEC_PID, MAIN_PID])
def test_a_pid_file_with_another_process_is_not_ours(
    tmp_path: Path, innocent: subprocess.Popen[bytes], name: str
) -> None:
    node = _node(tmp_path)
    task = _task(node)
    node.store.put(ME, name, str(innocent.pid).encode())
    assert not exits.is_ours(task, innocent.pid)


def test_what_has_an_exit_record_has_ended_though_its_pid_is_in_its_cgroup(tmp_path: Path) -> None:
    mine = Path("/proc/self/cgroup").read_text().splitlines()[0].split(":", 2)[2]
    node = _node(tmp_path)
    node.store.make(ME)
    here = replace(ME, cgroup=mine.rstrip("/"))
    task = Task(node, Record(here, life=Life(Phase.RUNNING, os.getpid())))
    node.store.put(ME, INIT_PID, str(os.getpid()).encode())
    assert runs(node, task)
    node.store.put(ME, EXIT, b"abc 7 exit-code exited 9\n")
    assert not runs(node, task)
