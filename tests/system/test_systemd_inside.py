"""A container whose first process is systemd: Debian's own, from the host's root, in an ordinary
container (docs/systemd-containers.md)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sdshim.core import systemdmode
from sdshim.core.names import TaskKey
from tests.system.client import Ctr, events
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

HOME = "/tmp/inside"
ROOT = f"{HOME}/root"
# Of the host's root all that Debian's packages bring; what has been made of it is out of sight.
OWN = f"{HOME}/upper/etc/systemd/system"
MAKE = f"""
opaque() {{
    python3 -c 'import os, sys; os.setxattr(sys.argv[1], "trusted.overlay.opaque", b"y")' "$1"
}}
mkdir {HOME} && mount -t tmpfs tmpfs {HOME} && cd {HOME} && mkdir upper work root
for hidden in etc/systemd/system tmp var/lib/dbus; do
    mkdir -p upper/$hidden && opaque upper/$hidden
done
: >upper/etc/machine-id
: >upper/etc/fstab
mkdir {OWN}/multi-user.target.wants
ln -s /lib/systemd/system/multi-user.target {OWN}/default.target
ln -s /etc/systemd/system/tell.service {OWN}/multi-user.target.wants
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
"""
TELL = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=echo up and running
ExecStop=sh -c 'sleep 0.2; echo stopped >/told'
"""
UNIT = "sdshim-default-inside.service"
PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture
def root(host: Host) -> Iterator[Path]:
    """A root file system with Debian's systemd, and a unit of ours that tells of its stop."""
    host.run(["sh", "-euc", MAKE])
    try:
        host.path(f"{ROOT}/etc/systemd/system/tell.service").write_text(TELL)
        yield host.path(ROOT)
    finally:
        host.run(["sh", "-c", f"umount {ROOT} {HOME}; rmdir {HOME}"])


@contextmanager
def _booted(ctr: Ctr, *options: str, command: tuple[str, ...] = ("/sbin/init",)) -> Iterator[None]:
    words = ["-d", "--rootfs", "--env", PATH, *options]
    ctr.run("inside", *command, options=words, image=ROOT, check=True)
    try:
        yield
    finally:
        ctr.remove("inside")


def _inside(ctr: Ctr, *command: str, check: bool = True) -> str:
    """A command in the container; what it printed."""
    argv = ctr.argv("task", "exec", "--exec-id", "look", "inside", *command)
    return str(ctr.host.run(argv, check=check).stdout)


def _asked(ctr: Ctr) -> str:
    """What systemd in there says of itself, once it has made up its mind."""
    bus = "/run/systemd/private"
    eventually((ctr.host.path(f"/proc/{_pid(ctr)}/root") / bus[1:]).exists, "systemd is there")
    return _inside(ctr, "systemctl", "is-system-running", "--wait", check=False).strip()


def _pid(ctr: Ctr) -> str:
    return ctr.host.run(["systemctl", "show", "-P", "MainPID", UNIT]).stdout.strip()


def test_systemd_runs_in_an_ordinary_container_and_halts_when_its_unit_is_stopped(
    ctr: Ctr, root: Path
) -> None:
    host = ctr.host
    with events(host) as seen, _booted(ctr):
        assert _asked(ctr) == "running", _inside(ctr, "systemctl", "--failed")
        # It manages units in its own cgroup, which is the container's, where limits bind.
        _inside(ctr, "systemd-run", "--wait", "--quiet", "true")
        assert _inside(ctr, "cat", "/etc/machine-id").strip() == systemdmode.uuid(
            TaskKey("default", "inside")
        )
        of_ours = _inside(ctr, "journalctl", "-b", "-u", "tell.service", "-o", "cat")
        assert "up and running" in of_ours
        mark = "0::" if host.cgroup == "v2" else ":name=systemd:"
        groups = host.path(f"/proc/{_pid(ctr)}/cgroup").read_text().splitlines()
        (group,) = [line for line in groups if mark in line]
        assert group.endswith(f"{UNIT}/container/init.scope")
        host.run(["systemctl", "stop", UNIT])
        assert (root / "told").read_text() == "stopped\n"
        ctr.await_status("inside", "STOPPED")
        assert ctr.delete("inside") == 0
        seen.until("inside", "delete")
    (end,) = [body for body in seen.bodies("exit", "inside") if body["id"] == "inside"]
    assert not end.get("exit_status")


def test_the_annotation_switches_it_on_for_another_command_and_off_for_systemd(
    ctr: Ctr, root: Path
) -> None:
    note = ["--annotation", f"{systemdmode.ANNOTATION}=always"]
    with _booted(ctr, *note, command=("sh", "-c", "exec /lib/systemd/systemd")):
        assert _asked(ctr) == "running", _inside(ctr, "systemctl", "--failed")
    note = ["--annotation", f"{systemdmode.ANNOTATION}=false"]
    with _booted(ctr, *note):  # systemd may not mount what it misses
        ctr.await_status("inside", "STOPPED")


def test_what_is_no_systemd_gets_nothing_and_a_wrong_annotation_is_refused(ctr: Ctr) -> None:
    script = "env; cat /proc/mounts"
    found = ctr.run("inside", "sh", "-c", script)
    assert found.returncode == 0
    assert "container=" not in found.stdout
    assert "/var/log/journal" not in found.stdout
    options = ["--rm", "--annotation", f"{systemdmode.ANNOTATION}=yes"]
    refused = ctr.run("inside", "true", options=options)
    assert refused.returncode != 0
    assert "annotation io.sdshim.systemd: 'yes' is not one of true, false, always" in refused.stderr
