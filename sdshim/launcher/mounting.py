"""Making a rootfs mount by the kernel's own calls: containerd's options read, then the way of each
kind (protocol 9).

A bind mount is cloned and attached. Another file system is mounted onto its target; id-mapped, in
a mount namespace of this process first, since only what is mounted nowhere can be given a mapping.
"""

from __future__ import annotations

import errno
import os

from sdshim.launcher import kernel

_SET = {
    "ro": kernel.MS_RDONLY,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "sync": kernel.MS_SYNCHRONOUS,
    "remount": kernel.MS_REMOUNT,
    "mand": kernel.MS_MANDLOCK,
    "dirsync": kernel.MS_DIRSYNC,
    "noatime": kernel.MS_NOATIME,
    "nodiratime": kernel.MS_NODIRATIME,
    "bind": kernel.MS_BIND,
    "rbind": kernel.MS_BIND | kernel.MS_REC,
    "relatime": kernel.MS_RELATIME,
    "strictatime": kernel.MS_STRICTATIME,
    "defaults": 0,
}
_CLEAR = {
    "rw": kernel.MS_RDONLY,
    "suid": kernel.MS_NOSUID,
    "dev": kernel.MS_NODEV,
    "exec": kernel.MS_NOEXEC,
    "async": kernel.MS_SYNCHRONOUS,
    "nomand": kernel.MS_MANDLOCK,
    "atime": kernel.MS_NOATIME,
    "diratime": kernel.MS_NODIRATIME,
    "norelatime": kernel.MS_RELATIME,
    "nostrictatime": kernel.MS_STRICTATIME,
}
_PROPAGATION = {
    "private": kernel.MS_PRIVATE,
    "slave": kernel.MS_SLAVE,
    "shared": kernel.MS_SHARED,
    "unbindable": kernel.MS_UNBINDABLE,
}
_BIND_ATTRIBUTES = (
    (kernel.MS_RDONLY, kernel.ATTR_RDONLY, 0),
    (kernel.MS_NOSUID, kernel.ATTR_NOSUID, 0),
    (kernel.MS_NODEV, kernel.ATTR_NODEV, 0),
    (kernel.MS_NOEXEC, kernel.ATTR_NOEXEC, 0),
    (kernel.MS_NODIRATIME, kernel.ATTR_NODIRATIME, 0),
    (kernel.MS_RELATIME, 0, kernel.ATTR_ATIME_MASK),
    (kernel.MS_NOATIME, kernel.ATTR_NOATIME, kernel.ATTR_ATIME_MASK),
    (kernel.MS_STRICTATIME, kernel.ATTR_STRICTATIME, kernel.ATTR_ATIME_MASK),
)
_ROOM = 512
"""Bytes of a page that containerd leaves to the file system's type and the rest."""


# Plain classes: dataclasses and typing take longer to import than a mount takes.


class Request:
    """One mount as containerd asks for it; `target` is below `rootfs`."""

    __slots__ = ("options", "rootfs", "source", "target", "type")

    def __init__(
        self, rootfs: str, target: str, kind: str, source: str, options: list[str]
    ) -> None:
        self.rootfs = rootfs
        self.target = target
        self.type = kind
        self.source = source
        self.options = options


class Options:
    """What the words of a mount come to; `propagation` has MS_REC for the `r…` words."""

    __slots__ = ("data", "direct_io", "flags", "gidmap", "loop", "propagation", "uidmap")

    def __init__(self) -> None:
        self.flags = self.propagation = 0
        self.data: list[str] = []
        self.loop = self.direct_io = False
        self.uidmap = self.gidmap = ""


def parse(words: list[str]) -> Options:
    """Sort the words of a mount into flags and the file system's data; the last of two rules."""
    found = Options()
    for word in words:
        if word in _SET:
            found.flags |= _SET[word]
        elif word in _CLEAR:
            found.flags &= ~_CLEAR[word]
        elif word in _PROPAGATION:
            found.propagation = _PROPAGATION[word]
        elif word[:1] == "r" and word[1:] in _PROPAGATION:
            found.propagation = _PROPAGATION[word[1:]] | kernel.MS_REC
        elif word == "loop":
            found.loop = True
        elif word.startswith("uidmap="):
            found.uidmap = word.removeprefix("uidmap=")
        elif word.startswith("gidmap="):
            found.gidmap = word.removeprefix("gidmap=")
        else:
            found.data.append(word)
    if found.loop and "direct-io" in found.data:
        found.data.remove("direct-io")
        found.direct_io = True
    return found


def lowerdirs(data: list[str]) -> tuple[list[str], list[str]]:
    """(lowerdirs of an overlay as they are written, the other data). A colon in a path stands
    behind a backslash."""
    lower = [word for word in data if word.startswith("lowerdir=")]
    rest = [word for word in data if word not in lower]
    folders: list[str] = []
    for part in lower[-1].removeprefix("lowerdir=").split(":") if lower else []:
        if folders and folders[-1].endswith("\\"):
            folders[-1] += f":{part}"
        else:
            folders.append(part)
    return folders, rest


def _path(written: str) -> str:
    return written.replace("\\:", ":").replace("\\,", ",").replace("\\\\", "\\")


def relative_lowerdirs(data: list[str]) -> tuple[str, list[str]]:
    """(directory to mount from, shorter data) of an overlay: its lowerdirs relative to the parent
    that they share. ("", data) when there is nothing to gain: one lowerdir, or only / in common."""
    folders, rest = lowerdirs(data)
    if len(folders) < 2 or not all(folder.startswith("/") for folder in folders):
        return "", data
    parent = os.path.commonpath([os.path.dirname(folder) for folder in folders])
    if parent == "/" or not all(folder.startswith(f"{parent}/") for folder in folders):
        return "", data
    short = ":".join(folder[len(parent) :].lstrip("/") for folder in folders)
    return _path(parent), [*rest, f"lowerdir={short}"]


def mount(request: Request) -> None:
    """Make the mount. Raises OSError; nothing is left then."""
    options = parse(request.options)
    root = os.open(request.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    target = kernel.open_below(root, request.target)
    if options.flags & kernel.MS_REMOUNT:
        _mount(request, options, target)
    elif options.flags & kernel.MS_BIND:
        tree = _bind(request, options)
        kernel.attach(tree, target)
    elif options.uidmap:
        kernel.attach(_elsewhere(request, options), target)
    else:
        _mount(request, options, target)
    if options.propagation:
        on_top = kernel.open_below(root, request.target)  # now it names what was mounted
        recursive = bool(options.propagation & kernel.MS_REC)
        kind = options.propagation & ~kernel.MS_REC
        kernel.set_attributes(on_top, propagation=kind, recursive=recursive)


def _mount(request: Request, options: Options, target: int) -> None:
    """mount(2) onto a descriptor."""
    place = f"/proc/self/fd/{target}"
    if options.loop:
        from sdshim.launcher import loopdev

        read_only = bool(options.flags & kernel.MS_RDONLY)
        loop = loopdev.Loop(request.source, read_only, options.direct_io)
        try:
            _call(loop.path, place, request.type, options.flags, options.data)
        finally:
            loop.close()
        return
    _call(request.source, place, request.type, options.flags, options.data)


def _call(source: str, place: str, kind: str, flags: int, data: list[str]) -> None:
    page = os.sysconf("SC_PAGESIZE")
    if kind == "overlay" and _size(data) >= page - _ROOM:
        folder, data = relative_lowerdirs(data)
        if folder:
            os.chdir(folder)
    if _size(data) >= page:
        raise OSError(errno.E2BIG, "mount options is too long")  # containerd's words
    kernel.mount(source, place, kind, flags, ",".join(data))


def _size(data: list[str]) -> int:
    return len(os.fsencode(",".join(data)))


def _bind(request: Request, options: Options) -> int:
    """The source's mount once more, mounted nowhere yet."""
    recursive = options.flags & kernel.MS_REC == kernel.MS_REC
    tree = kernel.clone_tree(request.source, recursive=recursive)
    on = off = 0
    for flag, wanted, cleared in _BIND_ATTRIBUTES:
        if options.flags & flag:
            on, off = on | wanted, off | cleared
    if on or off:
        kernel.set_attributes(tree, on=on, off=off)
    if options.uidmap:
        from sdshim.launcher import idmap

        idmap.apply(tree, idmap.user_namespace(options.uidmap, options.gidmap))
    return tree


def _elsewhere(request: Request, options: Options) -> int:
    """An id-mapped file system, made in a mount namespace of our own, mounted nowhere yet. That
    namespace follows the host's umounts: it keeps nobody's mount busy."""
    from sdshim.launcher import idmap

    userns = idmap.user_namespace(options.uidmap, options.gidmap)
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    kernel.unshare(kernel.CLONE_NEWNS)
    try:
        kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_SLAVE, "")
        if request.type == "overlay":
            return _overlay(request, options, userns)
        place = os.open(request.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _mount(request, options, place)
        tree = kernel.clone_tree(request.rootfs)
        idmap.apply(tree, userns)
        return tree
    finally:
        kernel.enter(host, kernel.CLONE_NEWNS)


def _overlay(request: Request, options: Options, userns: int) -> int:
    """An overlay takes no mapping itself: its lowerdirs get it, each as a read-only copy. The
    upper directory is the container's own already, its files have the mapped ids."""
    from sdshim.launcher import idmap

    folders, rest = lowerdirs(options.data)
    copies = []
    for folder in folders:
        copy = kernel.clone_tree(_path(folder))
        idmap.apply(copy, userns, kernel.ATTR_RDONLY)
        copies.append(copy)
    kernel.mount("tmpfs", request.rootfs, "tmpfs", 0, "mode=700")
    os.chdir(request.rootfs)
    for number, copy in enumerate(copies):
        os.mkdir(str(number))
        place = os.open(str(number), os.O_PATH | os.O_CLOEXEC)
        kernel.attach(copy, place)
        os.close(copy)
        os.close(place)
    os.mkdir("m")
    short = f"lowerdir={':'.join(str(number) for number in range(len(folders)))}"
    place = os.open("m", os.O_PATH | os.O_CLOEXEC)
    _call(request.source, f"/proc/self/fd/{place}", "overlay", options.flags, [*rest, short])
    return kernel.clone_tree("m")
