"""The descriptors of this process: how many it may have, and how many it has."""

from __future__ import annotations

import os
import resource

from sdshim.core import headroom
from sdshim.core.errors import ResourceExhausted

LEAST = 32
"""What new work must leave: a burst of commands and questions of the containers that run."""


def most() -> int:
    """The soft limit (RLIMIT_NOFILE)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def used() -> int:
    """At least so many are in use: the kernel gives the lowest number that is free."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd


def demand(more: int) -> None:
    """Raise ResourceExhausted when new work may not take so many more."""
    has, limit = used(), most()
    if not headroom.has_room(has, more, limit, LEAST):
        raise ResourceExhausted(
            f"the daemon has {has} of {limit} descriptors open",
            hint="fewer containers on this node, or a larger LimitNOFILE= of sdshim.service",
        )
