"""The one table of a process's life: phase × observation → phase, effects.

Pure. Nobody else changes a phase. An exit that is observed while an operation is under way
(`creating`, `starting`, `restoring`, `checkpointing`) is *held*: it takes effect when that
operation has been decided, so that the start event always stands before the exit event, and
/tasks/checkpointed before the exit of a container that ends with its checkpoint; an OOM kill is
held in the same way, and told before the exit that it may have caused. The move into `exited`
happens once. `diagram()` prints docs/lifecycle.md's table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.model import ExitStatus


class Phase(StrEnum):
    """Where a process is in its life; the values stand in the state files."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CHECKPOINTING = "checkpointing"
    CHECKPOINTING_PAUSED = "checkpointing while paused"
    RESTORING = "restoring"
    EXITED = "exited"
    DELETED = "deleted"


class Seen(StrEnum):
    """What can be observed of a process."""

    CREATED = "created"
    CREATE_FAILED = "create failed"
    START_BEGUN = "start begun"
    STARTED = "started"
    START_FAILED = "start failed"
    PAUSE_BEGUN = "pause begun"
    PAUSED = "paused"
    PAUSE_FAILED = "pause failed"
    RESUMED = "resumed"
    CHECKPOINT_BEGUN = "checkpoint begun"
    CHECKPOINTED = "checkpointed"
    CHECKPOINT_FAILED = "checkpoint failed"
    RESTORE_BEGUN = "restore begun"
    OOM = "OOM kill counted"
    EXITED = "exited"
    DELETED = "deleted"


class Effect(StrEnum):
    """What an observation makes the daemon do, in this order."""

    PUBLISH_CREATE = "publish /tasks/create"
    PUBLISH_START = "publish /tasks/start"
    PUBLISH_PAUSED = "publish /tasks/paused"
    PUBLISH_RESUMED = "publish /tasks/resumed"
    PUBLISH_OOM = "publish /tasks/oom"
    SHOW_OOM = "say so in the unit's status text"
    PUBLISH_CHECKPOINTED = "publish /tasks/checkpointed"
    PUBLISH_EXIT = "publish /tasks/exit"
    PUBLISH_DELETE = "publish /tasks/delete"
    ANSWER_WAITS = "answer Wait"
    FORGET = "forget the task"


@dataclass(frozen=True, slots=True)
class Move:
    """One cell of the table: the next phase and its effects."""

    next: Phase
    effects: tuple[Effect, ...] = ()
    hold: bool = False
    """Keep the exit or the OOM kill for later instead of acting on it."""


@dataclass(frozen=True, slots=True)
class Life:
    """A process's state: what the table reads and writes."""

    phase: Phase = Phase.CREATING
    pid: int = 0
    exit: ExitStatus | None = None
    """Set when the exit is known, also while it is held back."""
    ooms: int = 0
    """The kernel's count of OOM kills in the container as it was last seen; an exec's is that of
    its start."""
    oom_held: bool = False
    """The count has grown while an operation was being decided."""


class IllegalMove(Exception):
    """An observation that cannot happen in this phase: a fault of ours, never a client's."""


CHECKPOINTING = (Phase.CHECKPOINTING, Phase.CHECKPOINTING_PAUSED)
"""Phases in which a checkpoint is being written."""
_EXIT = (Effect.PUBLISH_EXIT, Effect.ANSWER_WAITS)
_OOM = (Effect.PUBLISH_OOM, Effect.SHOW_OOM)
_CHECKPOINTED = (Effect.PUBLISH_CHECKPOINTED,)
_DELETE_UNSTARTED = (Effect.PUBLISH_DELETE, Effect.ANSWER_WAITS, Effect.FORGET)
"""Of what never had a process: an exec, for which no event is made of it, or a container that was
to be restored."""
_P, _S = Phase, Seen

TABLE: Mapping[tuple[Phase, Seen], Move] = MappingProxyType(
    {
        (_P.CREATING, _S.CREATED): Move(_P.CREATED, (Effect.PUBLISH_CREATE,)),
        (_P.CREATING, _S.CREATE_FAILED): Move(_P.DELETED, (Effect.ANSWER_WAITS, Effect.FORGET)),
        (_P.CREATING, _S.OOM): Move(_P.CREATING, hold=True),
        (_P.CREATING, _S.EXITED): Move(_P.CREATING, hold=True),
        (_P.CREATED, _S.START_BEGUN): Move(_P.STARTING),
        (_P.CREATED, _S.RESTORE_BEGUN): Move(_P.RESTORING),
        (_P.CREATED, _S.OOM): Move(_P.CREATED, _OOM),
        (_P.CREATED, _S.EXITED): Move(_P.EXITED, _EXIT),
        (_P.CREATED, _S.DELETED): Move(_P.DELETED, _DELETE_UNSTARTED),
        (_P.STARTING, _S.STARTED): Move(_P.RUNNING, (Effect.PUBLISH_START,)),
        (_P.STARTING, _S.START_FAILED): Move(_P.CREATED),
        (_P.STARTING, _S.OOM): Move(_P.STARTING, hold=True),
        (_P.STARTING, _S.EXITED): Move(_P.STARTING, hold=True),
        (_P.RESTORING, _S.STARTED): Move(_P.RUNNING, (Effect.PUBLISH_START,)),
        (_P.RESTORING, _S.START_FAILED): Move(_P.CREATED),
        (_P.RESTORING, _S.OOM): Move(_P.RESTORING, hold=True),
        (_P.RESTORING, _S.EXITED): Move(_P.RESTORING, hold=True),
        (_P.RUNNING, _S.PAUSE_BEGUN): Move(_P.PAUSING),
        (_P.RUNNING, _S.PAUSED): Move(_P.PAUSED, (Effect.PUBLISH_PAUSED,)),
        (_P.RUNNING, _S.CHECKPOINT_BEGUN): Move(_P.CHECKPOINTING),
        (_P.RUNNING, _S.OOM): Move(_P.RUNNING, _OOM),
        (_P.RUNNING, _S.EXITED): Move(_P.EXITED, _EXIT),
        (_P.PAUSING, _S.PAUSED): Move(_P.PAUSED, (Effect.PUBLISH_PAUSED,)),
        (_P.PAUSING, _S.PAUSE_FAILED): Move(_P.RUNNING),
        (_P.PAUSING, _S.OOM): Move(_P.PAUSING, _OOM),
        (_P.PAUSING, _S.EXITED): Move(_P.EXITED, _EXIT),
        (_P.PAUSED, _S.RESUMED): Move(_P.RUNNING, (Effect.PUBLISH_RESUMED,)),
        (_P.PAUSED, _S.OOM): Move(_P.PAUSED, _OOM),
        (_P.PAUSED, _S.CHECKPOINT_BEGUN): Move(_P.CHECKPOINTING_PAUSED),
        (_P.PAUSED, _S.EXITED): Move(_P.EXITED, _EXIT),
        (_P.CHECKPOINTING, _S.CHECKPOINTED): Move(_P.RUNNING, _CHECKPOINTED),
        (_P.CHECKPOINTING, _S.CHECKPOINT_FAILED): Move(_P.RUNNING),
        (_P.CHECKPOINTING, _S.OOM): Move(_P.CHECKPOINTING, _OOM),
        (_P.CHECKPOINTING, _S.EXITED): Move(_P.CHECKPOINTING, hold=True),
        (_P.CHECKPOINTING_PAUSED, _S.CHECKPOINTED): Move(_P.PAUSED, _CHECKPOINTED),
        (_P.CHECKPOINTING_PAUSED, _S.CHECKPOINT_FAILED): Move(_P.PAUSED),
        (_P.CHECKPOINTING_PAUSED, _S.OOM): Move(_P.CHECKPOINTING_PAUSED, _OOM),
        (_P.CHECKPOINTING_PAUSED, _S.EXITED): Move(_P.CHECKPOINTING_PAUSED, hold=True),
        (_P.EXITED, _S.OOM): Move(_P.EXITED),
        (_P.EXITED, _S.EXITED): Move(_P.EXITED),
        (_P.EXITED, _S.DELETED): Move(_P.DELETED, (Effect.PUBLISH_DELETE, Effect.FORGET)),
        (_P.DELETED, _S.OOM): Move(_P.DELETED),
        (_P.DELETED, _S.EXITED): Move(_P.DELETED),
    }
)

_OPEN = (
    Phase.CREATING,
    Phase.STARTING,
    Phase.RESTORING,
    *CHECKPOINTING,
)
"""Phases in which an exit or an OOM kill is held."""


def step(
    life: Life,
    seen: Seen,
    *,
    pid: int = 0,
    exit: ExitStatus | None = None,
    ooms: int | None = None,
) -> tuple[Life, tuple[Effect, ...]]:
    """The life after an observation, and what to do about it.

    `ooms` is the count of OOM kills as it stands now: only its growth means anything. It can become
    less, on cgroup v1, when a cgroup that the container had made itself is removed.
    Raises IllegalMove for a pair that is not in the table.
    """
    move = TABLE.get((life.phase, seen))
    if move is None:
        raise IllegalMove(f"{seen} seen while {life.phase}")
    after = replace(
        life,
        phase=move.next,
        pid=pid or life.pid,
        exit=life.exit or exit,
        ooms=life.ooms if ooms is None else ooms,
    )
    if seen is Seen.OOM and after.ooms <= life.ooms:
        return after, ()
    effects = move.effects
    if move.hold:
        return replace(after, oom_held=life.oom_held or seen is Seen.OOM), effects
    if life.phase in _OPEN and move.next not in (*_OPEN, Phase.DELETED):
        # What was held while this was being decided takes effect now, and only now.
        if after.oom_held:
            after, effects = replace(after, oom_held=False), effects + _OOM
        if after.exit:
            held = TABLE[(move.next, Seen.EXITED)]
            after, effects = replace(after, phase=held.next), effects + held.effects
    return after, effects


def diagram() -> str:
    """The table as Markdown, for docs/lifecycle.md."""
    rows = ["| phase | seen | next | effects |", "|---|---|---|---|"]
    for (phase, seen), move in TABLE.items():
        held = "OOM kill held" if seen is Seen.OOM else "exit held"
        effects = ", ".join(move.effects) or (held if move.hold else "–")
        rows.append(f"| {phase} | {seen} | {move.next} | {effects} |")
    return "\n".join(rows) + "\n"
