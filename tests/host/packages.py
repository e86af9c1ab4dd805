"""Package lists, and their installation on the machine that runs the tests.

Nothing is ever started by an installation here: while it runs, a policy-rc.d says no (that is how
Debian lets image builders say so), and with no systemd as PID 1 the containerd package is content
with that.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import HostError
from .progress import Step, step

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED = [
    "systemd",
    "dbus",
    "containerd",
    "runc",
    "crun",
    "criu",  # checkpoint and restore
    "busybox-static",
    "e2fsprogs",  # a file system for loop mounts
    "fuse-overlayfs",  # a file system for fuse mounts
    "fuse3",
    "iproute2",
    "procps",
    "util-linux",
    "python3-dbus-next",
    "python3-systemd",
    "python3-protobuf",
    "python3-grpcio",
]
MACHINE = (
    *SHARED,
    "debootstrap",
    "faketime",  # a daemon whose clock is set
    "gcc",
    "libc6-dev",
    "libprotobuf-dev",
    "protobuf-compiler",
    "python3-pip",
    "python3-venv",
    "strace",
)
GUEST = (
    *SHARED,
    "systemd-sysv",
    "python3",
    "kmod",
    "mount",
    "docker.io",
    "docker-cli",
    "containernetworking-plugins",  # pods of the CRI
    "iptables",
)

POLICY = Path("/usr/sbin/policy-rc.d")


def installed() -> set[str]:
    answer = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.split() for line in answer.stdout.splitlines())
    return {pair[0] for pair in pairs if pair[1:] == ["installed"]}


def install_missing() -> list[str]:
    """What this machine lacks for the `self` root and for building the others."""
    missing = sorted(set(MACHINE) - installed())
    if not missing:
        return []
    with step(f"Installing {len(missing)} packages") as running, _nothing_started():
        _apt(running, ["update"])
        _apt(running, ["install", "--yes", "--no-install-recommends", *missing])
    return missing


def _apt(running: Step, arguments: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    process = subprocess.Popen(
        ["apt-get", "--quiet", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        running.tell(line.strip())
        lines.append(line)
    if process.wait() != 0:
        raise HostError(f"apt-get {arguments[0]} failed:\n" + "".join(lines[-15:]))


@contextmanager
def _nothing_started() -> Iterator[None]:
    if POLICY.exists():  # the machine has a policy of its own
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
