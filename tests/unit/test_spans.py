"""core.spans: the null tracer costs nothing, and W3C headers are read strictly."""

from __future__ import annotations

import subprocess
import sys
import timeit
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core import spans
from sdshim.core.spans import NULL_SPAN, NULL_TRACER, Remote, Span, Tracer

ROOT = Path(__file__).resolve().parents[2]
GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_null_tracer_is_a_tracer() -> None:
    tracer: Tracer = NULL_TRACER
    with tracer.span("a", {spans.CONTAINER_ID: "c"}, kind="server") as outer:
        span: Span = outer
        span.set("key", 1)
        span.set(**{spans.PID: 1})
        span.event("e", n=1)
        span.fail(ValueError())
        assert (span.traceparent, span.headers()) == ("", {})
        assert spans.current() is NULL_SPAN
    assert tracer.record("b", 1, 2, parent=span) == ""
    assert tracer.flush(1.0)
    assert not tracer.enabled


def test_the_null_tracer_makes_nothing() -> None:
    assert NULL_TRACER.span("a") is NULL_TRACER.span("b", x=1) is NULL_SPAN

    def one() -> None:
        with NULL_TRACER.span("a"):
            pass

    assert min(timeit.repeat(one, number=1000, repeat=5)) < 0.005  # 5 µs each; it takes 0.2


def test_exceptions_pass_the_null_span() -> None:
    with pytest.raises(ValueError, match="x"), NULL_TRACER.span("a"):
        raise ValueError("x")


@pytest.mark.parametrize(
    "environ",
    [{}, {"OTEL_SERVICE_NAME": "x"}, {"OTEL_TRACES_EXPORTER": "none"}],
)
def test_off_imports_no_opentelemetry(environ: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from sdshim import telemetry\n"
        f"tracer = telemetry.tracer_from_env({environ!r})\n"
        "with tracer.span('a', n=1): pass\n"
        "foreign = ('opentelemetry', 'requests', 'google', 'grpc')\n"
        "print(tracer.enabled, [m for m in sys.modules if m.split('.')[0] in foreign])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    assert run.stdout == b"False []\n"


@given(
    st.integers(min_value=1, max_value=2**128 - 1),
    st.integers(min_value=1, max_value=2**64 - 1),
    st.integers(min_value=0, max_value=255),
)
def test_traceparents_come_back(trace_id: int, span_id: int, flags: int) -> None:
    text = spans.format_traceparent(trace_id, span_id, flags)
    assert spans.parse_traceparent(text) == (trace_id, span_id, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        GOOD.upper(),
        GOOD + "-more",
        GOOD + "\n",
        "ff" + GOOD[2:],
        GOOD[:-1],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "01" + GOOD[2:] + "x",
    ],
)
def test_invalid_traceparents_are_none(text: str) -> None:
    assert spans.parse_traceparent(text) is None


def test_a_later_version_is_read() -> None:
    assert spans.parse_traceparent("01" + GOOD[2:] + "-more") == spans.parse_traceparent(GOOD)


def test_remote_parent() -> None:
    metadata = {
        "traceparent": (GOOD,),
        "tracestate": ("a=1", "b=2"),
        "baggage": ("k=v",),
        "containerd-namespace-ttrpc": ("default",),
    }
    assert spans.remote_parent(metadata) == Remote(GOOD, "a=1,b=2", "k=v")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"tracestate": ("a=1",)},
        {"traceparent": ()},
        {"traceparent": ("junk",), "tracestate": ("a=1",)},
        {"traceparent": (GOOD, GOOD)},
    ],
)
def test_no_remote_parent(metadata: dict[str, tuple[str, ...]]) -> None:
    assert spans.remote_parent(metadata) is None


def test_bad_state_and_baggage_are_left_out() -> None:
    metadata = {"traceparent": (GOOD,), "tracestate": ("a=\n",), "baggage": ("x" * 9000,)}
    assert spans.remote_parent(metadata) == Remote(GOOD)


@given(st.dictionaries(st.text(max_size=12), st.tuples(st.text(max_size=80)), max_size=4))
def test_any_metadata_is_survived(metadata: dict[str, tuple[str, ...]]) -> None:
    spans.remote_parent({**metadata, "traceparent": next(iter(metadata.values()), ())})
