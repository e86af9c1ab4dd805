"""One rootfs mount that mount(8) cannot make (protocol 9), as ExecStartPre of a container's unit.

    rootfs_mount.py ROOTFS SCOPE SLICE UNIT TARGET TYPE SOURCE OPTION...

TARGET is below ROOTFS; symbolic links in it end there. SCOPE, SLICE and UNIT are for FUSE: the
program that serves the file system must outlive this unit, whose left processes systemd kills when
the container ends, and with them what was not written back. So it runs in a scope of its own,
which ends with the mount.

A failure is one line on stderr and leaves nothing: what is needed on the way lives in descriptors
and in a mount namespace that end with this process.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> int:
    """Mount, or say why not; the exit status is the process's."""
    room = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(os.path.dirname(room)))

    from sdshim.launcher import kernel, mounting

    rootfs, *unit, target, kind, source = argv[:7]
    try:
        kernel.enter_hosts_mounts()
        if unit[0] != "-":
            from sdshim.launcher import fuse

            fuse.become(unit, rootfs, target, kind, source, argv[7:])
        mounting.mount(mounting.Request(rootfs, target, kind, source, argv[7:]))
    except OSError as error:
        where = f"{rootfs}/{target.lstrip('/')}" if target.strip("/") else rootfs
        reason = error.strerror or str(error)
        named = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"mount {kind} {source} on {where}: {reason}{named}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
