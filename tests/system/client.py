"""Clients for the system tests: ctr on the host, and our own ttrpc client to the daemon."""

from __future__ import annotations

import json
import re
import selectors
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.host import BUSYBOX, Host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RUNTIME = "io.containerd.systemd.v1"


class Ctr:
    """containerd's own client, with our runtime."""

    def __init__(
        self,
        host: Host,
        namespace: str = "default",
        runtime: str = RUNTIME,
        address: str = "",
    ) -> None:
        self.host = host
        self.address = address
        """Of another containerd than the host's own."""
        self.namespace = namespace
        # ctr always asks for cpu shares, which need a controller.
        self.limits = [] if host.controllers else ["--cpu-shares", "0"]
        self.runtime = runtime

    def argv(self, *arguments: str) -> list[str]:
        """A whole ctr command."""
        where = ["-a", self.address] if self.address else []
        return ["ctr", *where, "-n", self.namespace, *arguments]

    def call(
        self, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run ctr to its end."""
        return self.host.run(self.argv(*arguments), check=check, timeout=timeout)

    def run_argv(
        self, task: str, *command: str, options: Sequence[str] = (), image: str = BUSYBOX
    ) -> list[str]:
        """`ctr run` with our runtime."""
        return self.argv(
            "run", "--runtime", self.runtime, *self.limits, *options, image, task, *command
        )

    def run(
        self,
        task: str,
        *command: str,
        options: Sequence[str] = ("--rm",),
        image: str = BUSYBOX,
        check: bool = False,
        timeout: float = 30,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a container in the foreground (or as `options` say)."""
        argv = self.run_argv(task, *command, options=options, image=image)
        return self.host.run(argv, check=check, timeout=timeout, input=input)

    def start(self, task: str, *command: str, image: str = BUSYBOX) -> None:
        """Run a container in the background."""
        self.run(task, *command, options=["-d"], image=image, check=True)

    def status(self, task: str) -> str:
        """The word in `ctr task ls`, empty when the task is not there."""
        for line in self.call("task", "ls").stdout.splitlines()[1:]:
            words = line.split()
            if words[0] == task:
                return words[2]
        return ""

    def await_status(self, task: str, wanted: str, timeout: float = 10) -> None:
        """Wait until `ctr task ls` says so (containerd offers no event for a status)."""
        deadline = time.monotonic() + timeout
        while (found := self.status(task)) != wanted:
            if time.monotonic() > deadline:
                raise AssertionError(f"{task} is {found or 'gone'}, not {wanted}")

    def delete(self, task: str) -> int:
        """Delete a stopped task; the exit status that its Delete told (ctr prints all but 0)."""
        said = self.call("task", "rm", task).stderr
        match = re.search(r"non-zero exit code (\d+)", said)
        return int(match[1]) if match else 0

    def remove(self, *tasks: str) -> None:
        """Kill, delete, and forget containers, whatever their state."""
        for task in tasks:
            self.call("task", "rm", "-f", task, check=False)
            self.call("container", "rm", task, check=False)


@dataclass(slots=True)
class Events:
    """What `ctr events` printed, as (namespace, topic, body)."""

    process: subprocess.Popen[bytes]
    seen: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    _rest: bytes = b""

    def of(self, task: str, namespace: str = "default") -> list[str]:
        """Topics of one task so far, without `/tasks/`."""
        return [
            topic.removeprefix("/tasks/")
            for space, topic, body in self.seen
            if topic.startswith("/tasks/")
            and body.get("container_id") == task
            and space == namespace
        ]

    def bodies(self, topic: str, task: str) -> list[dict[str, Any]]:
        """Bodies of one kind of event of one task."""
        return [
            body
            for _, found, body in self.seen
            if found == f"/tasks/{topic}" and body.get("container_id") == task
        ]

    def until(self, task: str, topic: str, count: int = 1, timeout: float = 20) -> None:
        """Read on until `count` events of that kind have come for the task."""
        self.read(lambda: self.of(task).count(topic) >= count, timeout, f"{topic} of {task}")

    def read(self, enough: Any, timeout: float, what: str) -> None:
        """Read on until `enough()`; fails with what came."""
        deadline = time.monotonic() + timeout
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not enough():
                if not selector.select(deadline - time.monotonic()):
                    raise AssertionError(f"no {what} within {timeout} s; came: {self.seen[-20:]}")
                self._take(self.process.stdout.read1(1 << 16))  # type: ignore[attr-defined]

    def _take(self, data: bytes) -> None:
        if not data:
            raise AssertionError("ctr events has ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            match = re.match(r".* UTC (\S+) (/\S+) (\{.*\})$", line.decode(errors="replace"))
            if match:
                self.seen.append((match[1], match[2], json.loads(match[3])))


@contextmanager
def events(host: Host, address: str = "") -> Iterator[Events]:
    """Follow containerd's events, from before the block's first statement."""
    client = ["ctr", *(["-a", address] if address else [])]
    process = host.popen([*client, "events"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        found = Events(process)
        probe = f"probe-{time.monotonic_ns()}"

        def subscribed() -> bool:
            return any(probe in str(body) for _, _, body in found.seen)

        # `ctr events` does not say when it has subscribed: a namespace's event is the sign.
        deadline = time.monotonic() + 10
        while True:
            host.run([*client, "namespace", "create", probe])
            host.run([*client, "namespace", "rm", probe])
            try:
                found.read(subscribed, 0.5, "subscription")
                break
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
        yield found
    finally:
        host.send_signal(process, 15)
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
