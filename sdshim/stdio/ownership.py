"""Whose the FIFOs are: io_uid and io_gid of a task's options.

A user-namespaced container can write to the FIFO it inherited, but cannot open /dev/stdout again
(many images log there): that asks for the inode's permission, and the client made the FIFO as
root. The stock shim gives its own pipes to the container's user; here the FIFO itself is the
container's stream, so it is given away (as is the one between a container and its logger). Its
folder stays the client's (0700), and the client already holds its end. Files and devices are never
given away: they are not made for one container.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from sdshim.core.errors import InvalidArgument
from sdshim.stdio.fifo import STDERR, STDIN, STDOUT

if TYPE_CHECKING:
    from sdshim.stdio.fifo import Held


def give(held: Held, uid: int, gid: int) -> None:
    """Give the FIFOs behind the held ends to a user; by descriptor, so that no path can be another
    by now. Raises InvalidArgument when that is not possible (no such id in our user namespace)."""
    if not uid and not gid:
        return
    for stream in (STDIN, STDOUT, STDERR):
        fd = held.ends.get(stream, -1)
        if fd < 0 or not stat.S_ISFIFO(os.fstat(fd).st_mode):
            continue
        try:
            os.fchown(fd, uid, gid)
        except OSError as error:
            text = f"cannot give {stream} to io_uid {uid}, io_gid {gid}"
            raise InvalidArgument(text, cause=error.strerror or "") from error
