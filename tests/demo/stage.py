"""Where the demo plays: a booted throwaway host, or the system this runs on.

Both give the same few things: commands run there, a containerd namespace with the image, and a
collector that gets the daemon's spans. Everything they change is undone on the way out.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.host import BUSYBOX, Host, images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

IMAGE = BUSYBOX
PORT = 4318
FLUSH_MS = "100"  # OpenTelemetry's own default would let us wait for 5 s
TREE = Path(__file__).resolve().parents[2]
SHIM = "containerd-shim-systemd-v1"
DROP_IN = Path("/run/systemd/system/sdshim.service.d/90-sdshim-demo.conf")


class DemoFailed(Exception):
    """The demo cannot go on, or did not see what it claims to show; the message says what."""


class Stage:
    """A place with systemd, containerd and sdshim."""

    def __init__(
        self, title: str, namespace: str, spans: Path, outer: Callable[[Sequence[str]], list[str]]
    ) -> None:
        self.title = title
        self.namespace = namespace
        self.spans = spans
        """Where the collector writes."""
        self._outer = outer

    def popen(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """A command there; stdout and stderr come as one."""
        return subprocess.Popen(
            self._outer(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LANG": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
            **options,
        )

    def output(self, *arguments: str, check: bool = True) -> str:
        """What a command there prints; with `check` it must succeed."""
        process = self.popen(arguments)
        text, _ = process.communicate(timeout=60)
        if check and process.returncode:
            words = shlex.join(arguments)
            raise DemoFailed(f"`{words}` ended with {process.returncode}: {text.strip()}")
        return text

    @property
    def limits(self) -> list[str]:
        """ctr asks for CPU shares unless told not to; a v2 tree may have no cpu controller."""
        found = self.output("cat", "/sys/fs/cgroup/cgroup.controllers", check=False)
        unified = "No such file" not in found
        return ["--cpu-shares", "0"] if unified and "cpu" not in found.split() else []


@contextlib.contextmanager
def booted(root: str, cgroup: str) -> Iterator[Stage]:
    """A throwaway host; nothing of it stays."""
    traces = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{PORT}",
        "OTEL_BSP_SCHEDULE_DELAY": FLUSH_MS,
    }
    with (
        tempfile.TemporaryDirectory(prefix="sdshim-demo-") as folder,
        Host(root, cgroup, env=traces) as host,
    ):
        spans = Path(folder, "spans.jsonl")
        join = ["nsenter", "--target", str(host.pid), "--net"]
        title = f"a host booted in {host.boot_seconds:.1f} s (root {root}, cgroup {cgroup})"
        with _collector([*join, *_collector_argv(spans, PORT)]):
            yield Stage(title, "default", spans, host.command)


@contextlib.contextmanager
def system() -> Iterator[Stage]:
    """This system. The daemon is restarted twice, to trace to us and to stop doing so."""
    missing = lacks()
    if missing:
        raise DemoFailed("; ".join(missing))
    with tempfile.TemporaryDirectory(prefix="sdshim-demo-") as folder, contextlib.ExitStack() as on:
        spans = Path(folder, "spans.jsonl")
        endpoint = on.enter_context(_collector(_collector_argv(spans, 0)))
        stage = Stage("this system", "sdshim-demo", spans, list)
        on.enter_context(_traced(stage, endpoint))
        on.enter_context(_image(stage))
        yield stage


def lacks() -> list[str]:
    """What this system would need, all of it at once."""
    if os.geteuid() != 0:
        return ["it needs root"]
    if not Path("/run/systemd/system").is_dir():
        return ["this system is not run by systemd (use DEMO_HOST=booted)"]
    missing = [
        f"{program} is missing ({hint})"
        for program, hint in (
            ("ctr", "Debian: containerd"),
            ("runc", "Debian: runc"),
            (SHIM, "sudo make install"),
        )
        if shutil.which(program) is None
    ]
    for command, hint in (
        (
            "ctr --connect-timeout 2s version",
            "containerd does not answer (is it running?)",
        ),
        ("systemctl is-active sdshim.socket", "sdshim.socket is not active: sudo make install"),
    ):
        argv = command.split()
        if shutil.which(argv[0]) and subprocess.run(argv, capture_output=True).returncode:
            missing.append(hint)
    return missing


def _collector_argv(out: Path, port: int) -> list[str]:
    tool = [sys.executable, "-m", "tests.tools.collector", "--port", str(port), "--out", str(out)]
    return ["setpriv", "--pdeathsig", "TERM", *tool]


@contextlib.contextmanager
def _collector(argv: list[str]) -> Iterator[str]:
    """A running collector; its endpoint."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=TREE)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said.startswith("listening on "):
            raise DemoFailed("the collector of spans did not start")
        yield said.split()[-1]
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def _traced(stage: Stage, endpoint: str) -> Iterator[None]:
    def apply() -> None:
        stage.output("systemctl", "daemon-reload")
        stage.output("systemctl", "restart", "sdshim.service")

    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    try:
        DROP_IN.write_text(
            f"[Service]\nEnvironment=OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}\n"
            f"Environment=OTEL_BSP_SCHEDULE_DELAY={FLUSH_MS}\n"
        )
        apply()
        yield
    finally:
        DROP_IN.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others may have drop-ins there
            DROP_IN.parent.rmdir()
        apply()


@contextlib.contextmanager
def _image(stage: Stage) -> Iterator[None]:
    """The busybox image, made from this machine's busybox, in a namespace of its own."""
    ctr = ["ctr", "-n", stage.namespace]
    try:
        stage.output(*ctr, "image", "import", str(images.archive()))
        yield
    finally:
        stage.output(*ctr, "image", "rm", "--sync", *images.ALL, check=False)
        stage.output("ctr", "namespace", "rm", stage.namespace, check=False)
