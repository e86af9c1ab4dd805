"""What is checked by its name is something else when it is used: somebody exchanges it for a link
all the time. Nothing outside of the bundle and the rootfs is written, mounted on, or unmounted."""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import Code, ShimError
from tests.system.rootfs import BASE, WORK, mounts, sh, spec_with, tmpfs
from tests.system.taskclient import ROOTFS, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(60),
    pytest.mark.roots("forky"),
    pytest.mark.cgroup("v2"),
    pytest.mark.usefixtures("mount_folder"),
]

ROUNDS = int(os.environ.get("SDSHIM_SWAPS", "3"))
OUTSIDE = f"{WORK}/outside"
EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)


@contextmanager
def swapped(path: Path, target: str) -> Iterator[None]:
    """While the block lasts, `path` is by turns what it was and a link to `target`."""
    libc = ctypes.CDLL(None, use_errno=True)
    other = path.with_name(f"{path.name}.other")
    other.symlink_to(target)
    names = os.fsencode(path), os.fsencode(other)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():  # the program may have renamed or removed one of them
            libc.renameat2(-100, names[0], -100, names[1], EXCHANGE)

    thread = threading.Thread(target=swap, name="swap")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for name in (path, other):
            if name.is_symlink():
                name.unlink()
        with suppress(FileNotFoundError):
            if not path.exists():
                other.rename(path)


def _life(rig: Rig, id_: str, **fields: Any) -> bool:
    """Create and Delete, whatever they say."""
    try:
        rig.call("Create", id=id_, **fields)
    except ShimError:
        return False
    with suppress(ShimError):
        rig.call("Start", id=id_)
        rig.call("Kill", id=id_, signal=9)
        rig.call("Wait", id=id_)
    with suppress(ShimError):
        rig.call("Delete", id=id_)
    return True


@pytest.fixture
def outside(host: Host) -> Iterator[Path]:
    """A folder with a mount and a file in it that are none of ours."""
    sh(
        host,
        "mkdir -p outside/b && mount -t tmpfs tmpfs outside/b && echo precious >outside/b/file",
    )
    before = mounts(host, OUTSIDE)
    yield host.path(OUTSIDE)
    after, text = mounts(host, OUTSIDE), sh(host, "cat outside/b/file; ls -A outside outside/b")
    sh(host, "! mountpoint -q outside/b || umount outside/b")
    assert after == before
    assert text == "precious\noutside:\nb\n\noutside/b:\nfile\n"


def test_a_target_below_the_rootfs_is_neither_mounted_on_nor_unmounted_elsewhere(
    rig: Rig, host: Host, outside: Path
) -> None:
    """The folder is another container's too: its rootfs, or a volume in it."""
    sh(host, f"mkdir -p shared/a/b && cp -a {ROOTFS}/. shared")
    rootfs = [{**BASE, "source": f"{WORK}/shared"}, tmpfs("a/b")]
    for number in range(ROUNDS):
        id_ = f"swapped{number}"
        bundle = rig.bundle(id_, spec=spec_with("sleep", "1000"))
        with swapped(host.path(f"{WORK}/shared/a"), OUTSIDE):
            _life(rig, id_, bundle=bundle.path, rootfs=rootfs)
        rig.give_up(bundle)
        assert mounts(host, bundle.path) == []


def test_the_launchers_delete_unmounts_nothing_elsewhere(
    rig: Rig, host: Host, outside: Path
) -> None:
    sh(host, f"mkdir -p shared/a/b && cp -a {ROOTFS}/. shared")
    rootfs = [{**BASE, "source": f"{WORK}/shared"}, tmpfs("a/b")]
    for number in range(ROUNDS // 3):  # each waits 3 s for the daemon
        bundle = rig.bundle(f"given-up{number}", spec=spec_with("sleep", "1000"))
        rig.call("Create", id=bundle.id, bundle=bundle.path, rootfs=rootfs)
        host.run(["systemctl", "kill", "-s", "STOP", "sdshim.service"])
        try:
            with swapped(host.path(f"{WORK}/shared/a"), OUTSIDE):
                rig.launcher(bundle, "delete")
        finally:
            host.run(["systemctl", "kill", "-s", "CONT", "sdshim.service"])
        rig.give_up(bundle)
        assert mounts(host, bundle.path) == []


@pytest.mark.parametrize("name", ["config.json", "sdshim.token", ".config.json.new", "rootfs"])
def test_a_file_of_the_bundle_that_becomes_a_link_is_not_written_through(
    rig: Rig, host: Host, outside: Path, name: str
) -> None:
    precious = outside / "b/file"
    for number in range(ROUNDS):
        bundle = rig.bundle(f"file{number}", "sleep", "1000")
        path = bundle.outside / name
        if not path.exists():
            path.touch()
        with swapped(path, str(precious)):
            _life(rig, bundle.id, bundle=bundle.path)
        (bundle.outside / "config.json").unlink(missing_ok=True)  # it may be the link by now
        bundle.write_spec(spec_of("true"))
        rig.give_up(bundle)


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_fifo_that_becomes_a_link_empties_no_file(
    rig: Rig, host: Host, outside: Path, stream: str
) -> None:
    precious = outside / "b/file"
    for number in range(ROUNDS):
        bundle = rig.bundle(f"fifo{number}", "sh", "-c", "echo output; echo output >&2")
        fifo = bundle.fifo(stream)
        client = os.open(bundle.outside / stream, os.O_RDWR)  # the unit's open waits for nobody
        with swapped(bundle.outside / stream, f"{OUTSIDE}/b/file"):
            _life(rig, bundle.id, bundle=bundle.path, **{stream: fifo})
        os.close(client)
        assert precious.read_text().startswith("precious\n")
        precious.write_text("precious\n")  # what is a file when it is opened is appended to
        rig.give_up(bundle)


def test_a_bundle_that_others_can_change_is_refused(rig: Rig, host: Host) -> None:
    for change in (["chmod", "0770"], ["chmod", "0701"], ["chown", "65534"]):
        bundle = rig.bundle(f"b{change[1]}", "sleep", "1000")
        host.run([*change, bundle.path])
        if change[1] == "0701":
            rig.call("Create", id=bundle.id, bundle=bundle.path)
            continue
        code, text = rig.refused("Create", id=bundle.id, bundle=bundle.path)
        assert code == Code.INVALID_ARGUMENT
        assert "can be changed by others than root" in text


def test_a_rootfs_that_is_a_link_is_not_mounted_on(rig: Rig, host: Host, outside: Path) -> None:
    bundle = rig.bundle("linked", spec=spec_with("true"))
    (bundle.outside / "rootfs").symlink_to(OUTSIDE)
    code, text = rig.refused("Create", id="linked", bundle=bundle.path, rootfs=[BASE])
    assert code == Code.INVALID_ARGUMENT
    assert "rootfs is a symbolic link" in text
