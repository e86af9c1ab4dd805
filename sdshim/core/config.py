"""The daemon's configuration: /etc/sdshim/config.toml, every key with a default.

All faults of a file are reported at once. `sdshim config` prints the effective values.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sdshim.core import logs
from sdshim.core.errors import InvalidArgument
from sdshim.core.options import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    device_rules: bool = False
    """cgroup v2: a container's device rules show as DeviceAllow= of its unit too, for 1 to 4 ms of
    systemd's time a container."""
    create_timeout: float = 300.0
    """Mounts and the OCI runtime's create together."""
    runtime_timeout: float = 120.0
    """What the OCI runtime may take for anything else; then it is killed."""
    logger_timeout: float = 30.0
    """How long a logger of a log URI may take to be ready."""
    otlp_endpoint: str = ""
    """OTLP endpoint for spans; the OTEL_* variables win."""
    log_level: str = "info"
    """debug, info, warning or error: of the daemon's own log."""
    log: str = ""
    """Where the output of containers goes: stdio, journal, both or null; empty: where the client
    wants it, and to the journal when it asks for no streams."""
    log_namespace: str = ""
    """The journal's namespace for it; empty: the machine's own."""
    log_stdout_priority: str = "info"
    log_stderr_priority: str = "err"
    """journald's priorities of lines without one of their own."""
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """containerd namespace → the four keys above, for its containers."""

    def logging(self, namespace: str) -> Mapping[str, str]:
        """What holds for the output of containers of a containerd namespace."""
        own = self.namespaces.get(namespace, {})
        return {key: own.get(key, getattr(self, key)) for key in logs.KEYS}


MAX_SECONDS = 10**9
"""Of a time: some 30 years, far below what systemd's microseconds hold."""
LEVELS = ("debug", "info", "warning", "error")


def parse(document: dict[str, Any], source: str = DEFAULT_PATH) -> Config:
    """The configuration in a TOML document. Raises InvalidArgument naming every fault."""
    defaults = asdict(Config())
    faults = [f"unknown key {shown(key)}" for key in document if key not in defaults]
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in defaults:
            continue
        default = defaults[key]
        if key == "namespaces":
            faults += _check_namespaces(value)
            values[key] = value
            continue
        wanted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
        if isinstance(value, bool) is not isinstance(default, bool) or not isinstance(
            value, wanted
        ):
            faults.append(f"{key} must be a {type(default).__name__}, not {shown(value)}")
        else:
            values[key] = value
    faults += _check(values)
    if faults:
        raise InvalidArgument(f"{source}: " + "; ".join(faults))
    times = {key: float(value) for key, value in values.items() if isinstance(defaults[key], float)}
    return Config(**{**values, **times})


def _check(values: dict[str, Any]) -> list[str]:
    faults = [
        f"{key} must be an absolute path, not {shown(values[key])}"
        for key in ("run_dir", "containerd_address")
        if key in values and not values[key].startswith("/")
    ]
    faults += [
        f"{key} must be above 0 and at most {MAX_SECONDS}, not {shown(values[key])}"
        for key in ("stop_timeout", "create_timeout", "runtime_timeout", "logger_timeout")
        if key in values and not 0 < values[key] <= MAX_SECONDS
    ]
    faults += [
        f"{key} {shown(text)} has unprintable characters"
        for key, text in values.items()
        if isinstance(text, str) and not text.isprintable()
    ]
    if values.get("log_level", "info") not in LEVELS:
        faults.append(
            f"log_level must be one of {', '.join(LEVELS)}, not {shown(values['log_level'])}"
        )
    return faults + logs.faults(values)


def _check_namespaces(table: Any) -> list[str]:
    """What is wrong with the tables [namespaces.NAME]."""
    if not isinstance(table, dict) or not all(isinstance(one, dict) for one in table.values()):
        return ["namespaces must hold tables: [namespaces.NAME]"]
    faults = []
    for name, keys in table.items():
        where = f"namespaces.{name}"
        faults += [f"{where}: unknown key {key!r}" for key in keys if key not in logs.KEYS]
        texts = {key: one for key, one in keys.items() if isinstance(one, str)}
        faults += [f"{where}: {key} must be a str" for key in keys if key not in texts]
        faults += [f"{where}: {fault}" for fault in logs.faults(texts)]
    return faults


def render(config: Config) -> str:
    """The configuration as TOML."""
    lines = []
    for key, value in asdict(config).items():
        if key == "namespaces":
            continue
        text = json.dumps(value)  # as TOML has it, for texts and numbers of ours
        lines.append(f"{key} = {text}")
    for name, keys in config.namespaces.items():
        lines += ["", f"[namespaces.{_quoted(name)}]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text)
