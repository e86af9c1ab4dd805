"""Rootfs mounts for tests: what they are made from, what containerd asks for, what the host has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tests.system.taskclient import HOME, ROOTFS, Bundle, Rig, spec_of

if TYPE_CHECKING:
    from tests.host import Host

WORK = f"{HOME}/mounts"
BASE = {"type": "bind", "source": ROOTFS, "options": ["rbind", "rw"]}
MAPS = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"]


def sh(host: Host, script: str) -> str:
    """A script in the host, in a folder of its own; what it printed."""
    return str(host.run(["sh", "-euc", f"mkdir -p {WORK}; cd {WORK}\n{script}"]).stdout)


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


def fuse(kind: str = "fuse3.fuse-overlayfs") -> dict[str, Any]:
    return {**overlay(ROOTFS), "type": kind}


def scopes(host: Host) -> list[str]:
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "sdshim-*::fuse-*"]
    return [line.split()[0] for line in host.run(argv).stdout.splitlines()]
