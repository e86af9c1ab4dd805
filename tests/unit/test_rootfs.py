"""Which rootfs mount is mount(8)'s, which the helper's, and what the helper makes of its words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core import rootfs
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import Mount
from sdshim.core.unitspec import HostFacts
from sdshim.launcher import fuse, kernel, mounting
from tests.unit.test_record import IDENTITY

HOST = HostFacts(systemd=257, unified=True, launcher="/l", python="/p")
MAPS = ("uidmap=0:100000:65536", "gidmap=0:100000:65536")


def _line(mount: Mount) -> list[str]:
    (line,) = rootfs.lines(replace(IDENTITY, rootfs=(mount,)), HOST)
    return line


# --- who mounts


@pytest.mark.parametrize(
    "mount",
    [
        Mount("overlay", "overlay", "", ("lowerdir=/a:/b",)),
        Mount("bind", "/src", "/", ("rbind", "ro")),
        Mount("ext4", "/dev/mapper/x", "", ("loop0",)),
        Mount("fuse", "x", "", ()),
    ],
)
def test_the_plain_ones_are_mount8s(mount: Mount) -> None:
    assert _line(mount)[:5] == ["/bin/mount", "-n", "-i", "-N", "/proc/1/ns/mnt"]


@pytest.mark.parametrize(
    "mount",
    [
        Mount("overlay", "overlay", "", ("lowerdir=" + "/a" * 2000,)),
        Mount("tmpfs", "tmpfs", "data", ()),
        Mount("bind", "/src", "", ("rbind", *MAPS)),
        Mount("ext4", "/image", "", ("loop",)),
        Mount("fuse3.x", "src", "", ()),
        Mount("fuse.x", "src", "", ()),
    ],
)
def test_the_others_are_the_helpers(mount: Mount) -> None:
    line = _line(mount)
    assert line[:5] == ["/p", "-I", "-S", "/l/rootfs_mount.py", "/b/rootfs"]
    assert line[8:] == [mount.target, mount.type, mount.source, *mount.options]
    scope, slice_name, unit = line[5:8]
    if rootfs.is_fuse(mount):
        assert (slice_name, unit) == ("sdshim-default.slice", IDENTITY.unit)
        assert [scope] == rootfs.fuse_scopes(replace(IDENTITY, rootfs=(mount,)))
    else:
        assert {scope, slice_name, unit} == {"-"}


def test_each_fuse_mount_of_each_incarnation_has_a_scope_of_its_own() -> None:
    two = (Mount("fuse.x", "s"), Mount("bind", "/b"), Mount("fuse.x", "s"))
    mine = rootfs.fuse_scopes(replace(IDENTITY, rootfs=two))
    other = rootfs.fuse_scopes(replace(IDENTITY, rootfs=two, token="f" * 32))
    assert len({*mine, *other}) == 4


def test_a_bind_without_a_word_that_binds_gets_its_types() -> None:
    assert _line(Mount("rbind", "/src", "/x", ("ro",)))[9:] == ["rbind", "/src", "rbind", "ro"]


@pytest.mark.parametrize(
    "mount",
    [
        Mount("bind", "", "", ()),
        Mount("bind", "--help", "", ()),
        Mount("bind", "/a\0b", "", ()),
        Mount("bind", "/a", "b\0", ()),
        Mount("overlay", "overlay", "", ("X-containerd.mkfs=1",)),
        Mount("bind", "/a", "", MAPS[:1]),
        Mount("bind", "/a", "", MAPS[1:]),
        Mount("bind", "/a", "", (MAPS[0], "gidmap=0:1")),
        Mount("bind", "/a", "", (MAPS[0], "gidmap=0:1:-5")),
        Mount("bind", "/a", "", (MAPS[0], "gidmap=0:1:4294967296")),
        Mount("bind", "/a", "", (MAPS[0], "gidmap=0:1:2,")),
    ],
)
def test_what_cannot_be_mounted_is_refused(mount: Mount) -> None:
    with pytest.raises(InvalidArgument):
        rootfs.check(mount)


def test_a_fuse_program_has_its_own_way_with_maps() -> None:
    rootfs.check(Mount("fuse3.fuse-overlayfs", "overlay", "", ("uidmap=whatever",)))


# --- the helper's words


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("ro", kernel.MS_RDONLY),
        ("ro,rw", 0),
        ("rbind,ro", kernel.MS_BIND | kernel.MS_REC | kernel.MS_RDONLY),
        ("nosuid,nodev,noexec,dev", kernel.MS_NOSUID | kernel.MS_NOEXEC),
        ("sync,dirsync,mand,async,nomand", kernel.MS_DIRSYNC),
        ("relatime,strictatime,norelatime", kernel.MS_STRICTATIME),
        ("defaults", 0),
    ],
)
def test_words_set_and_clear_flags_in_their_order(words: str, flags: int) -> None:
    found = mounting.parse(words.split(","))
    assert (found.flags, found.data) == (flags, [])


def test_what_is_no_flag_is_the_file_systems() -> None:
    found = mounting.parse(["size=1m", "ro", "direct-io", "lowerdir=/a,b"])
    assert found.data == ["size=1m", "direct-io", "lowerdir=/a,b"]
    assert not found.direct_io


def test_loop_and_maps_are_not_the_file_systems() -> None:
    found = mounting.parse(["loop", "direct-io", "uidmap=0:1:2,3:4:5", "gidmap=0:1:2", "noload"])
    assert (found.loop, found.direct_io, found.data) == (True, True, ["noload"])
    assert (found.uidmap, found.gidmap) == ("0:1:2,3:4:5", "0:1:2")


def test_propagation_is_kept_apart_with_its_depth() -> None:
    assert mounting.parse(["rslave"]).propagation == kernel.MS_SLAVE | kernel.MS_REC
    assert mounting.parse(["shared"]).propagation == kernel.MS_SHARED
    assert mounting.parse(["rprivate"]).flags == 0


# --- overlays


def test_lowerdirs_become_relative_to_the_parent_they_share() -> None:
    data = ["index=off", "lowerdir=/s/12/fs:/s/1/fs:/s/123", "upperdir=/s/9/fs"]
    assert mounting.relative_lowerdirs(data) == (
        "/s",
        ["index=off", "upperdir=/s/9/fs", "lowerdir=12/fs:1/fs:123"],
    )


@pytest.mark.parametrize(
    "lower", ["/a/b", "/a:/b", "a/b:a/c", "/a/1::/a/2", "//a/1://a/2"], ids=str
)
def test_lowerdirs_that_share_nothing_stay(lower: str) -> None:
    data = [f"lowerdir={lower}"]
    assert mounting.relative_lowerdirs(data) == ("", data)


def test_a_colon_in_a_lowerdir_stays_behind_its_backslash() -> None:
    folder, data = mounting.relative_lowerdirs([r"lowerdir=/x\:y/a\:b:/x\:y/c"])
    assert (folder, data) == ("/x:y", [r"lowerdir=a\:b:c"])


_name = st.text("ab1.", min_size=1, max_size=4).filter(lambda n: n.strip("."))


@given(st.lists(st.lists(_name, min_size=1, max_size=4), min_size=2, max_size=5))
def test_relative_lowerdirs_name_the_same_folders(paths: list[list[str]]) -> None:
    whole = ["/" + "/".join(path) for path in paths]
    folder, data = mounting.relative_lowerdirs([f"lowerdir={':'.join(whole)}"])
    lower = data[0].removeprefix("lowerdir=").split(":")
    assert [f"{folder}/{path}" if folder else path for path in lower] == whole


# --- FUSE


def test_a_fuse_program_is_run_by_its_helper_in_a_scope_that_ends_after_the_container() -> None:
    unit = ["a::fuse-0.scope", "s.slice", "c.service"]
    argv = fuse.command(unit, "/place", "fuse3.prog", "src", ["a=1,2", "b"])
    at = argv.index("--")
    assert argv[at + 1 :] == [
        "mount.fuse3",
        "src",
        "/place",
        "-o",
        "a=1,2",
        "-o",
        "b",
        "-t",
        "prog",
    ]
    assert {"--scope", "--unit=a::fuse-0.scope", "--slice=s.slice"} <= set(argv[:at])
    assert "--property=Before=c.service" in argv[:at]
