"""sealed.py RUNTIME ARGUMENT...: become the OCI runtime, run from a sealed copy of its program.

So that no container can write to it, runc 1.1 as Debian 13 has it copies its program, 11 MB, into
memory of the container's `init` to be, and moves that into the container's cgroup meanwhile. Where
something was moved between cgroups just before, as systemd does for each unit, the kernel is quick
at that, and the copy is charged to the container: with --memory 6m `create` failed 12 times of 12.
A sealed program needs no copy, and the one made here is charged to the unit. Where it cannot be
made the runtime is run as it is.
"""

from __future__ import annotations

import fcntl
import os
import sys

MFD_EXEC = 0x10
"""Since Linux 6.3; older kernels refuse it."""


def sealed(path: str) -> int:
    """A descriptor of a sealed copy. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create(os.path.basename(path), flags | MFD_EXEC)
    except OSError:
        copy = os.memfd_create(os.path.basename(path), flags)
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    while os.sendfile(copy, source, None, 1 << 30):
        pass
    os.close(source)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy


def main(argv: list[str]) -> None:
    """Run argv, whose first word is a path."""
    try:  # noqa: SIM105  # contextlib is one more import
        os.execve(sealed(argv[0]), argv, os.environ)
    except OSError:
        pass  # e.g. a script
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        sys.exit(f'exec: "{argv[0]}": {error.strerror}')


if __name__ == "__main__":
    main(sys.argv[1:])
