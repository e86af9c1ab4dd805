"""The mapping of an id-mapped mount: a user namespace that has it, and no process (protocol 9)."""

from __future__ import annotations

import os

from sdshim.launcher import kernel


def user_namespace(uidmap: str, gidmap: str) -> int:
    """A descriptor of a new user namespace; maps are `container:host:size[,…]`."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(ready[1], b".")
            os.close(go[1])
            os.read(go[0], 1)  # end of file, also when the parent dies
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        if not os.read(ready[0], 1):
            raise OSError(0, "cannot make a user namespace (user.max_user_namespaces?)")
        for name, ranges in (("uid_map", uidmap), ("gid_map", gidmap)):
            lines = "\n".join(one.replace(":", " ") for one in ranges.split(","))
            fd = os.open(f"/proc/{child}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, lines.encode())
            except OSError as error:
                raise OSError(error.errno, error.strerror, f"{name} {ranges}") from error
            finally:
                os.close(fd)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready[0], *go):
            os.close(fd)
        os.waitpid(child, 0)


def apply(tree: int, userns: int, on: int = 0) -> None:
    """Map a tree that is mounted nowhere, and everything mounted in it; `on`: attributes to set."""
    kernel.set_attributes(
        tree,
        on=on | kernel.ATTR_IDMAP,
        propagation=kernel.MS_PRIVATE,
        userns=userns,
        recursive=True,
    )
