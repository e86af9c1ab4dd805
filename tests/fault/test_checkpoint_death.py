"""The daemon is killed in the middle of a checkpoint, of a Create that mounts for a restore, and of
a restoring Start: the units work on, the next daemon waits for them, each thing happens once."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import ShimError
from sdshim.pb import task_types_pb2
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.checkpoints import (
    HELD_FAILS,
    HELD_WORKS,
    await_criu,
    begin_restore,
    counting,
    fake_criu,
    hold_criu,
    images,
    let_go,
    options,
    to_restore,
)
from tests.system.conftest import rig
from tests.system.taskclient import Rig, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

__all__ = ["rig"]
pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(60)]
needs_criu = pytest.mark.roots("trixie", "forky")

CREATED, RUNNING = task_types_pb2.CREATED, task_types_pb2.RUNNING


@pytest.fixture
def folder(host: Host) -> Iterator[str]:
    with images(host) as path:
        yield path


def _kill(host: Host) -> None:
    before = daemon_pid(host)
    kill_daemon(host)
    eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")


def _kill_while_criu_is_held(host: Host) -> None:
    await_criu(host)
    _kill(host)
    let_go(host)


def _running_with(rig: Rig, id_: str, task_options: object) -> None:
    bundle = rig.bundle(id_, "sh", "-c", "while :; do sleep 0.1; done")
    rig.call("Create", id=id_, bundle=bundle.path, options=task_options)
    rig.call("Start", id=id_)


def test_a_checkpoint_that_fails_after_the_daemons_death_is_told(
    rig: Rig, host: Host, folder: str
) -> None:
    with fake_criu(host, HELD_FAILS) as task_options:
        _running_with(rig, "cut", task_options)
        hold_criu(host)
        call = rig.begin("Checkpoint", id="cut", path=folder)
        _kill_while_criu_is_held(host)
        with pytest.raises(ShimError, match=r"^runc did not terminate successfully: "):
            call.result(20)
    assert rig.call("State", id="cut").status == RUNNING
    rig.call("Kill", id="cut", signal=signal.SIGKILL)
    assert rig.call("Wait", id="cut").exit_status == 137
    rig.events.until("cut", "exit")
    assert rig.events.of("cut") == ["create", "start", "exit"]


def test_a_restore_that_fails_after_the_daemons_death_leaves_the_task_created(
    rig: Rig, host: Host, folder: str
) -> None:
    host.run(["mkdir", folder])
    host.run(["touch", f"{folder}/inventory.img"])
    host.path(f"{folder}/descriptors.json").write_text("[]")
    with fake_criu(host, HELD_FAILS) as task_options:
        to_restore(rig, "cut", folder, options=task_options)
        hold_criu(host)
        call = rig.begin("Start", id="cut")
        _kill_while_criu_is_held(host)
        with pytest.raises(ShimError, match=r"^OCI runtime restore failed: "):
            call.result(20)
    assert rig.call("State", id="cut").status == CREATED
    assert not rig.unit_exists("cut")
    rig.call("Delete", id="cut")
    rig.events.until("cut", "delete")
    assert rig.events.of("cut") == ["create", "delete"]


def test_a_container_that_is_given_up_in_its_checkpoint_is_gone(
    rig: Rig, host: Host, folder: str
) -> None:
    with fake_criu(host, HELD_FAILS) as task_options:
        bundle = rig.bundle("lost", "sh", "-c", "while :; do sleep 0.1; done")
        rig.call("Create", id="lost", bundle=bundle.path, options=task_options)
        rig.call("Start", id="lost")
        hold_criu(host)
        call = rig.begin("Checkpoint", id="lost", path=folder)
        await_criu(host)
        told = rig.give_up(bundle)
        let_go(host)
        assert told.exit_status == 137
        with pytest.raises(ShimError):
            call.result(20)
    eventually(lambda: not rig.unit_exists("lost"), "its unit is gone")


@needs_criu
@pytest.mark.parametrize("exits", [False, True], ids=["goes on", "exits"])
def test_a_checkpoint_works_on_when_the_daemon_dies(
    rig: Rig, host: Host, folder: str, *, exits: bool
) -> None:
    with fake_criu(host, HELD_WORKS) as task_options:
        _running_with(rig, "cut", task_options)
        end = rig.begin("Wait", id="cut")
        hold_criu(host)
        call = rig.begin("Checkpoint", id="cut", path=folder, options=options(exit=exits))
        _kill_while_criu_is_held(host)
        call.result(20)
    if not exits:
        assert rig.call("State", id="cut").status == RUNNING
        rig.call("Kill", id="cut", signal=signal.SIGKILL)
    assert end.result(10).exit_status == 137
    rig.events.until("cut", "exit")
    assert rig.events.of("cut") == ["create", "start", "checkpointed", "exit"]


@needs_criu
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("method", ["Checkpoint", "Create", "Start"])
def test_at_any_moment_the_next_daemon_goes_on(
    rig: Rig, host: Host, folder: str, method: str, pause: float
) -> None:
    def strike() -> None:
        time.sleep(pause)  # the moment is what is tried here
        _kill(host)

    counting(rig, "old")
    call = rig.begin("Checkpoint", id="old", path=folder, options=options(exit=True))
    if method == "Checkpoint":
        strike()
    call.result(20)
    assert rig.call("Wait", id="old").exit_status == 137
    if method == "Create":
        new, call = begin_restore(rig, "new", folder)
        strike()
        assert call.result(20).pid == 0
    else:
        new = to_restore(rig, "new", folder)
    call = rig.begin("Start", id="new")
    if method == "Start":
        strike()
    pid = call.result(20).pid
    state = rig.call("State", id="new")
    assert (state.pid, state.status) == (pid, RUNNING)
    first = int(new.read_line("stdout"))
    assert int(new.read_line("stdout")) == first + 1
    rig.call("Kill", id="new", signal=signal.SIGKILL)
    assert rig.call("Wait", id="new").exit_status == 137
    rig.call("Delete", id="new")
    rig.events.until("new", "delete")
    assert rig.events.of("old") == ["create", "start", "checkpointed", "exit"]
    assert rig.events.of("new") == ["create", "start", "exit", "delete"]
    assert not list((new.outside / "rootfs").iterdir())
