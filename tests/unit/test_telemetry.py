"""telemetry: nesting, parents over processes, sampling, and an endpoint that is dead."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sdshim import telemetry
from sdshim.core import spans
from sdshim.core.errors import NotFound
from sdshim.core.spans import NULL_TRACER, Tracer
from sdshim.telemetry.export import tracer_for
from tests.tools.collector import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
REMOTE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Kept:
    """A tracer whose finished spans stay here."""

    def __init__(self, **environ: str) -> None:
        self.exporter = InMemorySpanExporter()
        settings = telemetry.read_settings(HERE | environ, None)
        assert settings is not None
        self.tracer: Tracer = tracer_for(settings, SimpleSpanProcessor(self.exporter))

    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def one(self, name: str) -> Any:
        (found,) = [span for span in self.spans() if span.name == name]
        return found

    def parent(self, name: str) -> str | None:
        parent = self.one(name).parent
        names = {span.context.span_id: str(span.name) for span in self.spans()}
        return None if parent is None else names.get(parent.span_id, "remote")


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def own_log() -> Iterator[None]:
    """Undo what build() does to OpenTelemetry's logger."""
    theirs = logging.getLogger("opentelemetry")
    before = theirs.handlers[:], theirs.propagate
    yield
    theirs.handlers[:], theirs.propagate = before


def test_spans_nest(kept: Kept) -> None:
    with kept.tracer.span("outer", {spans.CONTAINER_ID: "c"}, kind="server") as outer:
        assert spans.current() is outer
        with kept.tracer.span("inner"):
            pass
        kept.tracer.record("timed", 1, 2)
    assert spans.current() is spans.NULL_SPAN
    assert [kept.parent(name) for name in ("outer", "inner", "timed")] == [None, "outer", "outer"]
    assert kept.one("outer").attributes == {"container.id": "c"}
    assert kept.one("outer").kind.name == "SERVER"


def test_spans_nest_in_every_task_by_itself(kept: Kept) -> None:
    async def operation(number: int) -> None:
        with kept.tracer.span(f"op{number}"):
            await asyncio.sleep(0)
            with kept.tracer.span(f"step{number}"):
                await asyncio.sleep(0)
            await asyncio.create_task(child(number))

    async def child(number: int) -> None:
        await asyncio.sleep(0)
        with kept.tracer.span(f"child{number}"):
            await asyncio.sleep(0)

    async def main() -> None:
        with kept.tracer.span("main"):
            await asyncio.gather(*(operation(number) for number in range(5)))

    asyncio.run(main())
    for number in range(5):
        assert kept.parent(f"op{number}") == "main"
        assert kept.parent(f"step{number}") == f"op{number}"
        assert kept.parent(f"child{number}") == f"op{number}"
    assert len({span.context.trace_id for span in kept.spans()}) == 1


def test_the_callers_span_is_the_parent(kept: Kept) -> None:
    remote = spans.remote_parent({"traceparent": (REMOTE,), "tracestate": ("vendor=1",)})
    with kept.tracer.span("rpc", parent=remote, kind="server") as span:
        assert span.headers() == {"traceparent": span.traceparent, "tracestate": "vendor=1"}
    rpc = kept.one("rpc")
    assert f"{rpc.context.trace_id:032x}" == REMOTE[3:35]
    assert f"{rpc.parent.span_id:016x}" == REMOTE[36:52]
    assert rpc.parent.is_remote


@pytest.mark.parametrize("text", ["", "junk", "00-0-0-0"])
def test_without_a_valid_parent_a_trace_begins(kept: Kept, text: str) -> None:
    with kept.tracer.span("outer"), kept.tracer.span("root", parent=text):
        pass
    assert kept.parent("root") is None


def test_a_kept_traceparent_joins_later(kept: Kept) -> None:
    with kept.tracer.span("create") as span:
        on_disk = span.traceparent
    later = Kept()
    exited = later.tracer.record(
        "exit", 5_000, 9_000, {spans.EXIT_CODE: 137, spans.PID: 7}, parent=on_disk
    )
    with later.tracer.span("event", parent=exited, kind="client"):
        pass
    span, event = later.one("exit"), later.one("event")
    assert (span.start_time, span.end_time) == (5_000, 9_000)
    assert span.attributes == {"process.exit.code": 137, "process.pid": 7}
    assert span.parent.span_id == kept.one("create").context.span_id
    assert event.parent.span_id == span.context.span_id


def test_record_never_ends_before_it_begins(kept: Kept) -> None:
    kept.tracer.record("back", 9, 5, error=NotFound("gone"))
    back = kept.one("back")
    assert (back.start_time, back.end_time) == (9, 9)
    assert back.status.description == "gone"


def test_start_can_be_dated_back(kept: Kept) -> None:
    begin = time.time_ns() - 1_000_000
    with kept.tracer.span("rpc", start_ns=begin):
        pass
    assert kept.one("rpc").start_time == begin


@pytest.mark.parametrize("set_to", [5, 2**62])
def test_a_span_is_as_long_as_it_took_however_the_clock_is_set(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, set_to: int
) -> None:
    with kept.tracer.span("rpc"):
        monkeypatch.setattr(time, "time_ns", lambda: set_to)
    rpc = kept.one("rpc")
    assert 0 <= rpc.end_time - rpc.start_time < 10**10


def test_an_error_of_ours_has_no_traceback(kept: Kept) -> None:
    with pytest.raises(NotFound), kept.tracer.span("rpc") as span:
        span.set(spans.RPC_STATUS, 5)
        raise NotFound("container not created: not found")
    rpc = kept.one("rpc")
    assert rpc.status.status_code.name == "ERROR"
    assert rpc.status.description == "container not created: not found"
    assert rpc.attributes == {"rpc.grpc.status_code": 5, "error.type": "NotFound"}
    (event,) = rpc.events
    assert "exception.stacktrace" not in event.attributes


def test_any_other_error_has_one(kept: Kept) -> None:
    with pytest.raises(KeyError), kept.tracer.span("rpc") as span:
        try:
            raise KeyError("k")
        except KeyError as error:
            span.fail(error)
            raise
    (event,) = kept.one("rpc").events  # once, though failed twice
    assert "test_any_other_error_has_one" in event.attributes["exception.stacktrace"]


def test_cancellation_is_seen(kept: Kept) -> None:
    async def main() -> None:
        async def work() -> None:
            with kept.tracer.span("work"):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert kept.one("work").attributes["error.type"] == "CancelledError"


@pytest.mark.parametrize(
    ("sampler", "argument", "parent", "kept_count"),
    [
        ("", "", "", 2),
        ("", "", REMOTE, 2),
        ("", "", REMOTE[:-2] + "00", 0),
        ("parentbased_always_off", "", "", 0),
        ("parentbased_always_off", "", REMOTE, 2),
        ("parentbased_traceidratio", "0", "", 0),
        ("parentbased_traceidratio", "0", REMOTE, 2),
        ("always_off", "", REMOTE, 0),
        ("always_on", "", REMOTE[:-2] + "00", 2),
    ],
)
def test_sampling(sampler: str, argument: str, parent: str, kept_count: int) -> None:
    kept = Kept(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument)
    with kept.tracer.span("rpc", parent=parent) as span, kept.tracer.span("step"):
        # The decision travels on (bit 1, a random trace id, is new SDKs').
        assert int(span.traceparent[-2:], 16) & 1 == bool(kept_count)
    assert len(kept.spans()) == kept_count


def test_resource() -> None:
    kept = Kept(OTEL_RESOURCE_ATTRIBUTES="service.name=a,zone=b%20c,junk", OTEL_SERVICE_NAME="s")
    with kept.tracer.span("a"):
        pass
    resource = kept.one("a").resource.attributes
    assert resource["service.name"] == "s"
    assert resource["zone"] == "b c"
    assert resource["host.name"] == socket.gethostname()
    assert "service.version" in resource
    settings = telemetry.read_settings(HERE, None)
    assert settings is not None
    assert settings.service_name == "sdshim"


@pytest.mark.parametrize(
    ("environ", "config", "endpoint"),
    [
        ({}, None, None),
        ({}, "", None),
        ({"OTEL_TRACES_EXPORTER": "none", **HERE}, "http://c:1", None),
        ({"OTEL_SDK_DISABLED": "TRUE", **HERE}, "http://c:1", None),
        ({}, "http://c:1", "http://c:1/v1/traces"),
        ({}, "http://c:1/v1/traces", "http://c:1/v1/traces"),
        (HERE, "http://c:1", "http://127.0.0.1:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x", **HERE}, None, "http://t/x"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, None, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://c:4317", "http://c:4317"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            None,
            "http://localhost:4317",
        ),
    ],
)
def test_endpoint(environ: dict[str, str], config: str | None, endpoint: str | None) -> None:
    settings = telemetry.read_settings(environ, config)
    assert (settings and settings.endpoint) == endpoint


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", **HERE}, "http/json"),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote", **HERE}, "jaeger_remote"),
        ({"OTEL_TRACES_SAMPLER_ARG": "2", **HERE}, "OTEL_TRACES_SAMPLER_ARG=2"),
    ],
)
def test_a_wrong_wish_is_one_warning(
    environ: dict[str, str], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert telemetry.tracer_from_env(environ) is NULL_TRACER
    (record,) = caplog.records
    assert word in record.getMessage()


@pytest.mark.parametrize(
    ("missing", "protocol", "package"),
    [
        ("opentelemetry.sdk", "http/protobuf", "opentelemetry-sdk"),
        ("opentelemetry.exporter", "http/protobuf", "opentelemetry-exporter-otlp-proto-http"),
        ("opentelemetry.exporter", "grpc", "opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_missing_packages_are_named(
    missing: str,
    protocol: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def installed(module: str) -> bool:
        return not module.startswith(missing)

    monkeypatch.setattr(telemetry, "_installed", installed)
    environ = HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    assert telemetry.tracer_from_env(environ) is NULL_TRACER
    (record,) = caplog.records
    assert f"package {package} is not" in record.getMessage()


def test_unfindable_modules_are_missing() -> None:
    assert not telemetry._installed("no_such_package.at.all")
    assert telemetry._installed("opentelemetry.sdk.trace")


@pytest.mark.usefixtures("own_log")
def test_a_dead_endpoint_disturbs_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        tracer = telemetry.tracer_from_env({}, endpoint)
        assert tracer.enabled
        begin = time.monotonic()
        for number in range(300):
            with tracer.span("rpc", n=number):
                pass
        assert time.monotonic() - begin < 2.0
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.02)
        begin = time.monotonic()
        tracer.flush(0.5)
        assert time.monotonic() - begin < 2.0
    (record,) = caplog.records
    assert endpoint in record.getMessage()
    assert "said once" in record.getMessage()


@pytest.mark.usefixtures("own_log")
def test_spans_reach_a_collector(tmp_path: Path) -> None:
    out = tmp_path / "spans.jsonl"
    with Collector(out) as collector:
        tracer = telemetry.tracer_from_env({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint})
        with tracer.span("rpc", {spans.CONTAINER_ID: "c", spans.PID: 7}, kind="server") as span:
            span.event("seen", n=1)
        assert tracer.flush(10.0)
        with tracer.span("after the end"):
            pass
    (line,) = out.read_text().splitlines()
    record = json.loads(line)
    assert record["name"] == "rpc"
    assert record["kind"] == "server"
    assert record["attributes"] == {"container.id": "c", "process.pid": 7}
    assert record["resource"]["service.name"] == "sdshim"
    assert record["events"][0]["name"] == "seen"
    assert record["trace_id"] == span.traceparent[3:35]
