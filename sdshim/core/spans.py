"""Spans without a tracing library: the protocol all rooms code against, and the null tracer.

An operation is ``with tracer.span("mount", {spans.CONTAINER_ID: id}) as span:``; spans nest by
themselves through a context variable, so inside one asyncio task (and the tasks it starts) no
parent is passed on. What leaves the process or the task travels as text: `span.traceparent` is
kept on disk and given as `parent=` by whoever goes on later, in another process too.
`sdshim.telemetry` holds the tracer that sends something; off, a span costs one method call.
"""

from __future__ import annotations

import re
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

Value: TypeAlias = "str | bool | int | float"
Attributes: TypeAlias = "Mapping[str, Value]"
Kind: TypeAlias = Literal["internal", "server", "client"]

# Attribute names; OpenTelemetry's own where it has one.
NAMESPACE = "containerd.namespace"
CONTAINER_ID = "container.id"
EXEC_ID = "container.exec.id"
UNIT = "systemd.unit"
PID = "process.pid"
EXIT_CODE = "process.exit.code"
RPC_SYSTEM = "rpc.system"  # always "ttrpc" or "grpc"
RPC_SERVICE = "rpc.service"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.grpc.status_code"  # ttrpc has gRPC's codes
ERROR_TYPE = "error.type"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_MAX_HEADER = 8192


class Span(Protocol):
    """One timed piece of work."""

    @property
    def traceparent(self) -> str:
        """This span's W3C traceparent, to be kept or sent on; empty when nothing is traced."""

    def headers(self) -> dict[str, str]:
        """What an outgoing call carries (`traceparent`, `tracestate`); empty when off."""

    def set(self, key: str = "", value: Value = "", /, **attrs: Value) -> None:
        """Set one attribute by name, or several."""

    def event(self, name: str, /, **attrs: Value) -> None:
        """Note that something happened now, inside this span."""

    def fail(self, error: BaseException) -> None:
        """Mark as failed. An exception that leaves the `with` does this by itself."""


class Remote(NamedTuple):
    """A caller's span, from its metadata. Baggage is kept as it came, nothing reads it."""

    traceparent: str
    tracestate: str = ""
    baggage: str = ""


# None: the current span; a span, a caller or a kept traceparent: that one; "": none, a new trace.
Parent: TypeAlias = "Span | Remote | str | None"


class Tracer(Protocol):
    """Makes spans. Never raises into the work it watches."""

    @property
    def enabled(self) -> bool:
        """False when spans go nowhere: a caller may skip what only serves them."""

    def span(
        self,
        name: str,
        attrs: Attributes | None = None,
        /,
        *,
        parent: Parent = None,
        kind: Kind = "internal",
        start_ns: int | None = None,
        **more: Value,
    ) -> AbstractContextManager[Span]:
        """Span around a `with` block, current inside it; `start_ns` dates its begin back.

        Attributes are a mapping (`{spans.CONTAINER_ID: id}`, the form that type-checks for
        names with dots), or keywords.
        """

    def record(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        attrs: Attributes | None = None,
        /,
        *,
        parent: Parent = None,
        kind: Kind = "internal",
        error: BaseException | None = None,
        **more: Value,
    ) -> str:
        """Span of what somebody else timed (ns since the epoch); returns its traceparent."""

    def flush(self, timeout: float) -> bool:
        """Send what is waiting and stop, at the daemon's end; blocks for `timeout` s at most."""


class NullSpan:
    """The span of a tracer that is off; one for all, also as context manager."""

    __slots__ = ()
    traceparent = ""

    def headers(self) -> dict[str, str]:
        return {}

    def set(self, key: str = "", value: Value = "", /, **attrs: Value) -> None:
        pass

    def event(self, name: str, /, **attrs: Value) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass

    def __enter__(self) -> NullSpan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


NULL_SPAN = NullSpan()


class NullTracer:
    """Tracing is off."""

    __slots__ = ()
    enabled = False

    def span(
        self,
        name: str,
        attrs: Attributes | None = None,
        /,
        *,
        parent: Parent = None,
        kind: Kind = "internal",
        start_ns: int | None = None,
        **more: Value,
    ) -> NullSpan:
        return NULL_SPAN

    def record(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        attrs: Attributes | None = None,
        /,
        *,
        parent: Parent = None,
        kind: Kind = "internal",
        error: BaseException | None = None,
        **more: Value,
    ) -> str:
        return ""

    def flush(self, timeout: float) -> bool:
        return True


NULL_TRACER = NullTracer()

_current: ContextVar[Span] = ContextVar("sdshim_span", default=NULL_SPAN)


def current() -> Span:
    """The innermost open span of this task, `NULL_SPAN` outside of any."""
    return _current.get()


def activate(span: Span) -> Token[Span]:
    """Make `span` current; for tracers."""
    return _current.set(span)


def deactivate(token: Token[Span]) -> None:
    """Undo `activate`; quietly nothing when a generator is closed in another context."""
    try:
        _current.reset(token)
    except ValueError:
        return


def parse_traceparent(text: str) -> tuple[int, int, int] | None:
    """(trace id, span id, flags) of a W3C traceparent, None when it is not a valid one."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    ids = int(trace_id, 16), int(span_id, 16), int(flags, 16)
    return ids if ids[0] and ids[1] else None


def format_traceparent(trace_id: int, span_id: int, flags: int) -> str:
    """The reverse of `parse_traceparent`."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


def remote_parent(metadata: Mapping[str, tuple[str, ...]]) -> Remote | None:
    """The caller's span from a request's metadata (lower-case keys); None: absent or invalid."""
    parents = metadata.get("traceparent", ())
    if len(parents) != 1 or parse_traceparent(parents[0].strip()) is None:
        return None
    return Remote(parents[0].strip(), _joined(metadata, "tracestate"), _joined(metadata, "baggage"))


def _joined(metadata: Mapping[str, tuple[str, ...]], key: str) -> str:
    text = ",".join(metadata.get(key, ()))
    return text if len(text) <= _MAX_HEADER and _PRINTABLE.fullmatch(text) else ""
