"""Docker on a host: its daemon on the host's containerd, and its client.

The distribution's own unit runs dockerd, less what the machine forbids (no process here may have a
negative OOM score). There is no registry: the one image is imported. Each call is `docker …` on
the host, containers have no network unless asked for one.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.host import images
from tests.system.client import RUNTIME
from tests.system.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.host import Host

IMAGE = "busybox"
STOCK = "runc"
NAMED = "systemd"
"""What daemon.json calls our runtime."""
WITH_OPTIONS = "crun-units"
"""Our runtime with the options in `OPTIONS_FILE`."""
OPTIONS_FILE = "/etc/sdshim/docker.toml"
OPTIONS = 'oci_runtime = "/usr/local/bin/told"\n[unit_properties]\nCPUWeight = 50\n'
FOREVER = "echo ready; while :; do sleep 0.05; done"
"""A script that runs until it is ended, for `Docker.start`."""
_NO_NETWORK = ("--network", "none")
_DROP_IN = """\
[Unit]
StartLimitIntervalSec=0
[Service]
OOMScoreAdjust=0
RestartSec=0
"""


def _config(driver: str) -> dict[str, Any]:
    path = {"TypeUrl": "sdshim.v1.Options", "ConfigPath": OPTIONS_FILE}
    return {
        "live-restore": True,
        "storage-driver": "overlay2",
        "exec-opts": [f"native.cgroupdriver={driver}"],
        "runtimes": {
            NAMED: {"runtimeType": RUNTIME},
            WITH_OPTIONS: {"runtimeType": RUNTIME, "options": path},
        },
    }


class Docker:
    """The client, with one runtime."""

    def __init__(self, host: Host, runtime: str = RUNTIME) -> None:
        self.host = host
        self.runtime = runtime

    def call(
        self, *arguments: str, check: bool = True, timeout: float = 30, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`docker …` to its end."""
        return self.host.run(["docker", *arguments], check=check, timeout=timeout, input=input)

    def says(self, *arguments: str) -> str:
        """What it prints, without the last line's end."""
        return self.call(*arguments).stdout.rstrip("\n")

    def run_argv(self, *command: str, options: Sequence[str] = (), image: str = IMAGE) -> list[str]:
        """`docker run` with this runtime."""
        network = () if any(word.startswith("--network") for word in options) else _NO_NETWORK
        return ["run", "--runtime", self.runtime, *network, *options, image, *command]

    def run(
        self,
        *command: str,
        options: Sequence[str] = (),
        input: str | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """`docker run --rm` in the foreground, whatever its exit status."""
        argv = self.run_argv(*command, options=["--rm", *options])
        return self.call(*argv, check=False, input=input, timeout=timeout)

    def start(self, name: str, script: str, *options: str) -> None:
        """A container in the background that runs a shell script."""
        self.call(*self.run_argv("sh", "-c", script, options=["-d", "--name", name, *options]))

    def exec(
        self, name: str, *command: str, options: Sequence[str] = (), input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`docker exec`, whatever its exit status."""
        return self.call("exec", *options, name, *command, check=False, input=input)

    def state(self, name: str) -> dict[str, Any]:
        """`State` of docker inspect."""
        found: dict[str, Any] = json.loads(self.says("inspect", "-f", "{{json .State}}", name))
        return found

    def wait(self, name: str) -> int:
        """The exit status, when there is one."""
        return int(self.says("wait", name))

    def unit(self, name: str) -> str:
        """The unit of a container."""
        return f"sdshim-moby-{self.says('inspect', '-f', '{{.Id}}', name)}.service"

    def screen(self, *arguments: str) -> Screen:
        """`docker …` with a terminal."""
        return Screen(self.host, ["docker", *arguments])

    def until_logged(self, name: str, text: str) -> None:
        """Follow the log until a line has `text`."""
        with self.follow("logs", "--follow", name) as lines:
            for line in lines:
                if text in line:
                    return
        raise AssertionError(f"{name} has ended without saying {text!r}")

    @contextmanager
    def follow(self, *arguments: str, seconds: float = 20) -> Iterator[Iterator[str]]:
        """The lines that a command prints, which ends with the block; at most so long."""
        process = self.host.popen(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        def end() -> None:
            self.host.send_signal(process, 9)

        limit = threading.Timer(seconds, end)
        limit.start()
        try:
            with process:
                assert process.stdout is not None
                yield iter(process.stdout)
                end()
        finally:
            limit.cancel()
            limit.join()

    def clear(self) -> None:
        """No container is left."""
        found = self.says("ps", "--all", "--quiet").split()
        if found:
            self.call("rm", "--force", "--volumes", *found)


def install(host: Host) -> None:
    """Configure and start dockerd, import the image."""
    folder = host.path("/etc/systemd/system/docker.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "50-test-host.conf").write_text(_DROP_IN)
    told = host.path("/usr/local/bin/told")
    told.write_text('#!/bin/sh\nexec runc "$@"\n')
    told.chmod(0o755)
    options = host.path(OPTIONS_FILE)
    options.parent.mkdir(parents=True, exist_ok=True)
    options.write_text(OPTIONS)
    configure(host)
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "start", "docker.service"])
    host.path("/tmp/layer.tar.gz").write_bytes(images.layer())
    change = shlex.quote('CMD ["sh"]')
    host.run(["sh", "-c", f"docker import -c {change} /tmp/layer.tar.gz {IMAGE}"])


def configure(host: Host, driver: str = "cgroupfs") -> None:
    """Write daemon.json; dockerd reads it when it starts."""
    folder = host.path("/etc/docker")
    folder.mkdir(exist_ok=True)
    (folder / "daemon.json").write_text(json.dumps(_config(driver)))
