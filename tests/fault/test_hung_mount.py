"""A mount that hangs costs its own task only: one that is never made, and one whose file system
does not answer any more."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import daemon_pid, kill_daemon
from tests.fault.test_hung_runtime import impatient
from tests.system.conftest import mount_folder, nobody_notices, rig
from tests.system.rootfs import fuse, mounts, refused, scopes, sh, spec_with
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["impatient", "mount_folder", "nobody_notices", "rig"]
pytestmark = [
    pytest.mark.system,
    pytest.mark.fault,
    pytest.mark.timeout(60),
    pytest.mark.roots("trixie"),
    pytest.mark.cgroup("v2"),
    pytest.mark.usefixtures("mount_folder"),
]

NEVER = "/usr/local/bin/never-fuse"


@pytest.fixture
def never(host: Host) -> Iterator[str]:
    """A FUSE program that never serves, and does not end either."""
    host.path(NEVER).write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    host.path(NEVER).chmod(0o755)
    yield "fuse3.never-fuse"
    host.path(NEVER).unlink()


@pytest.mark.usefixtures("impatient", "nobody_notices")
def test_a_mount_that_is_never_made_is_an_error_that_names_it(
    rig: Rig, host: Host, never: str
) -> None:
    _, text = refused(rig, "hung", [fuse(never)])
    assert "failed to mount rootfs component" in text
    assert "never-fuse" in text
    assert "did not end within 1.5 s (create_timeout) and was killed" in text
    assert scopes(host) == []


def _stopped(rig: Rig, host: Host) -> str:
    """A running container that waits for its rootfs, which does not answer any more: its bundle.

    (The program is stopped while it has nothing to do: the kernel lets nobody die whose question it
    has taken already.)"""
    sh(host, "mkdir upper work")
    script = "echo ready; read -r line; echo going; echo x >/new; cat /new"
    bundle = rig.bundle("hung", spec=spec_with("sh", "-c", script))
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id="hung", bundle=bundle.path, rootfs=[fuse()], **streams)
    rig.call("Start", id="hung")
    assert bundle.read_line("stdout") == b"ready\n"
    (scope,) = scopes(host)
    host.run(["systemctl", "kill", "-s", "STOP", scope])
    (bundle.outside / "stdin").write_text("\n")
    assert bundle.read_line("stdout") == b"going\n"
    return bundle.path


@pytest.mark.usefixtures("nobody_notices")
def test_a_container_whose_rootfs_hangs_is_killed_and_deleted(rig: Rig, host: Host) -> None:
    path = _stopped(rig, host)
    rig.call("State", id="hung")
    rig.call("Pids", id="hung")
    rig.call("Kill", id="hung", signal=signal.SIGKILL)
    assert rig.call("Wait", id="hung").exit_status == 137
    rig.call("Delete", id="hung")
    assert mounts(host, path) == []
    assert scopes(host) == []


def test_a_daemon_comes_up_beside_a_rootfs_that_hangs(rig: Rig, host: Host) -> None:
    path = _stopped(rig, host)
    before = daemon_pid(host)
    kill_daemon(host)
    eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")
    rig.call("State", id="hung")
    rig.call("Kill", id="hung", signal=signal.SIGKILL)
    assert rig.call("Wait", id="hung").exit_status == 137
    rig.call("Delete", id="hung")
    assert mounts(host, path) == []
    assert scopes(host) == []
