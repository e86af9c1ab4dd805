"""A FUSE rootfs (protocol 9): `mount.fuse` or `mount.fuse3` in a scope of its own.

systemd does not end what an ExecStartPre leaves, but kills it with the container (seen on 252, 257
and 262): the mount is dead before Delete, and what the program had not written back is lost. In a
scope it ends when the mount is gone, and at shutdown after the container.
"""

from __future__ import annotations

import os

from sdshim.launcher import kernel

_OF_THE_UNIT = (
    "SDSHIM_TOKEN",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "LIBMOUNT_FORCE_MOUNT2",
    "SYSTEMD_EXEC_PID",
)


def command(unit: list[str], place: str, kind: str, source: str, options: list[str]) -> list[str]:
    """systemd-run's arguments. `unit`: the scope, the slice it is in, the container's unit; `kind`
    is `fuse.X` or `fuse3.X`."""
    scope, slice_name, container = unit
    helper, _, program = kind.partition(".")
    words = [word for option in options for word in ("-o", option)]
    return [
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        f"--unit={scope}",
        f"--slice={slice_name}",
        f"--description=FUSE program of {container}",
        f"--property=Before={container}",
        "--property=After=sdshim.target",
        "--",
        f"mount.{helper}",
        source,
        place,
        *words,
        "-t",
        program,
    ]


def become(
    unit: list[str], rootfs: str, target: str, kind: str, source: str, options: list[str]
) -> None:
    """Become the helper. Raises OSError when the target is not there, or systemd-run."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    place = os.readlink(f"/proc/self/fd/{kernel.open_below(root, target)}")
    for name in _OF_THE_UNIT:
        os.environ.pop(name, None)
    argv = command(unit, place, kind, source, options)
    os.execvp(argv[0], argv)
