"""What every operation works with: the doors of this node and the tasks it knows."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sdshim.core.errors import NotFound
from sdshim.core.points import nowhere
from sdshim.daemon.output import Output
from sdshim.host.changes import Changes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from pathlib import Path

    from sdshim.core.config import Config
    from sdshim.core.model import CallId
    from sdshim.core.names import TaskKey
    from sdshim.core.points import Crash
    from sdshim.core.spans import Tracer
    from sdshim.core.unitspec import HostFacts
    from sdshim.daemon.process import Process, Task
    from sdshim.daemon.publisher import Publisher
    from sdshim.host.store import Store
    from sdshim.runtime.oci import OciRuntime
    from sdshim.systemd.manager import Manager

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """systemd's fd store: what is in it outlives this process."""

    def keep(self, name: str, *fds: int, poll: bool = True) -> Awaitable[None]:
        """Store descriptors now; the result is ready when systemd surely has them."""

    async def demand(self, more: int) -> None:
        """Raise ResourceExhausted when the store has no room for so many of new work."""

    def barrier(self) -> Awaitable[None]:
        """Ready when systemd has dealt with all that it was told so far."""

    def remove(self, name: str) -> None:
        """Take descriptors out of the store."""

    def notify_for(self, pid: int, state: str) -> None:
        """Tell systemd something in the name of another process."""


@dataclass(slots=True)
class Node:
    """The doors (each owned by its room) and the tasks, by key."""

    config: Config
    facts: HostFacts
    manager: Manager
    runtime: OciRuntime
    store: Store
    keeper: Keeper
    tracer: Tracer
    publisher: Publisher
    run_dir: Path
    crash: Crash = nowhere
    """Called at each crash point (core/points.py)."""
    tasks: dict[TaskKey, Task] = field(default_factory=dict)
    unsent: dict[CallId, Process] = field(default_factory=dict)
    """Processes whose record holds the reply to a call, until it has been sent."""
    addresses: dict[int, str] = field(default_factory=dict)
    """containerd's event address by the pid of the peer that created tasks with it."""
    output: Output = field(init=False)
    """The way of containers' output to the journal."""
    changes: Changes = field(default_factory=Changes)
    """The kernel's files that are watched."""
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.output = Output(self)

    def task(self, key: TaskKey) -> Task:
        """The task of that key. Raises NotFound in stock's words (protocol 3.4)."""
        task = self.tasks.get(key)
        if task is None:
            raise NotFound("container not created: not found")
        return task

    def process(self, key: TaskKey, exec_id: str) -> Process:
        """The init process of a task, or one of its execs. Raises NotFound."""
        task = self.task(key)
        if not exec_id:
            return task
        found = task.execs.get(exec_id)
        if found is None:
            raise NotFound(f"process does not exist {exec_id}: not found")
        return found

    def spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Run something beside the calls; its failure is logged, close() ends it."""
        running = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(running)
        running.add_done_callback(self._ended)
        return running

    def _ended(self, done: asyncio.Task[None]) -> None:
        self._background.discard(done)
        if not done.cancelled() and (error := done.exception()):
            log.error("%s failed: %s", done.get_name(), error, exc_info=error)

    async def close(self) -> None:
        """Stop what runs beside the calls. What it was doing, the next daemon goes on with."""
        for running in list(self._background):
            running.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.output.close()
        for task in self.tasks.values():
            task.close()
        self.changes.close_all()
