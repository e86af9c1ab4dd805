"""What the parts of this room ask of each other and of the rooms beside it.

For type checkers only: import it under TYPE_CHECKING, the daemon's start is paid by its clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

    from sdshim.core.errors import ShimError
    from sdshim.ttrpc.calls import Call, CallKind
    from sdshim.ttrpc.connection import Connection
    from sdshim.ttrpc.frames import Header


class Peer(Protocol):
    """The connection a call came on, as far as handlers need it."""

    def peer_gone(self) -> bool:
        """Whether nobody waits for replies any more."""


class Sink(Protocol):
    """Where frames go."""

    def frame(self, conn: Connection, header: Header, data: bytes) -> None:
        """A whole frame; make it safe or answer it, then `Reader.take` it."""

    def refuse(self, conn: Connection, stream: int, error: ShimError) -> None:
        """Answer a frame that is not even read."""

    def end(self, conn: Connection, why: str) -> None:
        """Nothing more comes on this connection."""


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
    def begun(self) -> bool: ...
    @property
    def reply(self) -> tuple[int, str, bytes] | None: ...
    @property
    def note(self) -> bytes: ...


class CallLog(Protocol):
    """Remembers calls across the death of the process."""

    def is_lost(self, conn: int) -> bool:
        """Whether calls of earlier processes were open there that nobody can tell any more."""

    def settled(self) -> None:
        """The connections of lost calls have been ended."""

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

    def begun(self, key: tuple[int, int]) -> None:
        """What must not happen twice is about to happen."""

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
