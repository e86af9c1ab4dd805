"""The tracer protocol of `sdshim.core.spans` over OpenTelemetry's tracer.

The current span is our own context variable, not OpenTelemetry's: parents are handed over
explicitly, and a span of ours is never the parent of a library's by accident.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from sdshim.core import spans
from sdshim.core.errors import ShimError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType

    from sdshim.core.spans import Attributes, Kind, Parent, Span, Value

_MAX_TEXT = 2048
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}


class OtelSpan:
    """One OpenTelemetry span; as context manager it is current inside and ends after."""

    __slots__ = ("_begun", "_failed", "_span", "_start", "_token")

    def __init__(self, span: Any, start_ns: int) -> None:
        self._span = span
        self._start = start_ns
        self._begun = time.monotonic_ns() - max(0, time.time_ns() - start_ns)
        self._failed: BaseException | None = None
        self._token: Token[Span] | None = None

    @property
    def context(self) -> Any:
        """OpenTelemetry's SpanContext."""
        return self._span.get_span_context()

    @property
    def traceparent(self) -> str:
        context = self.context
        return spans.format_traceparent(context.trace_id, context.span_id, context.trace_flags)

    def headers(self) -> dict[str, str]:
        result = {"traceparent": self.traceparent}
        if self.context.trace_state:
            result["tracestate"] = self.context.trace_state.to_header()
        return result

    def set(self, key: str = "", value: Value = "", /, **attrs: Value) -> None:
        if key:
            self._span.set_attribute(key, value)
        if attrs:
            self._span.set_attributes(attrs)

    def event(self, name: str, /, **attrs: Value) -> None:
        self._span.add_event(name, attrs)

    def fail(self, error: BaseException) -> None:
        if self._failed is error:
            return
        self._failed = error
        text = str(error)[:_MAX_TEXT]
        self._span.set_status(Status(StatusCode.ERROR, text or type(error).__name__))
        self._span.set_attribute(spans.ERROR_TYPE, type(error).__name__)
        details = {"exception.type": type(error).__name__, "exception.message": text}
        if isinstance(error, Exception) and not isinstance(error, ShimError):
            # Ours say what went wrong; of all others the place is wanted.
            details["exception.stacktrace"] = "".join(traceback.format_exception(error))
        self._span.add_event("exception", details)

    def end(self, end_ns: int | None = None) -> None:
        """Finish, by default now: the wall clock may have been set meanwhile, so the time that has
        passed is measured by another. Further calls change nothing."""
        if end_ns is None:
            end_ns = self._start + time.monotonic_ns() - self._begun
        self._span.end(end_ns)

    def __enter__(self) -> OtelSpan:
        self._token = spans.activate(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            spans.deactivate(self._token)
            self._token = None
        if error is not None:
            self.fail(error)
        self.end()


class OtelTracer:
    """Spans that are sent; made by `sdshim.telemetry.export.build`."""

    enabled = True

    def __init__(self, tracer: Any, stop: Callable[[float], bool]) -> None:
        self._tracer = tracer
        self._stop = stop

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
    ) -> OtelSpan:
        start = time.time_ns() if start_ns is None else start_ns
        made = self._tracer.start_span(
            name,
            context=_context(spans.current() if parent is None else parent),
            kind=_KINDS[kind],
            attributes={**(attrs or {}), **more},
            start_time=start,
            record_exception=False,
            set_status_on_exception=False,
        )
        return OtelSpan(made, start)

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
        span = self.span(name, attrs, parent=parent, kind=kind, start_ns=start_ns, **more)
        if error is not None:
            span.fail(error)
        span.end(max(start_ns, end_ns))
        return span.traceparent

    def flush(self, timeout: float) -> bool:
        return self._stop(timeout)


def _context(parent: Span | spans.Remote | str) -> Any:
    """OpenTelemetry's context holding `parent`; an empty one, a new trace, when there is none."""
    if isinstance(parent, OtelSpan):
        return set_span_in_context(NonRecordingSpan(parent.context), Context())
    text = parent if isinstance(parent, str) else parent.traceparent
    ids = spans.parse_traceparent(text)
    if ids is None:
        return Context()
    state = parent.tracestate if isinstance(parent, spans.Remote) else ""
    context = SpanContext(
        trace_id=ids[0],
        span_id=ids[1],
        is_remote=True,
        trace_flags=TraceFlags(ids[2] & TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([state]) if state else None,
    )
    return set_span_in_context(NonRecordingSpan(context), Context())
