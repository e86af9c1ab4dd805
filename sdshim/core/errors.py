"""One small error tree: each class is one RPC status (google.rpc codes, as containerd reads them).

A message ends with containerd's own class text where containerd strips and re-adds one
(``…: not found``); `cause` is the first cause in full, `hint` says what the reader may do.
Foreign errors are turned into these once, at the door where they enter.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class Code(IntEnum):
    """google.rpc.Code values that containerd maps to a class of its own."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class ShimError(Exception):
    """Base of every error that may reach a client; `str()` is the text the client sees."""

    code = Code.UNKNOWN

    def __init__(self, message: str, *, cause: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.cause:
            text += f": {self.cause}"
        if self.hint:
            text += f" (hint: {self.hint})"
        return text


class UnknownError(ShimError):
    """The code stock gives to most state violations and to runtime failures."""


class InvalidArgument(ShimError):
    """The request, its bundle or its options cannot be used as they are."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(ShimError):
    """The caller's deadline passed; the operation itself goes on."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(ShimError):
    """No such task, exec or process (any more)."""

    code = Code.NOT_FOUND


class AlreadyExists(ShimError):
    """The id is taken."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(ShimError):
    """The peer or a file's owner is not who it must be."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(ShimError):
    """A limit of ours or of the host is reached (frame size, disk, descriptors)."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(ShimError):
    """The task is not in a state in which this can be done."""

    code = Code.FAILED_PRECONDITION


class Unimplemented(ShimError):
    """Unknown service or method, or one that this version does not have."""

    code = Code.UNIMPLEMENTED


class Internal(ShimError):
    """A fault of ours, or bytes that cannot be decoded."""

    code = Code.INTERNAL


class Unavailable(ShimError):
    """Something needed (systemd, the bus, containerd) cannot be reached now."""

    code = Code.UNAVAILABLE


class Canceled(ShimError):
    """The client has left; nothing was begun."""

    code = Code.CANCELED


_SCARCE = {
    errno.ENOSPC: ("no room on disk", "df -h /run; df -i /run; sdshim doctor"),
    errno.EDQUOT: ("no room on disk", "df -h /run; df -i /run; sdshim doctor"),
    errno.EMFILE: ("no descriptor is free", "LimitNOFILE= of sdshim.service; sdshim doctor"),
    errno.ENFILE: ("no descriptor is free", "sysctl fs.file-max"),
    errno.ENOMEM: ("no memory is free", "free; MemoryMax= of sdshim.service"),
}


def scarce(error: OSError) -> ResourceExhausted | None:
    """What a system call that failed for want of something is for a client; None for all others."""
    if error.errno not in _SCARCE:
        return None
    message, hint = _SCARCE[error.errno]
    return ResourceExhausted(message, cause=str(error), hint=hint)
