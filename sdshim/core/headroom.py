"""How much of a limited supply may be used up by new work, and when that is worth a warning. Pure.

The supplies are systemd's fd store (beyond FileDescriptorStoreMax it closes what it is given, in
silence) and the daemon's descriptors. The last part of each is for what runs already: connections
of a containerd that has been restarted, terminals, the commands that end containers.
"""

from __future__ import annotations

WARNING = 0.8
"""Of the supply in use."""
CONTAINER = 4
"""Descriptors that a container with three FIFOs has in the store while it is made."""
_CALM = 0.7
_PART = 16


def kept_back(most: int, least: int = 4) -> int:
    """What new work must leave of a supply of `most`."""
    return max(least, most // _PART)


def has_room(used: int, more: int, most: int, least: int = 4) -> bool:
    """Whether new work may take `more`."""
    return used + more <= most - kept_back(most, least)


def is_tight(used: int, most: int, before: bool = False) -> bool:
    """Whether the supply is running out; `before`: it was so already, and ends a little lower."""
    return used >= most * (_CALM if before else WARNING)
