"""Rootfs mounts of every kind, user namespaces, and a mount that a container makes for the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.compare.subject import ROOTFS
from tests.system.taskclient import spec_of

if TYPE_CHECKING:
    from tests.compare.subject import Subject

MAPS = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"]
OWNED = {"containerID": 0, "hostID": 100000, "size": 65536}
CAPABLE = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}


def _prepare(s: Subject, script: str = "") -> str:
    """An empty folder with an upper and a work directory for an overlay."""
    folder = f"/tmp/compare/mounts.{s.namespace}"  # the other shim runs at the same time
    fresh = f"rm -rf {folder}; mkdir -p {folder}/upper/a {folder}/work; cd {folder}"
    s.host.run(["sh", "-euc", f"{fresh}\n{script}"])
    return folder


def _overlay(folder: str, *lower: str, kind: str = "overlay") -> dict[str, Any]:
    words = [f"lowerdir={':'.join(lower or (ROOTFS,))}"]
    words += [f"upperdir={folder}/upper", f"workdir={folder}/work"]
    return {"type": kind, "source": "overlay", "options": words}


def _mount(kind: str, source: str, *options: str, target: str = "") -> dict[str, Any]:
    return {"type": kind, "source": source, "target": target, "options": list(options)}


def _life(s: Subject, rootfs: list[dict[str, Any]], script: str, **spec: Any) -> None:
    box = s.container("c", "sh", "-c", script, root={"readonly": False}, **spec)
    box.create(rootfs=rootfs, **box.streams("stdout", "stderr"))
    box.start()
    box.waited()
    box.output()
    box.delete()
    table = s.host.path("/proc/1/mountinfo").read_text()
    s.tape.put("mounts", {"left": str(table.count(f"/{s.namespace}/{box.id}/"))})


def overlay(s: Subject) -> None:
    folder = _prepare(s)
    _life(s, [_overlay(folder)], "echo x >/a/x; grep -c ' / overlay rw,' /proc/mounts")
    s.tape.put("upper", {"x": s.host.run(["cat", f"{folder}/upper/a/x"]).stdout})


def overlay_of_120_layers(s: Subject) -> None:
    long = f"l/{'x' * 60}"
    folder = _prepare(s, f"for n in $(seq 120); do mkdir -p {long}/$n; touch {long}/$n/f$n; done")
    layers = [f"{folder}/{long}/{n}" for n in range(120, 0, -1)]
    s.host.run(["cp", "-a", f"{ROOTFS}/.", layers[-1]])
    _life(s, [_overlay(folder, *layers)], "ls -d /f* | wc -l")


def stacked_and_read_only(s: Subject) -> None:
    folder = _prepare(s)
    rootfs = [_overlay(folder), _mount("bind", ROOTFS, "rbind", "ro", "nosuid")]
    _life(s, rootfs, "touch /x; grep -c nosuid /proc/mounts")


def targets(s: Subject) -> None:
    """containerd 1.6 does not hand them on."""
    if s.host.containerd_version < (1, 7):
        return
    folder = _prepare(s, "ln -s /etc upper/out; mkdir upper/etc")
    rootfs = [_overlay(folder), _mount("tmpfs", "tmpfs", "size=1m", target="/a")]
    rootfs.append(_mount("tmpfs", "tmpfs", "ro", target="out"))
    _life(s, rootfs, "grep -c tmpfs /proc/mounts; touch /etc/x; touch /a/x && echo made")


def target_that_is_missing(s: Subject) -> None:
    if s.host.containerd_version < (1, 7):
        return
    folder = _prepare(s)
    _life(s, [_overlay(folder), _mount("tmpfs", "tmpfs", target="/no/where")], "true")


def loop(s: Subject) -> None:
    folder = _prepare(s, f"truncate -s 16M image; mkfs.ext4 -q -d {ROOTFS} image")
    _life(s, [_mount("ext4", f"{folder}/image", "loop")], "touch /x; grep -c ext4 /proc/mounts")
    _life(s, [_mount("ext4", f"{folder}/image", "loop", "ro")], "touch /y; ls /x")


def loop_that_fails(s: Subject) -> None:
    folder = _prepare(s, "head -c 1M /dev/zero >image")
    _life(s, [_mount("ext4", f"{folder}/image", "loop")], "true")
    s.tape.put("loops", {"left": s.host.run(["losetup", "-n", "-l", "-O", "BACK-FILE"]).stdout})


def fuse(s: Subject) -> None:
    folder = _prepare(s)
    _life(s, [_overlay(folder, kind="fuse3.fuse-overlayfs")], "echo x >/a/x; cat /a/x")
    s.tape.put("upper", {"x": s.host.run(["cat", f"{folder}/upper/a/x"]).stdout})


def fuse_that_fails(s: Subject) -> None:
    _prepare(s)
    _life(s, [_mount("fuse3.fuse-overlayfs", "overlay", "lowerdir=/nonexistent")], "true")


def id_mapped(s: Subject) -> None:
    """containerd 2 and newer."""
    if s.host.containerd_version < (2,):
        return
    show = "cat /proc/self/uid_map; stat -c '%u %n' /bin /a"
    spaces = [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network", "user")]
    linux = {"namespaces": spaces, "uidMappings": [OWNED], "gidMappings": [OWNED]}
    folder = _prepare(s, "chown -R 100000:100000 upper")
    mapped = {"options": [*_overlay(folder)["options"], *MAPS]}
    _life(s, [_overlay(folder) | mapped], show, linux=linux)
    _life(s, [_mount("bind", ROOTFS, "rbind", *MAPS)], show, linux=linux)


def user_namespace(s: Subject) -> None:
    folder = _prepare(s, f"cp -a {ROOTFS} mapped; chown -R 100000:100000 mapped")
    spaces = [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network", "user")]
    linux = {"namespaces": spaces, "uidMappings": [OWNED], "gidMappings": [OWNED]}
    rootfs = [_mount("bind", f"{folder}/mapped", "rbind")]
    _life(s, rootfs, "id -u; cat /proc/self/uid_map; touch /x && stat -c %u /x", linux=linux)


def a_mount_for_the_host(s: Subject) -> None:
    for word in ("rshared", "rslave"):
        folder = _prepare(
            s, "mkdir peer; mount -t tmpfs tmpfs peer; mount --make-shared peer; mkdir peer/m"
        )
        volume = {"destination": "/a", "type": "bind", "source": f"{folder}/peer"}
        box = s.container(
            word,
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /a/m && echo mounted; sleep 1000",
            root={"readonly": False},
            mounts=[*spec_of()["mounts"], volume | {"options": ["rbind", word]}],
            linux={"rootfsPropagation": word},
            process={"capabilities": CAPABLE},
        )
        box.create(rootfs=[_overlay(folder)], **box.streams("stdout", "stderr"))
        box.start()
        box.line()
        table = s.host.path("/proc/1/mountinfo").read_text()
        s.tape.put("host", {"sees": str(table.count(f" {folder}/peer/m "))})
        box.kill()
        box.waited()
        box.delete()
        s.host.run(["umount", "--recursive", f"{folder}/peer"])
