"""Rootfs mounts of a Create (protocol 9): targets, flags, many layers, mapped ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.rootfs import (
    BASE,
    MAPS,
    WORK,
    create,
    mounts,
    output,
    overlay,
    refused,
    sh,
    tmpfs,
)
from tests.system.taskclient import HOME, ROOTFS, Rig

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("mount_folder"),
]

UNKNOWN, INVALID = 2, 3


# --- targets


def test_mounts_with_targets_are_made_in_order(rig: Rig, host: Host) -> None:
    sh(host, f"mkdir upper work src; echo kept >src/file; mkdir {WORK}/upper/a")
    again = {"type": "bind", "source": f"{WORK}/src", "target": "a/../a", "options": ["bind", "ro"]}
    printed = output(
        rig,
        "targets",
        [overlay(ROOTFS), tmpfs("/a", "size=1m"), again],
        "cat /a/file; touch /a/x || echo ro; grep -c ' /a ' /proc/mounts",
    )
    assert printed == "kept\nro\n2\n"


def test_a_target_does_not_lead_out_of_the_rootfs(rig: Rig, host: Host) -> None:
    sh(host, "mkdir -p upper work upper/etc; ln -s /etc upper/out; ln -s ../../../../etc upper/up")
    before = mounts(host, "/etc")
    targets = ["out", "/up", "../../../etc"]
    printed = output(
        rig, "inside", [overlay(ROOTFS), *map(tmpfs, targets)], "grep -c ' /etc ' /proc/mounts"
    )
    assert printed == "3\n"
    assert mounts(host, "/etc") == before


def test_a_target_that_is_not_there_is_an_error_and_undoes_the_mounts_before(
    rig: Rig, host: Host
) -> None:
    sh(host, "mkdir upper work")
    code, text = refused(rig, "nowhere", [overlay(ROOTFS), tmpfs("/no/where")])
    assert code == UNKNOWN
    assert text == (
        "failed to mount rootfs component: mount tmpfs tmpfs on"
        f" {HOME}/b/default/nowhere/rootfs/no/where: No such file or directory (/no/where)"
    )


def test_a_file_can_be_mounted_on_a_file(rig: Rig, host: Host) -> None:
    sh(host, "mkdir upper work; echo ours >file; touch upper/file")
    mount = {"type": "bind", "source": f"{WORK}/file", "target": "/file", "options": ["bind"]}
    assert output(rig, "file", [overlay(ROOTFS), mount], "cat /file") == "ours\n"


# --- flags

FLAGS = {
    "ro": "ro",
    "nosuid": "nosuid",
    "nodev": "nodev",
    "noexec": "noexec",
    "noatime": "noatime",
    "nodiratime": "nodiratime",
    "relatime": "relatime",
    "strictatime": "",
    "ro,rw": "rw",
    "nosuid,suid": "",
    "nodev,dev": "",
    "noexec,exec": "",
    "noatime,atime": "relatime",
    "nodiratime,diratime": "",
    "strictatime,nostrictatime": "relatime",
    "sync": "",
    "dirsync": "",
    "async": "",
    "defaults": "rw",
}


@pytest.mark.parametrize("how", ["by mount(8)", "by the helper"])
def test_each_word_sets_or_clears_its_flag(rig: Rig, host: Host, how: str) -> None:
    """Stacked on the rootfs itself they are mount(8)'s, with a target the helper's."""
    names = [f"m{number}" for number in range(len(FLAGS))]
    sh(host, f"mkdir -p upper work; cd upper; mkdir {' '.join(names)}")
    targets = names if how == "by the helper" else [""] * len(names)
    below = [tmpfs(t, *words.split(",")) for t, words in zip(targets, FLAGS, strict=True)]
    last = [BASE] if how == "by mount(8)" else []  # a root that a container can start from
    bundle = create(rig, "flags", [overlay(ROOTFS), *below, *last])
    made = mounts(host, f"{bundle.path}/rootfs")[1:]
    for one, (words, wanted) in zip(made, FLAGS.items(), strict=False):
        assert one.type == "tmpfs"
        assert set(wanted.split(",")) - {""} <= set(one.options), (words, one)
        on = {"nosuid", "nodev", "noexec", "ro", "noatime", "nodiratime"} & set(one.options)
        assert on == {wanted} & on, (words, one)
        if words == "strictatime":
            assert "relatime" not in one.options
        if words in ("sync", "dirsync"):
            assert words in one.data
    rig.call("Delete", id="flags")
    assert mounts(host, bundle.path) == []


@pytest.mark.parametrize("target", ["", "/a"], ids=["by mount(8)", "by the helper"])
def test_a_read_only_bind_mount_is_read_only_and_its_source_is_not(
    rig: Rig, host: Host, target: str
) -> None:
    sh(host, "mkdir -p upper/a work src/sub; mount -t tmpfs tmpfs src/sub")
    try:
        options = ["rbind", "ro", "nosuid", "noatime"]
        source = ROOTFS if not target else f"{WORK}/src"
        bind = {"type": "bind", "source": source, "target": target, "options": options}
        bundle = create(rig, "ro", [overlay(ROOTFS), bind])
        made = mounts(host, f"{bundle.path}/rootfs")
        assert {"ro", "nosuid", "noatime"} <= set(made[1].options)
        if target:
            assert made[2].place == f"{bundle.path}/rootfs/a/sub"
        sh(host, "touch src/file src/sub/file")
        rig.call("Delete", id="ro")
        assert mounts(host, bundle.path) == []
    finally:
        sh(host, "umount src/sub")


@pytest.mark.parametrize("target", ["", "/a"], ids=["by mount(8)", "by the helper"])
@pytest.mark.parametrize(
    ("word", "wanted"),
    [("private", ""), ("rprivate", ""), ("shared", "shared:"), ("rshared", "shared:")],
)
def test_a_word_of_propagation_is_a_second_step(
    rig: Rig, host: Host, word: str, wanted: str, target: str
) -> None:
    sh(host, "mkdir -p upper/a work")
    bundle = create(rig, "tree", [overlay(ROOTFS), BASE | {"target": target, "options": [word]}])
    found = mounts(host, f"{bundle.path}/rootfs{target}")[-1]
    assert [f.partition(":")[0] + ":" for f in found.fields] == ([wanted] if wanted else [])
    rig.call("Delete", id="tree")


def test_a_remount_changes_the_mount_that_is_there(rig: Rig, host: Host) -> None:
    sh(host, "mkdir -p upper/a work")
    again = tmpfs("/a", "remount", "ro", "size=2m")
    printed = output(
        rig, "again", [overlay(ROOTFS), tmpfs("/a"), again], "grep ' /a ' /proc/mounts"
    )
    assert printed.count("\n") == 1
    assert " ro," in printed
    assert "size=2048k" in printed


# --- overlay


def test_an_overlay_of_120_layers(rig: Rig, host: Host) -> None:
    long = "a-folder-as-long-as-those-of-containerd-are-in-real-life/snapshots"
    one = f"mkdir -p {long}/$n/fs; echo $n >{long}/$n/fs/f$n; echo $n >{long}/$n/fs/top"
    sh(host, f"mkdir upper work; for n in $(seq 120); do {one}; done")
    sh(host, f"cp -a {ROOTFS}/. {long}/120/fs/")
    layers = [f"{WORK}/{long}/{n}/fs" for n in range(1, 121)]
    script = "cat /top; cat /f* | sort -nu | wc -l; echo new >/written"
    assert output(rig, "layers", [overlay(*layers)], script) == "1\n120\n"
    assert sh(host, "cat upper/written") == "new\n"


def test_more_options_than_a_page_without_a_common_parent_is_an_error(rig: Rig, host: Host) -> None:
    layers = [f"{WORK}/{'x' * 100}", *(f"/{'x' * 100}{n}" for n in range(60))]
    code, text = refused(rig, "long", [overlay(*layers)])
    assert (code, text.rpartition(": ")[2]) == (UNKNOWN, "mount options is too long")


def test_a_lowerdir_with_a_colon_and_a_comma(rig: Rig, host: Host) -> None:
    long = "x" * 200
    sh(
        host,
        f"mkdir upper work; for n in $(seq 20); do mkdir -p '{long}:'/$n; done;"
        f" cp -a {ROOTFS}/. '{long}:/7'",
    )
    layers = [f"{WORK}/{long}\\:/{n}" for n in range(1, 21)]
    assert output(rig, "colon", [overlay(*layers)], "echo here") == "here\n"


# --- id-mapped


def test_an_id_mapped_bind_mount_shows_its_files_with_the_mapped_ids(rig: Rig, host: Host) -> None:
    sh(host, f"cp -a {ROOTFS} src; touch src/mine; chown 7:8 src/mine")
    mount = {"type": "bind", "source": f"{WORK}/src", "options": ["rbind", *MAPS]}
    bundle = create(rig, "mapped", [mount])
    rootfs = f"{bundle.path}/rootfs"
    assert host.run(["stat", "-c", "%u:%g", f"{rootfs}/mine"]).stdout == "100007:100008\n"
    assert len(mounts(host, rootfs)) == 1
    rig.call("Delete", id="mapped")
    assert mounts(host, rootfs) == []
    assert sh(host, "stat -c %u:%g src/mine") == "7:8\n"


def test_an_id_mapped_overlay_maps_its_lower_layers_only(rig: Rig, host: Host) -> None:
    sh(host, "mkdir upper work one; touch one/file; chown 5:6 one/file; touch upper/up")
    mount = overlay(f"{WORK}/one", ROOTFS)
    mount["options"] += MAPS
    bundle = create(rig, "mapped", [mount])
    rootfs = f"{bundle.path}/rootfs"
    shown = host.run(["stat", "-c", "%u:%g", *(f"{rootfs}/{n}" for n in ("file", "up", "bin"))])
    assert shown.stdout.split() == ["100005:100006", "0:0", "100000:100000"]
    assert [one.type for one in mounts(host, rootfs)] == ["overlay"]
    rig.call("Delete", id="mapped")
    assert mounts(host, rootfs) == []


def test_an_id_mapped_overlay_of_120_layers(rig: Rig, host: Host) -> None:
    sh(host, "mkdir upper work; for n in $(seq 120); do mkdir -p l/$n; touch l/$n/f$n; done")
    mount = overlay(*(f"{WORK}/l/{n}" for n in range(1, 121)), ROOTFS)
    mount["options"] += MAPS
    bundle = create(rig, "many", [mount])
    listed = host.run(["sh", "-c", f"ls -n {bundle.path}/rootfs | grep -c ' 100000 .* f'"])
    assert listed.stdout == "120\n"
    rig.call("Delete", id="many")


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (["uidmap=0:1:2"], "'uidmap=0:1:2' without gidmap="),
        (["uidmap=0:x:2", "gidmap=0:1:2"], "'uidmap=0:x:2' is not container:host:size[,…]"),
        (["uidmap=0:1:0", "gidmap=0:1:2"], "'uidmap=0:1:0' is not container:host:size[,…]"),
    ],
)
def test_a_map_that_cannot_be_is_refused_before_anything_is_made(
    rig: Rig, maps: list[str], said: str
) -> None:
    error = refused(rig, "wrong", [{"type": "bind", "source": ROOTFS, "options": ["bind", *maps]}])
    assert error == (INVALID, f"rootfs mount option {said}")


def test_a_map_that_the_kernel_refuses_is_told_in_its_words(rig: Rig) -> None:
    maps = ["uidmap=0:1000:10,5:2000:10", "gidmap=0:1000:10"]  # they overlap
    code, text = refused(
        rig, "overlap", [{"type": "bind", "source": ROOTFS, "options": ["bind", *maps]}]
    )
    assert code == UNKNOWN
    assert text.endswith("Invalid argument (uid_map 0:1000:10,5:2000:10)")
