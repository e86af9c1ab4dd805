"""Checkpoint and restore with criu: the container goes on where it was, in a unit of its own."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import ShimError
from sdshim.pb import task_types_pb2
from tests.system.checkpoints import COUNT, WRITABLE, counting, images, options, say, to_restore
from tests.system.taskclient import ZERO_SECONDS, Rig, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.client import Ctr

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]
needs_criu = pytest.mark.roots("trixie", "forky")
"""Where criu works on every kernel that the tests are run on (3.17 of Debian 12 does not)."""

UNKNOWN, INVALID, PRECONDITION = 2, 3, 9
CREATED, RUNNING, STOPPED, PAUSED = (
    task_types_pb2.CREATED,
    task_types_pb2.RUNNING,
    task_types_pb2.STOPPED,
    task_types_pb2.PAUSED,
)


@pytest.fixture
def folder(host: Host) -> Iterator[str]:
    with images(host) as path:
        yield path


def _unit(host: Host, id_: str, name: str) -> str:
    shown = host.run(["systemctl", "show", "-P", name, f"sdshim-default-{id_}.service"])
    return str(shown.stdout.strip())


def _units(host: Host) -> list[str]:
    listed = host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "sdshim-*"])
    return [line.split()[0] for line in listed.stdout.splitlines() if ".service" in line]


@needs_criu
def test_a_checkpoint_leaves_the_container_running(rig: Rig, host: Host, folder: str) -> None:
    bundle = counting(rig, "here")
    wish = options(work_path=f"{folder}/work")
    rig.call("Checkpoint", id="here", path=folder, options=wish)
    assert rig.call("State", id="here").status == RUNNING
    assert host.path(f"{folder}/inventory.img").exists()
    assert host.path(f"{folder}/work/dump.log").exists()
    before = int(bundle.read_line("stdout"))
    assert int(bundle.read_line("stdout")) == before + 1
    assert _units(host) == ["sdshim-default-here.service"]
    event = rig.events.until("here", "checkpointed")
    assert event.body.checkpoint == folder
    assert rig.events.of("here") == ["create", "start", "checkpointed"]


@needs_criu
def test_a_checkpoint_of_a_paused_container_leaves_it_paused(rig: Rig, folder: str) -> None:
    bundle = counting(rig, "still")
    rig.call("Pause", id="still")
    rig.call("Checkpoint", id="still", path=folder)
    assert rig.call("State", id="still").status == PAUSED
    rig.call("Resume", id="still")
    bundle.read_line("stdout")
    rig.events.until("still", "resumed")
    wanted = ["create", "start", "paused", "checkpointed", "resumed"]
    assert rig.events.of("still") == wanted


@needs_criu
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_container_may_end_with_its_checkpoint(
    rig: Rig, host: Host, folder: str, *, paused: bool
) -> None:
    counting(rig, "last")
    if paused:
        rig.call("Pause", id="last")
    end = rig.begin("Wait", id="last")
    rig.call("Checkpoint", id="last", path=folder, options=options(exit=True))
    assert end.result(10).exit_status == 137  # as stock reports it: criu's SIGKILL
    assert rig.call("State", id="last").status == STOPPED
    assert rig.call("Delete", id="last").exit_status == 137
    rig.events.until("last", "delete")
    pause = ["paused"] if paused else []
    assert rig.events.of("last") == ["create", "start", *pause, "checkpointed", "exit", "delete"]
    assert not _units(host)


@needs_criu
def test_a_restored_container_goes_on_where_it_was(rig: Rig, host: Host, folder: str) -> None:
    old = counting(rig, "old", "i=0; while read -r x; do i=$((i+1)); echo $x $i; done; exit 5")
    say(old, b"one\n")
    assert old.read_line("stdout") == b"one 1\n"
    rig.call("Checkpoint", id="old", path=folder, options=options(exit=True))
    rig.call("Delete", id="old")
    new = to_restore(rig, "new", folder)
    state = rig.call("State", id="new")
    assert (state.pid, state.status, state.exited_at.seconds) == (0, CREATED, ZERO_SECONDS)
    assert not _units(host)
    assert (new.outside / "rootfs/bin").exists()  # mounted, for who changes it before Start
    pid = rig.call("Start", id="new").pid
    state = rig.call("State", id="new")
    assert (state.pid, state.status) == (pid, RUNNING)
    assert _unit(host, "new", "MainPID") == str(pid)
    own = _unit(host, "new", "ControlGroup")
    cgroups = host.run(["cat", f"/proc/{pid}/cgroup"]).stdout
    line = "0::" if host.cgroup == "v2" else ":name=systemd:"
    assert f"{line}{own}/container\n" in cgroups
    say(new, b"two\n")
    assert new.read_line("stdout") == b"two 2\n"
    rig.call("CloseIO", id="new", stdin=True)
    os.close(new.ends.pop("stdin"))
    assert rig.call("Wait", id="new").exit_status == 5
    assert new.read("stdout") == b""
    assert rig.call("Delete", id="new").exit_status == 5
    created = rig.events.until("new", "create").body
    assert (created.pid, created.checkpoint) == (0, folder)
    assert rig.events.until("new", "start").body.pid == pid
    rig.events.until("new", "delete")
    assert rig.events.of("new") == ["create", "start", "exit", "delete"]


@needs_criu
def test_what_says_itself_when_it_is_ready_is_active_at_once_when_it_is_restored(
    rig: Rig, host: Host, folder: str
) -> None:
    notes = {"io.sdshim.notify": "true"}
    counting(rig, "old", annotations=notes)
    assert _unit(host, "old", "ActiveState") == "activating"
    rig.call("Checkpoint", id="old", path=folder, options=options(exit=True))
    rig.call("Delete", id="old")
    new = to_restore(rig, "new", folder, notes)
    rig.call("Start", id="new")
    assert (_unit(host, "new", "Type"), _unit(host, "new", "ActiveState")) == ("forking", "active")
    number = int(new.read_line("stdout"))
    assert number > 1
    assert int(new.read_line("stdout")) == number + 1
    rig.call("Kill", id="new", signal=9)
    assert rig.call("Wait", id="new").exit_status == 137


@needs_criu
def test_a_process_that_ends_at_its_restore_fails_start_and_says_so(rig: Rig, folder: str) -> None:
    # criu interrupts the sleep: what is restored ends at once
    spec = {**spec_of("sh", "-c", "sleep 1000; exit 7"), "root": WRITABLE}
    old = rig.bundle("old", spec=spec)
    rig.call("Create", id="old", bundle=old.path)
    rig.call("Start", id="old")
    rig.call("Checkpoint", id="old", path=folder, options=options(exit=True))
    new = rig.bundle("new", spec=spec)
    rig.call("Create", id="new", bundle=new.path, checkpoint=folder)
    call = rig.begin("Start", id="new")
    try:
        call.result(15)
        assert rig.call("Wait", id="new").exit_status == 7  # systemd was the faster one
    except ShimError as error:
        said = r"OCI runtime restore failed: process \d+ was restored and ended before systemd"
        assert re.match(said, str(error))
        assert rig.call("State", id="new").status == CREATED


@pytest.mark.roots("forky")  # ctr of 1.7 sends options to runtimes called io.containerd.runc alone
def test_ctr_checkpoints_and_restores(ctr: Ctr, host: Host, folder: str) -> None:
    image = "docker.io/library/counted:checkpoint"
    ctr.start("one", "sh", "-c", COUNT.replace("echo $i", "echo $i >>/count"))
    try:
        ctr.call("task", "checkpoint", "--image-path", folder, "one")
        _forget_checkpoints(ctr)  # an image is named by the second
        assert ctr.status("one") == "RUNNING"
        ctr.call("container", "checkpoint", "--rw", "--task", "one", image)
        ctr.call("task", "checkpoint", "--exit", "one")
        ctr.await_status("one", "STOPPED")
        assert ctr.delete("one") == 137
        ctr.call("container", "restore", "--rw", "--live", "two", image)
        assert ctr.status("two") == "RUNNING"
        counted = ctr.call("task", "exec", "--exec-id", "x", "two", "cat", "/count").stdout
        assert counted.startswith("1\n2\n")
        assert _units(host) == ["sdshim-default-two.service"]
    finally:
        ctr.remove("one", "two")
        _forget_checkpoints(ctr)


def _forget_checkpoints(ctr: Ctr) -> None:
    for name in ctr.call("image", "ls", "-q").stdout.split():
        if "checkpoint" in name:
            ctr.call("image", "rm", name)
