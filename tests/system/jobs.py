"""One process in one of two places: the init process of a task, or an exec in a running one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb.wellknown import PROCESS_URL
from tests.system.taskclient import spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.taskclient import Rig

both = pytest.mark.parametrize("where", ["init", "exec"])


class Job:
    """The init process of `box` (`where` is init), or the exec `e` in it."""

    def __init__(
        self, rig: Rig, where: str, *command: str, terminal: bool = False, options: Any = None
    ) -> None:
        """Make the bundle; for an exec also the container, which sleeps.

        `options` are the task's.
        """
        self.rig, self.where, self.terminal = rig, where, terminal
        self.fields = {"id": "box"} | ({"exec_id": "e"} if where == "exec" else {})
        self.unit = f"sdshim-default-box{':e' if where == 'exec' else ''}"
        self.logger = f"{self.unit}{':' if where == 'init' else ''}:log.service"
        self.streams: dict[str, Any] = {}
        spec = spec_of(*command)
        spec["process"]["terminal"] = terminal
        if terminal:
            kind = {"type": "devpts", "source": "devpts"}
            words = ["newinstance", "ptmxmode=0666", "mode=0620"]
            spec["mounts"].append({"destination": "/dev/pts", **kind, "options": words})
        self._process: dict[str, Any] = {
            "type_url": PROCESS_URL,
            "value": json.dumps(spec["process"]).encode(),
        }
        if where == "init":
            self.bundle = rig.bundle("box", spec=spec)
            self.streams["options"] = options
        else:
            sleeps = spec | {"process": spec_of("sleep", "1000")["process"]}
            self.bundle = rig.bundle("box", spec=sleeps)
            rig.call("Create", id="box", bundle=self.bundle.path, options=options)
            rig.call("Start", id="box")

    def set(self, **more: Any) -> None:
        """Change what the OCI spec says of the process, before it begins."""
        if self.where == "exec":
            self._process["value"] = json.dumps(json.loads(self._process["value"]) | more).encode()
            return
        spec = json.loads((self.bundle.outside / "config.json").read_text())
        spec["process"] |= more
        self.bundle.write_spec(spec)

    def fifos(self, *streams: str) -> None:
        """Make FIFOs, with the client's end of each output; it has no end of stdin yet."""
        self.streams |= {stream: self.bundle.fifo(stream) for stream in streams}

    @property
    def stdin(self) -> Path:
        """The FIFO of that name, from here."""
        return self.bundle.outside / "stdin"

    def open_stdin(self) -> int:
        """The client's end of stdin; it is the caller's to close."""
        return os.open(self.stdin, os.O_WRONLY | os.O_CLOEXEC)

    def close_io(self) -> None:
        """CloseIO."""
        self.call("CloseIO", stdin=True)

    def begin(self) -> None:
        """The call that opens its streams: Create, or Start of the exec."""
        method, fields = self.first()
        self.rig.call(method, **fields)

    def first(self) -> tuple[str, dict[str, Any]]:
        """That call, for who makes it by hand; Exec has been called then."""
        asked = {"terminal": self.terminal, **self.streams}
        if self.where == "init":
            return "Create", {"id": "box", "bundle": self.bundle.path, **asked}
        self.call("Exec", spec=self._process, **asked)
        return "Start", dict(self.fields)

    def start(self) -> None:
        """After this it runs."""
        self.begin()
        self.go()

    def go(self) -> None:
        """Start, if that is not what `begin` was."""
        if self.where == "init":
            self.call("Start")

    def wait(self) -> int:
        """Its exit status."""
        return int(self.call("Wait").exit_status)

    def run(self) -> int:
        """Its whole life but Delete; the exit status."""
        self.start()
        return self.wait()

    def call(self, method: str, **fields: Any) -> Any:
        """A call that names it."""
        return self.rig.call(method, **self.fields, **fields)
