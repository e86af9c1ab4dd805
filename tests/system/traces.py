"""A host whose daemon traces, and the collector beside it that keeps what was sent."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.host import Host
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = Path(__file__).parents[2]
DEPS = "/usr/local/lib/sdshim/deps"
OUT = "/tmp/spans.jsonl"
PORT = "4318"
Record = dict[str, Any]


class Traces:
    """What the collector has written so far."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def all(self) -> list[Record]:
        """Every span that has come."""
        lines = self.host.path(OUT).read_text().splitlines()
        return [json.loads(line) for line in lines]

    def of(self, task: str) -> list[Record]:
        """Those of one container."""
        return [span for span in self.all() if span["attributes"].get("container.id") == task]

    def find(self, task: str, name: str, topic: str = "", count: int = 1) -> list[Record]:
        """Wait for spans of a container by (the end of) their name."""

        def found() -> list[Record]:
            return [
                span
                for span in self.of(task)
                if span["name"].endswith(name)
                and topic in span["attributes"].get("messaging.destination.name", "")
            ]

        eventually(lambda: len(found()) >= count, f"{count} spans {name} of {task}")
        return found()

    def one(self, task: str, name: str, topic: str = "") -> Record:
        """Wait for the only span of that name; of an event, the attempt that arrived."""
        if topic:
            eventually(
                lambda: any(not s["error"] for s in self.find(task, name, topic)),
                f"{topic} of {task} delivered",
            )
        (span,) = (s for s in self.find(task, name, topic) if not (topic and s["error"]))
        return span


@contextmanager
def traced_host(like: Host) -> Iterator[Host]:
    """A host of the same kind, its daemon tracing, a collector in its network; at the end nothing
    is left on it."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{PORT}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with Host(like.root.name, like.cgroup, env=env, binds={"/mnt/tree": str(TREE)}) as booted:
        collector = booted.popen(
            ["/usr/bin/python3", "-m", "tests.tools.collector", "--port", PORT, "--out", OUT],
            env={"PYTHONPATH": f"{DEPS}:/mnt/tree", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert collector.stdout is not None
            assert "listening" in collector.stdout.readline()
            yield booted
        finally:
            booted.send_signal(collector, 15)
            collector.communicate(timeout=10)
        assert booted.leftovers(wait=5) == []
