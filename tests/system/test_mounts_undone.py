"""Rootfs mounts with something behind them, a loop device or a program; and how all are undone."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.system.rootfs import (
    MAPS,
    WORK,
    create,
    fuse,
    loops,
    mounts,
    output,
    overlay,
    refused,
    scopes,
    sh,
    spec_with,
    tmpfs,
)
from tests.system.taskclient import ROOTFS, Rig, eventually, no_daemon

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("mount_folder"),
]

UNKNOWN, INVALID = 2, 3


# --- loop


@pytest.fixture
def image(host: Host) -> str:
    """An ext4 file system with busybox in a file."""
    sh(host, f"truncate -s 16M image; mkfs.ext4 -q -d {ROOTFS} image")
    return f"{WORK}/image"


@pytest.mark.parametrize("target", ["", "/a"])
def test_a_loop_mount_takes_a_device_and_gives_it_back(
    rig: Rig, host: Host, image: str, target: str
) -> None:
    sh(host, "mkdir -p upper/a work")
    mount = {"type": "ext4", "source": image, "target": target, "options": ["loop"]}
    script = f"echo kept >{target}/new; grep -c ext4 /proc/mounts"
    assert output(rig, "loop", [overlay(ROOTFS), mount], script) == "1\n"
    assert loops(host) == []
    sh(host, "debugfs -R 'cat new' image 2>/dev/null | grep -qx kept")


def test_a_read_only_loop_mount_does_not_touch_its_file(rig: Rig, host: Host, image: str) -> None:
    before = sh(host, "sha256sum image")
    mount = {"type": "ext4", "source": image, "options": ["ro", "loop"]}
    bundle = create(rig, "ro", [mount])
    device = loops(host)[0].split()[0]
    shown = host.run(["losetup", "-n", "-O", "RO,AUTOCLEAR,DIO", "-l", device]).stdout
    assert shown.split() == ["1", "1", "0"]
    rig.call("Delete", id="ro")
    assert sh(host, "sha256sum image") == before
    assert mounts(host, bundle.path) == []


def test_direct_io_of_a_loop_device(rig: Rig, host: Host) -> None:
    where = "/var/tmp/sdshim-loop"  # a tmpfs may not do it
    host.run(["sh", "-ec", f"truncate -s 16M {where}; mkfs.ext4 -q -d {ROOTFS} {where}"])
    try:
        create(rig, "dio", [{"type": "ext4", "source": where, "options": ["loop", "direct-io"]}])
        listed = host.run(["losetup", "-n", "-O", "DIO", "-j", where]).stdout
        rig.call("Delete", id="dio")
        assert listed.split() == ["1"]
    finally:
        host.run(["rm", where])


def test_an_id_mapped_loop_mount(rig: Rig, host: Host, image: str) -> None:
    bundle = create(rig, "both", [{"type": "ext4", "source": image, "options": ["loop", *MAPS]}])
    rootfs = f"{bundle.path}/rootfs"
    assert host.run(["stat", "-c", "%u", f"{rootfs}/bin"]).stdout == "100000\n"
    assert len(mounts(host, rootfs)) == 1
    rig.call("Delete", id="both")


def test_a_loop_mount_that_fails_leaves_no_device(rig: Rig, host: Host) -> None:
    sh(host, "head -c 1M /dev/zero >image")
    code, text = refused(
        rig, "bad", [{"type": "ext4", "source": f"{WORK}/image", "options": ["loop"]}]
    )
    assert code == UNKNOWN
    assert text.startswith(f"failed to mount rootfs component: mount ext4 {WORK}/image on ")
    assert text.endswith("/rootfs: Invalid argument")
    assert loops(host) == []


# --- FUSE


@pytest.mark.parametrize("kind", ["fuse3.fuse-overlayfs", "fuse.fuse-overlayfs"])
def test_a_fuse_program_lives_as_long_as_its_mount(rig: Rig, host: Host, kind: str) -> None:
    sh(host, "mkdir upper work")
    bundle = create(rig, "fuse", [fuse(kind)], "sh", "-c", "echo late >/late; exit 3")
    (scope,) = scopes(host)
    assert scope.startswith("sdshim-default-fuse::fuse-0-")
    shown = host.run(["systemctl", "show", "-P", "Slice,Before", scope]).stdout
    assert "sdshim-default.slice" in shown
    assert "sdshim-default-fuse.service" in shown
    rig.call("Start", id="fuse")
    assert rig.call("Wait", id="fuse").exit_status == 3
    # The container has ended, its rootfs is still served.
    assert host.run(["cat", f"{bundle.path}/rootfs/late"]).stdout == "late\n"
    rig.call("Delete", id="fuse")
    assert mounts(host, bundle.path) == []
    assert scopes(host) == []
    assert sh(host, "cat upper/late") == "late\n"


def test_a_fuse_mount_with_a_target(rig: Rig, host: Host) -> None:
    sh(host, "mkdir -p upper/a work u2 w2")
    inner = {**overlay(ROOTFS, upper="u2", work="w2"), "type": "fuse3.fuse-overlayfs"}
    printed = output(
        rig, "inner", [overlay(ROOTFS), inner | {"target": "/a"}], "/a/bin/sh -c 'echo in'"
    )
    assert printed == "in\n"


def test_the_same_id_can_be_used_at_once_after_a_fuse_mount(rig: Rig, host: Host) -> None:
    sh(host, "mkdir upper work")
    for _ in range(3):
        assert output(rig, "again", [fuse()], "echo x") == "x\n"
        rig.give_up(rig._bundles[-1])


def test_a_fuse_program_that_fails_is_quoted_and_leaves_nothing(rig: Rig, host: Host) -> None:
    mount = fuse() | {"options": ["lowerdir=/nonexistent"]}
    code, text = refused(rig, "bad", [mount])
    assert code == UNKNOWN
    assert text.startswith("failed to mount rootfs component: ")
    assert "cannot read lower dirs: No such file or directory" in text
    assert scopes(host) == []


def test_a_missing_fuse_program_is_named(rig: Rig, host: Host) -> None:
    code, text = refused(rig, "none", [fuse("fuse3.no-such-program")])
    assert code == UNKNOWN
    assert "no-such-program" in text
    assert scopes(host) == []


def test_a_fuse_program_that_hangs_is_ended_when_containerd_gives_up(rig: Rig, host: Host) -> None:
    program = host.path("/usr/local/bin/hanging-fuse")
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    try:
        bundle = rig.bundle("hung", spec=spec_with("true"))
        mount = fuse("fuse3.hanging-fuse")
        sent = rig.begin("Create", id="hung", bundle=bundle.path, rootfs=[mount])
        eventually(lambda: len(scopes(host)) == 1, "the program has a scope")
        assert rig.give_up(bundle).exit_status == 137
        error = sent.exception(15)
        assert "failed to mount rootfs component" in str(error)
        eventually(lambda: scopes(host) == [], "the program has ended")
    finally:
        program.unlink()


def test_a_daemon_that_dies_while_a_fuse_program_starts_goes_on_with_create(
    rig: Rig, host: Host
) -> None:
    sh(host, "mkdir upper work; mkfifo go")
    program = host.path("/usr/local/bin/slow-fuse")
    program.write_text(f'#!/bin/sh\nread x <{WORK}/go\nexec fuse-overlayfs "$@"\n')
    program.chmod(0o755)
    try:
        bundle = rig.bundle("slow", spec=spec_with("sh", "-c", "exit 6"))
        mount = fuse("fuse3.slow-fuse")
        sent = rig.begin("Create", id="slow", bundle=bundle.path, rootfs=[mount])
        eventually(lambda: len(scopes(host)) == 1, "the program has a scope")
        host.run(["systemctl", "kill", "-s", "KILL", "sdshim.service"])
        sh(host, "echo >go")
        assert sent.result(15).pid
        rig.call("Start", id="slow")
        assert rig.call("Wait", id="slow").exit_status == 6
        rig.call("Delete", id="slow")
        assert mounts(host, bundle.path) == []
        assert scopes(host) == []
    finally:
        program.unlink()


# --- undoing


def test_what_others_mounted_in_a_rootfs_goes_with_it(rig: Rig, host: Host) -> None:
    sh(host, "mkdir -p upper/a upper/b work")
    bundle = create(rig, "guests", [overlay(ROOTFS)])
    rootfs = f"{bundle.path}/rootfs"
    host.run(["mount", "-t", "tmpfs", "tmpfs", f"{rootfs}/a"])
    host.run(["mkdir", f"{rootfs}/a/with space"])
    host.run(["mount", "-t", "tmpfs", "tmpfs", f"{rootfs}/a/with space"])
    host.run(["mount", "-t", "tmpfs", "tmpfs", f"{rootfs}/a/with space"])
    rig.call("Delete", id="guests")
    assert mounts(host, bundle.path) == []


@pytest.mark.parametrize("by", ["Delete", "the launcher"])
def test_mounts_below_a_dead_fuse_program_go_with_its_mount(rig: Rig, host: Host, by: str) -> None:
    sh(host, "mkdir -p upper/a/b work")
    bundle = create(rig, "dead", [fuse(), tmpfs("/a")])
    rig.call("Kill", id="dead", signal=9)
    rig.call("Wait", id="dead")
    host.run(["systemctl", "kill", "-s", "KILL", *scopes(host)])
    eventually(lambda: scopes(host) == [], "the program is dead")
    if by == "Delete":
        rig.call("Delete", id="dead")
    else:
        with no_daemon(host):
            rig.give_up(bundle)
    assert mounts(host, bundle.path) == []


def test_a_bundle_behind_a_symbolic_link_is_unmounted(rig: Rig, host: Host) -> None:
    """containerd's state directory may be given as /var/run/containerd."""
    sh(host, "mkdir -p upper/a work")
    bundle = rig.bundle("linked", spec=spec_with("true"))
    link = host.path(f"{WORK}/link")
    link.symlink_to("../b/default")
    path = f"{WORK}/link/linked"
    rig.call("Create", id="linked", bundle=path, rootfs=[overlay(ROOTFS), tmpfs("/a")])
    assert len(mounts(host, bundle.path)) == 2
    rig.call("Delete", id="linked")
    assert mounts(host, bundle.path) == []


def test_a_busy_rootfs_is_tried_again_until_it_is_free(rig: Rig, host: Host) -> None:
    sh(host, "mkdir upper work")
    bundle = create(rig, "busy", [overlay(ROOTFS)])
    argv = ["sh", "-c", f"cd {bundle.path}/rootfs && echo there && exec sleep 0.5"]
    holder = host.popen(argv, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"there\n"
    rig.call("Delete", id="busy")
    assert mounts(host, bundle.path) == []
    holder.communicate()


@pytest.mark.parametrize("kind", ["fuse", "loop", "overlay"])
def test_the_launchers_delete_undoes_all_mounts_without_a_daemon(
    rig: Rig, host: Host, image: str, kind: str
) -> None:
    sh(host, "mkdir -p upper/a work")
    rootfs = {
        "fuse": [fuse()],
        "loop": [overlay(ROOTFS), {"type": "ext4", "source": image, "options": ["loop"]}],
        "overlay": [overlay(ROOTFS), tmpfs("/a")],
    }[kind]
    bundle = create(rig, "alone", rootfs)
    rig.call("Start", id="alone")
    with no_daemon(host):
        assert rig.give_up(bundle).exit_status == 137
        assert mounts(host, bundle.path) == []
        eventually(lambda: scopes(host) == [], "the FUSE program's scope is gone")
