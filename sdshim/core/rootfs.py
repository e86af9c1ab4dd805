"""Rootfs mounts of a task: what is refused, and the line of the unit for each (protocol 9). Pure.

mount(8) makes the plain ones: it costs least. The launcher's rootfs_mount.py makes those that
mount(8) cannot, or not as containerd means them: a target inside the rootfs, more options than
mount(2) takes, id-mapped ones, loop devices, FUSE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.core import names
from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.model import Identity, Mount
    from sdshim.core.unitspec import HostFacts

HOST_MOUNTS = "/proc/1/ns/mnt"
"""The host's mount namespace."""
FUSE = ("fuse.", "fuse3.")
CONSUMED = "X-containerd."
"""containerd's mount manager takes these options away before a shim sees a mount."""
LONG = 4096 - 512
"""Bytes of options from which on a mount may not fit into the one page that mount(2) copies; the
kernel cuts off the rest without a word. With larger pages this is early, which is harmless."""
_BINDS = ("bind", "rbind")
_MAPS = {"uidmap=": "gidmap=", "gidmap=": "uidmap="}
_MAX_ID = 2**32 - 1


def check(mount: Mount) -> None:
    """Refuse what cannot be mounted, before anything is made. Raises InvalidArgument."""
    text = (mount.type, mount.source, mount.target, *mount.options)
    if "\0" in "".join(text):  # nothing below can carry one
        raise InvalidArgument("NUL in the type, source, target or options of a rootfs mount")
    if not mount.source or mount.source.startswith("-"):
        raise InvalidArgument(f"rootfs mount with source {mount.source!r}")
    for word in mount.options:
        if word.startswith(CONSUMED):
            raise InvalidArgument(f"rootfs mount option {word!r} is containerd's own")
    if not is_fuse(mount):  # a FUSE program has its own way with them
        for kind, other in _MAPS.items():
            maps = [word for word in mount.options if word.startswith(kind)]
            if maps and not any(word.startswith(other) for word in mount.options):
                raise InvalidArgument(f"rootfs mount option {maps[0]!r} without {other}")
            for word in maps:
                _check_map(word, word.removeprefix(kind))


def _check_map(word: str, ranges: str) -> None:
    """`container:host:size`, one or more of them."""
    for one in ranges.split(","):
        parts = one.split(":")
        numbers = [int(p) for p in parts if p.isascii() and p.isdigit() and len(p) < 11]
        if len(parts) != 3 or len(numbers) != 3 or not numbers[2] or max(numbers) > _MAX_ID:
            raise InvalidArgument(
                f"rootfs mount option {word[:256]!r} is not container:host:size[,…]"
            )


def is_fuse(mount: Mount) -> bool:
    """Whether a program of its own serves the file system."""
    return mount.type.startswith(FUSE)


def fuse_scopes(me: Identity) -> list[str]:
    """The units in which the task's FUSE programs run."""
    key = names.TaskKey(me.namespace, me.id)
    fuse = [number for number, mount in enumerate(me.rootfs) if is_fuse(mount)]
    return [names.fuse_scope(key, number, me.token) for number in fuse]


def lines(me: Identity, host: HostFacts) -> list[list[str]]:
    """The command of each mount, in order."""
    return [_line(number, mount, me, host) for number, mount in enumerate(me.rootfs)]


def _line(number: int, mount: Mount, me: Identity, host: HostFacts) -> list[str]:
    rootfs = f"{me.bundle}/rootfs"
    options = bind_options(mount)
    if not needs_helper(mount):
        words = ["-o", ",".join(options)] if options else []
        kind = ["-t", mount.type] if mount.type not in ("", *_BINDS) else []
        # No helper lookup, no mtab; in the host's namespace, whatever a drop-in says.
        plain = ["-n", "-i", "-N", HOST_MOUNTS]
        return [host.mount_program, *plain, *kind, *words, mount.source, rootfs]
    helper = [host.python, "-I", "-S", f"{host.launcher}/rootfs_mount.py", rootfs]
    return [*helper, *_scope(number, mount, me), mount.target, mount.type, mount.source, *options]


def _scope(number: int, mount: Mount, me: Identity) -> Sequence[str]:
    """Unit, slice and first user of a FUSE program; dashes for another mount."""
    if not is_fuse(mount):
        return "-", "-", "-"
    scope = names.fuse_scope(names.TaskKey(me.namespace, me.id), number, me.token)
    # Not the pod's slice: its limits are for containers, and their rootfs must not die of them.
    return scope, names.namespace_slice(me.namespace), me.unit


def needs_helper(mount: Mount) -> bool:
    """Whether mount(8) would not do."""
    return (
        bool(mount.target.strip("/"))
        or is_fuse(mount)
        or any(word == "loop" or word.startswith(tuple(_MAPS)) for word in mount.options)
        or len(",".join(mount.options).encode()) >= LONG
    )


def bind_options(mount: Mount) -> tuple[str, ...]:
    """The options, with the word that makes a bind mount one.

    containerd gives type `bind` with options `rbind` or `bind`; with neither, type alone binds.
    """
    if mount.type in _BINDS and not set(_BINDS) & set(mount.options):
        return (mount.type, *mount.options)
    return mount.options
