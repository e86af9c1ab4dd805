"""Where a scene is played: one container, its connection, and what everybody does with them."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import ShimError
from tests.system.taskclient import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from tests.host import Host
    from tests.system.taskclient import Bundle, Connection, Rig

PATIENCE = 60.0
"""Seconds for an operation in which many daemons die."""


@dataclass
class Stage:
    """A container on a connection of its own; `curtain` is where the deaths begin."""

    host: Host
    rig: Rig
    id: str
    curtain: Callable[[], None]
    over: Callable[[], None] = lambda: None
    """Called when the scene's own operations are done; others, which end the container, follow."""
    line: Connection = field(init=False)
    words: list[str] = field(default_factory=list)
    """The events that were to be told, in order."""

    def __post_init__(self) -> None:
        if not self.host.path("/run/sdshim/s/default").exists():
            self.rig.listen("default")
        self.line = self.rig.connect()

    def begin(self, method: str, **fields: Any) -> Future[Any]:
        """A call about the container."""
        return self.line.begin(method, id=self.id, **fields)

    def call(self, method: str, **fields: Any) -> Any:
        """The same, with its one right answer."""
        return self.begin(method, **fields).result(PATIENCE)

    def fails(self, method: str, **fields: Any) -> tuple[int, str]:
        """(code, text) of a call that must fail."""
        error = self.begin(method, **fields).exception(PATIENCE)
        assert isinstance(error, ShimError), error
        return int(error.code), str(error)

    def create(self, *command: str, **fields: Any) -> Bundle:
        """Up to Create."""
        bundle = self.bundle(*command)
        self.call("Create", bundle=bundle.path, **fields)
        return bundle

    def bundle(self, *command: str, **spec: Any) -> Bundle:
        """Its bundle."""
        words = command or ("sleep", "1000")
        return self.rig.bundle(self.id, spec={**spec_of(*words), **spec})

    def run(self, *command: str) -> Bundle:
        """Up to Start."""
        bundle = self.create(*command)
        self.call("Start")
        return bundle

    def status(self, wanted: int, **fields: Any) -> None:
        """State says this."""
        assert self.call("State", **fields).status == wanted

    def end(self, status: int, *events: str, between: tuple[str, ...] = ()) -> None:
        """It ends with this status (by SIGKILL if that is 137), and is deleted; `between` are the
        events of its life that are not those of every container."""
        self.over()
        if status == 137:
            self.call("Kill", signal=signal.SIGKILL)
        waited = self.call("Wait")
        assert waited.exit_status == status
        deleted = self.call("Delete")
        assert (deleted.exit_status, deleted.exited_at) == (status, waited.exited_at)
        told = events or ("create", "start", *between, "exit", "delete")
        self.told(*told)

    def told(self, *events: str) -> None:
        """These events, in this order, each once."""
        self.words = list(events)
        self.rig.events.wait_for(lambda: len(self.rig.events.of(self.id)) >= len(events), PATIENCE)
        self.nothing_more()

    def nothing_more(self) -> None:
        """No event but those that were to be told has come."""
        assert self.rig.events.of(self.id) == self.words
