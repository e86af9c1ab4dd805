"""The words the server, its log, its fd keeper and its handlers share.

The log (sdshim.host.calllog) and the keeper (sdshim.systemd.fdstore) live in rooms that do not
know this one; they fit the protocols below by shape. A call's life in the log:

    received ── done(reply, note) ── sent            the usual way
    received ── expired ── sent                      deadline answered, operation went on
    received ── sent                                 the connection ended before the operation

`sent` means that nothing is left to do for the call; until then it is *open* and the next process
gets it from `open_calls`.
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sdshim.core.errors import Code, ShimError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

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


class Peer(Protocol):
    """The connection a call came on, as far as handlers need it."""

    def peer_gone(self) -> bool:
        """Whether nobody waits for replies any more."""


class Call:
    """One request on its way through the server."""

    __slots__ = (
        "answered",
        "connection",
        "deadline",
        "ended",
        "key",
        "metadata",
        "method",
        "namespace",
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
        recovered: bool = False,
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
        self.answered = False  # the caller has its reply (the deadline's, perhaps)
        self.ended = False  # `Server.reply` was called

    def peer_gone(self) -> bool:
        """Whether the caller has closed its connection."""
        return self.connection is None or self.connection.peer_gone()

    def __repr__(self) -> str:
        return f"<Call {self.key.conn}/{self.key.stream} {self.service}/{self.method}>"


class Handlers(Protocol):
    """What the server serves."""

    def kind(self, service: str, method: str) -> CallKind:
        """How to serve this method; raise Unimplemented (`service …`, `method …`) if unknown."""

    def inline(self, call: Call) -> bytes:
        """Answer now: the reply's payload, or raise. May run again for the same call."""

    def dispatch(self, call: Call) -> None:
        """Begin the work (again, if `call.recovered`); `Server.reply` ends it."""


class OpenCall(Protocol):
    """An open call as the log remembers it."""

    @property
    def key(self) -> tuple[int, int]: ...
    @property
    def service(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def metadata(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def namespace(self) -> str: ...
    @property
    def peer_pid(self) -> int: ...
    @property
    def token(self) -> bytes: ...
    @property
    def received(self) -> float: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def expired(self) -> bool: ...
    @property
    def reply(self) -> tuple[int, str, bytes] | None: ...
    @property
    def note(self) -> bytes: ...


class CallLog(Protocol):
    """Remembers calls across the death of the process."""

    def next_serial(self) -> int:
        """A connection serial never given before."""

    def opened(self, conn: int, namespace: str) -> None:
        """A connection is in the fd store (again)."""

    def received(
        self,
        key: tuple[int, int],
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
    ) -> None:
        """A call is about to be taken from its connection; ResourceExhausted if it must not be."""

    def done(self, key: tuple[int, int], reply: tuple[int, str, bytes], note: bytes) -> None:
        """The call's effect has happened and this is its answer."""

    def expired(self, key: tuple[int, int]) -> None:
        """The caller was told that its deadline passed; the operation goes on."""

    def sent(self, key: tuple[int, int]) -> None:
        """Nothing is left to do for this call."""

    def closed(self, conn: int) -> None:
        """The connection has ended; its open calls stay open."""

    def last_stream(self, conn: int) -> int:
        """The id of the last call received on this connection, 0 if none."""

    def connections(self) -> Iterable[int]:
        """The connections not closed so far."""

    def open_calls(self) -> Iterable[OpenCall]:
        """What earlier processes left to do, oldest first."""


class FdKeeper(Protocol):
    """Holds copies of descriptors for the next process."""

    def keep(self, name: str, *fds: int, poll: bool = True) -> Awaitable[None]:
        """Give copies away now; the result is ready when they surely have arrived."""

    def remove(self, name: str) -> None:
        """Give the copies of this name up."""


def clip(text: str) -> str:
    """An error text as it may go over the wire: at most MAX_TEXT bytes of UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_TEXT:
        data = data[: MAX_TEXT - 4] + " …".encode()
    return data.decode("utf-8", "ignore")


def reply_for(error: BaseException) -> Reply:
    """The answer that an exception of a handler becomes; surprises are logged with their trace."""
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
