"""`-info` (containerd 2.0 and newer) and `-v`."""

from __future__ import annotations

import os
import sys

from sdshim.launcher.cmdline import NAME
from sdshim.launcher.wire import Message, encode

RUNTIME = "io.containerd.systemd.v1"
_RUNC = "containerd.runc.v1.Options"
_GENERIC = "runtimeoptions.v1.Options"
_OURS = "sdshim.v1.Options"
_MAX_TOML = 1 << 20
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_PATIENCE = 3.0


def runtime_info(options: bytes) -> bytes:
    """containerd.types.RuntimeInfo; `options` is the serialized Any from stdin, or nothing."""
    try:
        binary = _binary_name(Message(options))
    except ValueError:  # garbage: echoed it would spoil the answer
        binary, options = "runc", b""
    features = _features(binary)
    return encode(
        (1, RUNTIME),
        (2, encode((1, version()))),
        (3, options),
        (4, encode((1, _FEATURES), (2, features)) if features else b""),
    )


def version_text() -> bytes:
    """What `-v` prints, in the form of containerd's own shims."""
    python = ".".join(str(n) for n in sys.version_info[:3])
    return f"{NAME}:\n  Version:  {version()}\n  Python:   {python}\n".encode()


def version() -> str:
    """The package's version, read from its file."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(f"{package}/__init__.py", encoding="utf-8") as file:
        for line in file:
            if line.startswith("__version__"):
                return line.partition("=")[2].strip().strip("\"'")
    return "unknown"


def _binary_name(options: Message) -> str:
    """The OCI runtime that the options name (daemon/options.py checks them), else runc."""
    kind = options.text(1).rpartition("/")[2]
    if kind not in (_RUNC, _GENERIC, _OURS):
        return "runc"
    value = Message(options.data(2))
    if kind == _GENERIC:
        return _named_in_toml(value.data(3) or _read(value.text(2))) or "runc"
    return value.text(6 if kind == _RUNC else 1) or "runc"


def _named_in_toml(body: bytes) -> str:
    if not body.strip():
        return ""
    import tomllib

    try:
        document = tomllib.loads(body.decode())
    except (ValueError, RecursionError):  # Create will say so
        return ""
    name = document.get("oci_runtime") or document.get("BinaryName")
    return name if isinstance(name, str) else ""


def _read(path: str) -> bytes:
    """A file that Create would read too: root's own, regular, not large."""
    import stat

    if not path.startswith("/") or "\0" in path:
        return b""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            facts = os.fstat(file.fileno())
            ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == 0 and not facts.st_mode & 0o022
            body = file.read(_MAX_TOML + 1) if ours else b""
    except OSError:
        return b""
    return body if len(body) <= _MAX_TOML else b""


def _features(binary: str) -> bytes:
    """JSON of `<binary> features`; empty for a runtime that is missing or too old to know it."""
    import json
    import subprocess

    try:
        done = subprocess.run(
            [binary, "features"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
        known = done.returncode == 0 and isinstance(json.loads(done.stdout), dict)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if known else b""
