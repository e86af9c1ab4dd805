"""`-info` (containerd 2.0 and newer) and `-v`."""

from __future__ import annotations

import os
import sys

from sdshim.launcher.cmdline import NAME
from sdshim.launcher.wire import Message, encode

RUNTIME = "io.containerd.systemd.v1"
_OPTIONS = "containerd.runc.v1.Options"
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
    """BinaryName of runc's Options; other runtimes' options have none."""
    if options.text(1).removeprefix("type.googleapis.com/") == _OPTIONS:
        return Message(options.data(2)).text(6) or "runc"
    return "runc"


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
