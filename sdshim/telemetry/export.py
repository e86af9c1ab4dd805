"""From finished spans to an OTLP endpoint: the SDK's provider, sampler, batches, and one log line.

The exporter (and with it requests or grpc) is imported at the first batch, in the batch thread: it
is not in the daemon's start-up time. A dead endpoint costs one warning until it answers again; the
queue is bounded, no call of ours ever waits for it.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.version import __version__ as sdk_version

from sdshim import __version__
from sdshim.telemetry import PROTOCOLS
from sdshim.telemetry.spans import OtelTracer

if TYPE_CHECKING:
    from sdshim.telemetry import Settings

log = logging.getLogger(__name__)


def build(settings: Settings) -> OtelTracer:
    """The tracer for `settings`, sending in the background."""
    reason = Reason()
    processor = BatchSpanProcessor(LazyExporter(settings, reason))
    return tracer_for(settings, processor)


def tracer_for(settings: Settings, processor: Any) -> OtelTracer:
    """The tracer that hands finished spans to `processor`."""
    provider = TracerProvider(
        sampler=_sampler(settings), resource=_resource(settings), shutdown_on_exit=False
    )
    provider.add_span_processor(processor)

    def stop(timeout: float) -> bool:
        # The SDK's own time limits do not hold when the endpoint hangs: ours is a thread's join.
        def work() -> None:
            provider.force_flush(int(timeout * 1000))
            provider.shutdown()

        thread = threading.Thread(target=work, name="otel-flush", daemon=True)
        thread.start()
        thread.join(timeout)
        return not thread.is_alive()

    return OtelTracer(provider.get_tracer("sdshim", __version__), stop)


def _sampler(settings: Settings) -> Any:
    name = settings.sampler.removeprefix("parentbased_")
    root = {
        "always_on": sampling.ALWAYS_ON,
        "always_off": sampling.ALWAYS_OFF,
        "traceidratio": sampling.TraceIdRatioBased(settings.ratio),
    }[name]
    return root if name == settings.sampler else sampling.ParentBased(root)


def _resource(settings: Settings) -> Any:
    return Resource(
        {
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.version": sdk_version,
            "service.version": __version__,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            **dict(settings.resource),
            "service.name": settings.service_name,
        }
    )


class Reason(logging.Handler):
    """Takes over OpenTelemetry's log: the exporter's last words are kept, the rest said once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        self._said: set[str] = set()
        theirs = logging.getLogger("opentelemetry")
        for old in [one for one in theirs.handlers if isinstance(one, Reason)]:
            theirs.removeHandler(old)
        theirs.addHandler(self)
        theirs.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.exporter"):
            self.text = record.getMessage()
        elif str(record.msg) not in self._said:
            self._said.add(str(record.msg))
            log.warning("tracing: %s", record.getMessage())


class LazyExporter:
    """The OTLP exporter (an SDK SpanExporter by shape), imported when the first batch leaves."""

    def __init__(self, settings: Settings, reason: Reason) -> None:
        self._settings = settings
        self._reason = reason
        self._exporter: Any = None
        self._failing = False

    def export(self, batch: Any) -> Any:
        """Send one batch; failures are a result, never an exception."""
        try:
            if self._exporter is None:
                _, _, module, _ = PROTOCOLS[self._settings.protocol]
                exporter = importlib.import_module(module).OTLPSpanExporter
                self._exporter = exporter(endpoint=self._settings.endpoint)
            result = self._exporter.export(batch)
        except Exception as error:  # whatever a foreign library may raise
            self._reason.text = f"{type(error).__name__}: {error}"
            result = SpanExportResult.FAILURE
        self._say(result is SpanExportResult.SUCCESS)
        return result

    def _say(self, sent: bool) -> None:
        if sent and self._failing:
            log.warning("tracing: %s takes spans again", self._settings.endpoint)
        elif not sent and not self._failing:
            log.warning(
                "tracing: spans are lost, %s does not take them: %s (said once)",
                self._settings.endpoint,
                self._reason.text or "no reason given",
            )
        self._failing = not sent

    def shutdown(self) -> None:
        """Called by the SDK at the end."""
        if self._exporter is not None:
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits here: the batches do, in the SDK."""
        return True
