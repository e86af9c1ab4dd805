"""The words the server, its log, its fd keeper and its handlers share.

The log (sdshim.host.calllog) and the keeper (sdshim.systemd.fdstore) live in rooms that do not
know this one; they fit `protocols` by shape. A call's life in the log:

    received ── done(reply, note) ── sent            the usual way
    received ── begun ── done ── sent                what must not happen twice
    received ── expired ── sent                      deadline answered, operation went on
    received ── sent                                 the connection ended before the operation

`sent` means that nothing is left to do for the call; until then it is *open* and the next process
gets it from `open_calls`.
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from sdshim.core.errors import Code, ShimError, scarce

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sdshim.ttrpc.protocols import Peer

MAX_TEXT = 16 << 10  # bytes of an error text
_LOG = logging.getLogger(__name__)


class CallKey(NamedTuple):
    """Names a call for good: connection serial (never used again) and stream id."""

    conn: int
    stream: int


class CallKind(Enum):
    """How a call is served: answered at once from memory, or written down and worked on."""

    INLINE = auto()
    JOURNALLED = auto()


class Reply(NamedTuple):
    """What the caller gets; code 0 with a payload, or another code with a message."""

    code: int
    message: str
    payload: bytes


class Call:
    """One request on its way through the server."""

    __slots__ = (
        "answered",
        "begun",
        "connection",
        "deadline",
        "ended",
        "key",
        "metadata",
        "method",
        "namespace",
        "note_begun",
        "payload",
        "peer_pid",
        "received",
        "recovered",
        "service",
        "token",
    )

    def __init__(
        self,
        key: CallKey,
        *,
        service: str,
        method: str,
        payload: bytes,
        metadata: Mapping[str, tuple[str, ...]],
        namespace: str,
        peer_pid: int,
        token: bytes,
        received: float,
        deadline: float | None,
        connection: Peer | None,
        note_begun: Callable[[], None],
        recovered: bool = False,
        begun: bool = False,
    ) -> None:
        self.key = key
        self.service = service
        self.method = method
        self.payload = payload
        self.metadata = metadata
        self.namespace = namespace  # of the listener the connection came by
        self.peer_pid = peer_pid
        self.token = token  # 16 random bytes, in the log with the request; empty when inline
        self.received = received  # unix time
        self.deadline = deadline  # CLOCK_BOOTTIME
        self.connection = connection  # None: recovered, and the connection is gone
        self.recovered = recovered  # an earlier process may have begun it
        self.begun = begun  # an earlier process was about to do what must not happen twice
        self.note_begun = note_begun  # to be called before such a thing is done
        self.answered = False  # the caller has its reply (the deadline's, perhaps)
        self.ended = False  # `Server.reply` was called

    def peer_gone(self) -> bool:
        """Whether the caller has closed its connection."""
        return self.connection is None or self.connection.peer_gone()

    def __repr__(self) -> str:
        return f"<Call {self.key.conn}/{self.key.stream} {self.service}/{self.method}>"


def clip(text: str) -> str:
    """An error text as it may go over the wire: at most MAX_TEXT bytes of UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_TEXT:
        data = data[: MAX_TEXT - 4] + " …".encode()
    return data.decode("utf-8", "ignore")


def reply_for(error: BaseException) -> Reply:
    """The answer that an exception of a handler becomes; surprises are logged with their trace."""
    if isinstance(error, OSError):
        error = scarce(error) or error
    if isinstance(error, ShimError):
        return Reply(int(error.code), clip(str(error)), b"")
    _LOG.error("ttrpc: internal error", exc_info=error)
    return Reply(int(Code.UNKNOWN), clip(f"internal error: {error!r}"), b"")


def error_for(code: int, message: str) -> ShimError:
    """The exception a caller sees for an answer with this code."""
    for kind in ShimError.__subclasses__():
        if kind.code == code:
            return kind(message)
    error = ShimError(message)
    error.code = Code(code) if code in Code._value2member_map_ else Code.UNKNOWN
    return error
