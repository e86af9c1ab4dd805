"""A real mount that hangs in the kernel, where no signal ends the wait: a file system that takes a
question and never answers (silentfs.py). Its own task waits; nobody else does."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import Code
from tests.fault.marks import fault_on
from tests.fault.silentfs import TAKEN
from tests.fault.test_hung_runtime import impatient
from tests.system.rootfs import BASE, WORK, mounts, scopes, sh, spec_with
from tests.system.taskclient import ROOTFS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Bundle, Rig

__all__ = ["impatient"]
pytestmark = [
    *fault_on("trixie", "v2"),
    pytest.mark.usefixtures("mount_folder", "silentfs", "nobody_notices"),
]

PROGRAM = "/usr/local/bin/silentfs"


@pytest.fixture
def silentfs(host: Host) -> Iterator[None]:
    """The program, where mount.fuse3 finds it."""
    shutil.copy(Path(__file__).with_name("silentfs.py"), host.path(PROGRAM))
    host.path(PROGRAM).chmod(0o755)
    yield
    host.path(PROGRAM).unlink()
    host.path(TAKEN).unlink()


def _silent(source: str, target: str = "") -> dict[str, Any]:
    return {"type": "fuse3.silentfs", "source": source, "target": target, "options": ["rw"]}


def _running(rig: Rig, host: Host, source: str, *command: str) -> Bundle:
    """A running container that has such a file system at /mnt."""
    sh(host, f"mkdir -p base/mnt && cp -a {ROOTFS}/. base")
    rootfs = [{**BASE, "source": f"{WORK}/base"}, _silent(source, "mnt")]
    bundle = rig.bundle("hung", spec=spec_with(*command))
    rig.call("Create", id="hung", bundle=bundle.path, rootfs=rootfs)
    rig.call("Start", id="hung")
    return bundle


def _hangs(host: Host, pid: int) -> bool:
    """Whether a process waits in the kernel, and no signal reaches it (proc(5))."""
    return host.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def _another_lives(rig: Rig, id_: str) -> None:
    """The whole life of another container, beside."""
    rig.running(id_)
    rig.call("Kill", id=id_, signal=signal.SIGKILL)
    assert rig.call("Wait", id=id_).exit_status == 137
    rig.call("Delete", id=id_)


def _end_program(host: Host) -> None:
    """What an administrator can do (docs/faults.md)."""
    (scope,) = scopes(host)
    host.run(["systemctl", "kill", "-s", "KILL", scope])


def test_a_process_that_no_signal_ends_holds_up_its_own_task_only(rig: Rig, host: Host) -> None:
    bundle = _running(rig, host, "lookup", "cat", "/mnt/x")
    pid = rig.call("State", id="hung").pid
    eventually(host.path(TAKEN).exists, "its question is taken")
    end = rig.begin("Wait", id="hung")
    rig.call("Kill", id="hung", signal=signal.SIGKILL)
    eventually(lambda: _hangs(host, pid), "it hangs")
    for method in ("State", "Pids", "Stats"):
        rig.call(method, id="hung")
    assert rig.refused("Delete", id="hung") == (Code.UNKNOWN, "cannot delete a running process")
    _another_lives(rig, "beside")
    assert not end.done()
    _end_program(host)
    assert end.result(10).exit_status == 137
    rig.call("Delete", id="hung")
    assert mounts(host, bundle.path) == []


@pytest.mark.usefixtures("impatient")
def test_a_create_whose_runtime_no_signal_ends_fails_at_its_time(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("hung", spec=spec_with("true"))
    begun = rig.begin("Create", id="hung", bundle=bundle.path, rootfs=[_silent("lookup")])
    _another_lives(rig, "beside")
    error = begun.exception(30)
    assert "create_timeout" in str(error)
    assert mounts(host, bundle.path) == []
    assert scopes(host) == []


@pytest.mark.by_hand("SDSHIM_FAULT_FULL")
def test_an_umount_that_does_not_return_delays_its_own_delete_only(rig: Rig, host: Host) -> None:
    """30 s until it is given up, 8 s until the program is killed."""
    sh(host, "truncate -s 1M image")
    device = sh(host, "losetup --find --show image").strip()
    try:
        bundle = _running(rig, host, f"destroy@{device}", "sleep", "1000")
        rig.call("Kill", id="hung", signal=signal.SIGKILL)
        assert rig.call("Wait", id="hung").exit_status == 137
        deleted = rig.begin("Delete", id="hung")
        eventually(host.path(TAKEN).exists, "umount2 hangs")
        _another_lives(rig, "beside")
        assert not deleted.done()
        deleted.result(45)
        assert mounts(host, bundle.path) == []
        assert scopes(host) == []
    finally:
        host.run(["losetup", "--detach", device])
