"""The daemon's configuration: /etc/sdshim/config.toml, every key with a default.

All faults of a file are reported at once. `sdshim config` prints the effective values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sdshim.core.errors import InvalidArgument

DEFAULT_PATH = "/etc/sdshim/config.toml"


@dataclass(frozen=True, slots=True)
class Config:
    """Effective settings. Times in seconds."""

    run_dir: str = "/run/sdshim"
    """Sockets, state and journal; must be on a tmpfs that outlives the daemon."""
    containerd_address: str = "/run/containerd/containerd.sock.ttrpc"
    """ttrpc socket that gets the events of a task whose `start` was never run by containerd."""
    runtime: str = "runc"
    """OCI runtime when the options of a task name none."""
    stop_timeout: float = 10.0
    """`systemctl stop` of a container: time between its stop signal and SIGKILL."""
    create_timeout: float = 300.0
    """Mounts and the OCI runtime's create together."""
    runtime_timeout: float = 120.0
    """What the OCI runtime may take for anything else; then it is killed."""
    logger_timeout: float = 30.0
    """How long a logger of a log URI may take to be ready."""
    otlp_endpoint: str = ""
    """OTLP endpoint for spans; the OTEL_* variables win."""
    log_level: str = "info"
    """debug, info, warning or error."""


LEVELS = ("debug", "info", "warning", "error")


def parse(document: dict[str, Any], source: str = DEFAULT_PATH) -> Config:
    """The configuration in a TOML document. Raises InvalidArgument naming every fault."""
    defaults = asdict(Config())
    faults = [f"unknown key {key!r}" for key in document if key not in defaults]
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in defaults:
            continue
        default = defaults[key]
        wanted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
        if isinstance(value, bool) or not isinstance(value, wanted):
            faults.append(f"{key} must be a {type(default).__name__}, not {value!r}")
        else:
            values[key] = wanted[-1](value)
    faults += _check(values)
    if faults:
        raise InvalidArgument(f"{source}: " + "; ".join(faults))
    return Config(**values)


def _check(values: dict[str, Any]) -> list[str]:
    faults = [
        f"{key} must be an absolute path, not {values[key]!r}"
        for key in ("run_dir", "containerd_address")
        if key in values and not values[key].startswith("/")
    ]
    faults += [
        f"{key} must be above 0, not {values[key]!r}"
        for key in ("stop_timeout", "create_timeout", "runtime_timeout", "logger_timeout")
        if key in values and not values[key] > 0
    ]
    if values.get("log_level", "info") not in LEVELS:
        faults.append(f"log_level must be one of {', '.join(LEVELS)}, not {values['log_level']!r}")
    return faults


def render(config: Config) -> str:
    """The configuration as TOML."""
    lines = []
    for key, value in asdict(config).items():
        text = f'"{value}"' if isinstance(value, str) else repr(value)
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"
