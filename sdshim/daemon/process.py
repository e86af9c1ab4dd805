"""One process in memory: its record on disk, its lock, what is watched, the FIFO ends held.

A `Task` is a container's init process, an `Exec` one of its execs: the same life, other events.

`see()` is the only way a task's phase changes: it asks the lifecycle table, writes ONE record
{state, events, reply} and only then acts: events to the publisher, waiters woken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sdshim.core import lifecycle
from sdshim.core.errors import ShimError
from sdshim.core.lifecycle import Effect, Phase, Seen
from sdshim.core.names import TaskKey
from sdshim.daemon import events, oom
from sdshim.stdio.fifo import Held

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.model import CallId, Event, ExitStatus, Identity, RecordedReply
    from sdshim.core.record import Record
    from sdshim.daemon.events import Make
    from sdshim.daemon.node import Node
    from sdshim.host.changes import Watched as WatchedFile
    from sdshim.host.oom import Watch
    from sdshim.host.process import Watched
    from sdshim.stdio.console import Pump

log = logging.getLogger(__name__)


class Process:
    """What the init process of a container and an exec have in common."""

    makes: Mapping[Effect, Make] = events.INIT
    """Which effect is which event."""

    def __init__(self, node: Node, record: Record) -> None:
        self._node = node
        self.record = record
        self.lock = asyncio.Lock()
        """Create, Start and Delete are serial; State, Wait, Kill, Pids never take it."""
        self.exited = asyncio.Event()
        if record.life.phase in (Phase.EXITED, Phase.DELETED):
            self.exited.set()
        self.watched: Watched | None = None
        self.held = Held()
        self.pump: Pump | None = None
        """What moves the bytes of its terminal."""
        self.unit_gone = False
        """True when systemd has no unit of this incarnation, and none is being started: one of its
        name is somebody else's, and is not touched."""
        self.held_since = 0
        """How often the bus had gone when it was seen last whose the unit is (units.confirm)."""
        self.muted = False
        """True when containerd has given the task up and publishes its end itself."""

    @property
    def identity(self) -> Identity:
        """What it was created as."""
        return self.record.identity

    @property
    def key(self) -> TaskKey:
        """Namespace and id."""
        return TaskKey(self.identity.namespace, self.identity.id)

    def __str__(self) -> str:
        exec_id = self.identity.exec_id
        return f"{self.key}:{exec_id}" if exec_id else str(self.key)

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self.record.life.phase

    @property
    def pid(self) -> int:
        """Its pid, 0 before it has one; stays after its exit."""
        return self.record.life.pid

    @property
    def exit(self) -> ExitStatus | None:
        """How it ended; None while that is unknown or held back."""
        return self.record.life.exit if self.exited.is_set() else None

    def see(
        self,
        seen: Seen,
        *,
        pid: int = 0,
        exit: ExitStatus | None = None,
        ooms: int | None = None,
        call: CallId | None = None,
        reply: RecordedReply | None = None,
        checkpoint: str = "",
    ) -> None:
        """Move on by an observation and commit it, with the reply it is the reason for;
        `checkpoint` is what /tasks/checkpointed tells.

        Raises ResourceExhausted when the record cannot be written; nothing has changed then.
        """
        life, effects = lifecycle.step(self.record.life, seen, pid=pid, exit=exit, ooms=ooms)
        fresh = [] if self.muted else self._events(life, effects, checkpoint)
        replies = dict(self.record.replies)
        if call and reply:
            replies[call] = reply
            self._node.unsent[call] = self
        changed = replace(
            self.record, life=life, events=(*self.record.events, *fresh), replies=replies
        )
        self._commit(changed, forced=seen is Seen.EXITED)
        for event in fresh:
            self._node.publisher.publish(self, event)
        if Effect.SHOW_OOM in effects:
            oom.show(self._node, self)
        if Effect.ANSWER_WAITS in effects:
            self.exited.set()

    def note(self, *, deleting: bool) -> None:
        """Commit that Delete has begun."""
        self._commit(replace(self.record, deleting=deleting))

    def excuse_oom(self) -> None:
        """Note that its end, which is near, is somebody's wish."""
        oom.excuse(self._node, self)

    def replied(self, call: CallId) -> None:
        """A recorded reply has been sent; it leaves the record with the next commit."""
        self.record.replies.pop(call, None)
        self.forget_if_done()

    def acknowledged(self, seq: int) -> None:
        """containerd has the event; it leaves the record with the next commit."""
        rest = tuple(e for e in self.record.events if e.seq != seq)
        self.record = replace(self.record, events=rest)
        self.forget_if_done()

    def mute(self) -> None:
        """containerd has given the task up: nothing more is published for it."""
        self.muted = True
        self._node.publisher.drop(self)
        self.record = replace(self.record, events=())

    def close(self) -> None:
        """Let go of descriptors; what is in the fd store stays there."""
        if self.watched:
            self.watched.close()
        if self.pump:
            self.pump.close()
        self.held.close_all()

    def forget_if_done(self) -> None:
        """A deleted task leaves the disk when its last event and its last reply are out."""
        if self.phase is Phase.DELETED and not self.record.events and not self.record.replies:
            self._node.store.remove(self.identity)

    def _commit(self, changed: Record, *, forced: bool = False) -> None:
        """Write, then take over. An exit is a fact: it is taken over even when /run is full."""
        try:
            self._node.store.write(changed)
        except ShimError as error:
            if not forced:
                raise
            log.error("exit of %s is not on disk: %s", self, error)
        self.record = changed

    def _events(
        self, life: lifecycle.Life, effects: tuple[Effect, ...], checkpoint: str
    ) -> list[Event]:
        now = time.time_ns()
        me = replace(self.identity, checkpoint=checkpoint) if checkpoint else self.identity
        return [
            self.makes[effect](self._node.publisher.next_seq(), me, life, now)
            for effect in effects
            if effect in self.makes
        ]


class Task(Process):
    """A container: its init process, and its execs by id."""

    def __init__(self, node: Node, record: Record) -> None:
        super().__init__(node, record)
        self.execs: dict[str, Exec] = {}
        self.ending = False
        """The init process has ended: no exec may start any more (protocol 7.4)."""
        self.oom_watch: Watch | None = None
        self.stop_watch: asyncio.Task[None] | None = None
        """Waits for a stop of the unit while the container is paused."""
        self.freeze_watch: WatchedFile | None = None
        """Tells of freezes and thaws (host/changes.py)."""
        self.doomed = False
        """A client has sent SIGKILL, for which a frozen one is thawed."""
        self.listening: asyncio.Task[None] | None = None
        """Passes on what the container says of its readiness."""

    def close(self) -> None:
        """Let go of descriptors, the execs' too."""
        super().close()
        oom.unwatch(self)
        for child in self.execs.values():
            child.close()


class Exec(Process):
    """A process added to a running container."""

    makes = events.EXEC

    def __init__(self, node: Node, record: Record, task: Task) -> None:
        super().__init__(node, record)
        self.task = task
        self.failed = False
        """Its Start failed: it stays created, and a Wait for it ends at once."""
        self.overdue = False
        """It had not ended a while after its container, and was killed."""
