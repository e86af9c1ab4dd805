"""Sends spans by OTLP; the one room that imports OpenTelemetry, and only when it is switched on.

`tracer_from_env` decides by OpenTelemetry's own environment variables (all OTEL_* of the SDK and
its exporter work) and the configured endpoint. Whatever is wrong with tracing costs a warning,
never a container: the answer is then the tracer that does nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from sdshim.core.spans import NULL_TRACER, Tracer

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

# protocol → (default endpoint, path below a general endpoint, exporter's module, its package)
PROTOCOLS = {
    "http/protobuf": (
        "http://localhost:4318",
        "/v1/traces",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry-exporter-otlp-proto-http",
    ),
    "grpc": (
        "http://localhost:4317",
        "",
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "opentelemetry-exporter-otlp-proto-grpc",
    ),
}
SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)


class Settings(NamedTuple):
    """What the environment asks for."""

    endpoint: str
    protocol: str
    service_name: str
    resource: tuple[tuple[str, str], ...]
    sampler: str
    ratio: float


def tracer_from_env(environ: Mapping[str, str], config_endpoint: str | None = None) -> Tracer:
    """The tracer that `environ` (which wins) or the configuration asks for, else the null one."""
    try:
        settings = read_settings(environ, config_endpoint)
    except ValueError as error:
        log.warning("tracing is off: %s", error)
        return NULL_TRACER
    if settings is None:
        return NULL_TRACER
    _, _, module, package = PROTOCOLS[settings.protocol]
    for needed, name in (("opentelemetry.sdk.trace", "opentelemetry-sdk"), (module, package)):
        if not _installed(needed):
            log.warning(
                "tracing is off: an OTLP endpoint is configured (%s), but the package %s is not"
                " installed (hint: install it, or unset OTEL_EXPORTER_OTLP_ENDPOINT)",
                settings.endpoint,
                name,
            )
            return NULL_TRACER
    try:
        from sdshim.telemetry.export import build

        return build(settings)
    except Exception:  # whatever a foreign library may raise; containers matter more
        log.warning("tracing is off: OpenTelemetry could not be started", exc_info=True)
        return NULL_TRACER


def read_settings(environ: Mapping[str, str], config_endpoint: str | None) -> Settings | None:
    """None: tracing is off. ValueError: asked for, but not like this."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    exact = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    general = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or (config_endpoint or "")
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    if not (exact or general or exporter):
        return None
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER={exporter} is not supported (hint: otlp or none)")
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "").strip()
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
        or "http/protobuf"
    )
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"OTLP protocol {protocol} is not supported (hint: {' or '.join(PROTOCOLS)})"
        )
    default, path, _, _ = PROTOCOLS[protocol]
    endpoint = exact or (general or default).rstrip("/").removesuffix(path) + path
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
    if sampler not in SAMPLERS:
        raise ValueError(f"OTEL_TRACES_SAMPLER={sampler} is unknown (hint: {', '.join(SAMPLERS)})")
    resource = _pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    service = environ.get("OTEL_SERVICE_NAME", "") or dict(resource).get("service.name", "sdshim")
    return Settings(endpoint, protocol, service, resource, sampler, _ratio(environ))


def _ratio(environ: Mapping[str, str]) -> float:
    text = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG={text} is not a number from 0 to 1")
    return ratio


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    if not text:
        return ()
    from urllib.parse import unquote

    split = (entry.partition("=") for entry in text.split(","))
    return tuple((key.strip(), unquote(value.strip())) for key, eq, value in split if eq)


def _installed(module: str) -> bool:
    import importlib.util  # here, as above: a daemon without tracing starts without it

    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
