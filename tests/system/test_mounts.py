"""Rootfs mounts of a Create (protocol 9): every kind is made, used by a container, and undone."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.system.taskclient import HOME, ROOTFS, Bundle, Rig, eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

UNKNOWN, INVALID = 2, 3
WORK = f"{HOME}/mounts"
BASE = {"type": "bind", "source": ROOTFS, "options": ["rbind", "rw"]}
MAPS = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"]


def sh(host: Host, script: str) -> str:
    """A script in the host, in a folder of its own; what it printed."""
    return str(host.run(["sh", "-euc", f"mkdir -p {WORK}; cd {WORK}\n{script}"]).stdout)


@pytest.fixture(autouse=True)
def folder(host: Host) -> Iterator[None]:
    """Each test begins with an empty WORK; what a test made there goes."""
    devices = loops(host)
    yield
    assert loops(host) == devices
    host.run(["rm", "-rf", "--one-file-system", WORK])


def loops(host: Host) -> list[str]:
    """Loop devices over files of ours: they are the machine's, not the host's."""
    listed = host.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]).stdout
    return [line for line in listed.splitlines() if WORK in line]


class Mounted(NamedTuple):
    """A line of /proc/PID/mountinfo (proc(5))."""

    root: str
    place: str
    options: list[str]
    fields: list[str]
    type: str
    source: str
    data: str


def mounts(host: Host, below: str) -> list[Mounted]:
    """Mounts of the host at and below a path, in the order they were made."""
    found = []
    for line in host.path("/proc/1/mountinfo").read_text().splitlines():
        first, _, last = line.partition(" - ")
        _, _, _, root, place, options, *fields = first.split(" ")
        if place == below or place.startswith(f"{below}/"):
            found.append(Mounted(root, place, options.split(","), fields, *last.split(" ", 2)))
    return found


def spec_with(*command: str, **changes: Any) -> dict[str, Any]:
    """A spec whose root is the bundle's own rootfs."""
    spec = spec_of(*command)
    spec["root"] = {"path": "rootfs", "readonly": False}
    return {**spec, **changes}


def create(rig: Rig, id_: str, rootfs: list[dict[str, Any]], *command: str) -> Bundle:
    bundle = rig.bundle(id_, spec=spec_with(*(command or ("sleep", "1000"))))
    stdout = bundle.fifo("stdout")
    rig.call("Create", id=id_, bundle=bundle.path, rootfs=rootfs, stdout=stdout)
    return bundle


def output(rig: Rig, id_: str, rootfs: list[dict[str, Any]], script: str) -> str:
    """What a container printed, from Create to Delete; then nothing is mounted."""
    bundle = create(rig, id_, rootfs, "sh", "-c", script)
    rig.call("Start", id=id_)
    printed = bundle.read("stdout").decode()
    rig.call("Wait", id=id_)
    rig.call("Delete", id=id_)
    assert mounts(rig.host, bundle.path) == []
    return printed


def refused(rig: Rig, id_: str, rootfs: list[dict[str, Any]]) -> tuple[int, str]:
    """The error of a Create; then nothing is mounted and no unit is there."""
    bundle = rig.bundle(id_, spec=spec_with("true"))
    error = rig.refused("Create", id=id_, bundle=bundle.path, rootfs=rootfs)
    assert mounts(rig.host, bundle.path) == []
    assert not rig.unit_exists(id_)
    return error


def overlay(*lower: str, upper: str = "upper", work: str = "work") -> dict[str, Any]:
    words = [f"lowerdir={':'.join(lower)}", f"upperdir={WORK}/{upper}", f"workdir={WORK}/{work}"]
    return {"type": "overlay", "source": "overlay", "options": words}


def tmpfs(target: str, *options: str) -> dict[str, Any]:
    return {"type": "tmpfs", "source": "tmpfs", "target": target, "options": list(options)}


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


def fuse(kind: str = "fuse3.fuse-overlayfs") -> dict[str, Any]:
    return {**overlay(ROOTFS), "type": kind}


def scopes(host: Host) -> list[str]:
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "sdshim-*::fuse-*"]
    return [line.split()[0] for line in host.run(argv).stdout.splitlines()]


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
        host.run(["systemctl", "stop", "sdshim.socket", "sdshim.service"])
        try:
            rig.give_up(bundle)
        finally:
            host.run(["systemctl", "start", "sdshim.socket", "sdshim.service"])
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
    host.run(["systemctl", "stop", "sdshim.socket", "sdshim.service"])
    try:
        assert rig.give_up(bundle).exit_status == 137
        assert mounts(host, bundle.path) == []
        eventually(lambda: scopes(host) == [], "the FUSE program's scope is gone")
    finally:
        host.run(["systemctl", "start", "sdshim.socket", "sdshim.service"])
