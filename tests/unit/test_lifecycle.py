"""The lifecycle table: every pair, the held exit, and that an exit happens once."""

from __future__ import annotations

import itertools

import pytest

from sdshim.core import lifecycle
from sdshim.core.lifecycle import TABLE, Effect, IllegalMove, Life, Phase, Seen, step
from sdshim.core.model import ExitStatus

EXIT = ExitStatus(7, 1)


@pytest.mark.parametrize(("phase", "seen"), list(itertools.product(Phase, Seen)))
def test_every_pair_is_in_the_table_or_refused(phase: Phase, seen: Seen) -> None:
    life = Life(phase=phase, exit=EXIT if phase in (Phase.EXITED, Phase.DELETED) else None)
    if (phase, seen) in TABLE:
        after, _ = step(life, seen, exit=EXIT if seen is Seen.EXITED else None)
        assert after.phase in Phase
    else:
        with pytest.raises(IllegalMove):
            step(life, seen)


def _walk(*seen: Seen) -> tuple[Life, list[Effect]]:
    life = Life()
    effects: list[Effect] = []
    for one in seen:
        life, more = step(life, one, pid=5, exit=EXIT if one is Seen.EXITED else None)
        effects += more
    return life, effects


PUBLISHED = [
    Effect.PUBLISH_CREATE,
    Effect.PUBLISH_START,
    Effect.PUBLISH_EXIT,
    Effect.PUBLISH_DELETE,
]


@pytest.mark.parametrize(
    "order",
    [
        (Seen.CREATED, Seen.START_BEGUN, Seen.STARTED, Seen.EXITED, Seen.DELETED),
        (Seen.CREATED, Seen.START_BEGUN, Seen.EXITED, Seen.STARTED, Seen.DELETED),
    ],
    ids=["exit after start", "exit before start was known"],
)
def test_events_come_in_the_order_create_start_exit_delete(order: tuple[Seen, ...]) -> None:
    life, effects = _walk(*order)
    assert [e for e in effects if e in PUBLISHED] == PUBLISHED
    assert life.phase is Phase.DELETED


def test_an_exit_seen_during_a_failing_start_is_published_without_a_start() -> None:
    life, effects = _walk(Seen.CREATED, Seen.START_BEGUN, Seen.EXITED, Seen.START_FAILED)
    assert life.phase is Phase.EXITED
    assert Effect.PUBLISH_START not in effects
    assert effects.count(Effect.PUBLISH_EXIT) == 1


def test_a_second_sight_of_the_same_exit_changes_nothing() -> None:
    life, _ = _walk(Seen.CREATED, Seen.START_BEGUN, Seen.STARTED, Seen.EXITED)
    again, effects = step(life, Seen.EXITED, exit=ExitStatus(9, 2))
    assert again == life
    assert effects == ()


_RUNS = (Seen.CREATED, Seen.START_BEGUN, Seen.STARTED)


def test_paused_and_resumed_are_published_in_between() -> None:
    pauses = (Seen.PAUSE_BEGUN, Seen.PAUSED, Seen.RESUMED)
    life, effects = _walk(*_RUNS, *pauses, *pauses, Seen.EXITED)
    assert life.phase is Phase.EXITED
    around = [Effect.PUBLISH_PAUSED, Effect.PUBLISH_RESUMED] * 2
    created = [Effect.PUBLISH_CREATE, Effect.PUBLISH_START]
    assert effects == [*created, *around, Effect.PUBLISH_EXIT, Effect.ANSWER_WAITS]


@pytest.mark.parametrize("before", [(Seen.PAUSE_BEGUN,), (Seen.PAUSE_BEGUN, Seen.PAUSED)])
def test_an_exit_while_paused_is_published_once_and_no_resume(before: tuple[Seen, ...]) -> None:
    life, effects = _walk(*_RUNS, *before, Seen.EXITED, Seen.EXITED, Seen.DELETED)
    assert life.phase is Phase.DELETED
    assert effects.count(Effect.PUBLISH_EXIT) == 1
    assert Effect.PUBLISH_RESUMED not in effects


def test_a_pause_that_failed_leaves_it_running_without_an_event() -> None:
    life, effects = _walk(*_RUNS, Seen.PAUSE_BEGUN, Seen.PAUSE_FAILED)
    assert life.phase is Phase.RUNNING
    assert Effect.PUBLISH_PAUSED not in effects


OOM = Effect.PUBLISH_OOM


def _grow(life: Life, *counts: int) -> tuple[Life, list[Effect]]:
    effects: list[Effect] = []
    for count in counts:
        life, more = step(life, Seen.OOM, ooms=count)
        effects += more
    return life, effects


def test_an_oom_kill_is_published_and_shown_once_for_each_growth_of_the_count() -> None:
    life, _ = _walk(*_RUNS)
    life, effects = _grow(life, 0, 1, 1, 4, 4)
    assert effects == [OOM, Effect.SHOW_OOM] * 2
    assert (life.phase, life.ooms) == (Phase.RUNNING, 4)


def test_a_count_that_became_less_is_no_oom_kill_but_the_next_growth_is() -> None:
    life, _ = _walk(*_RUNS)
    _, effects = _grow(life, 2, 1, 2)
    assert effects.count(OOM) == 2


def test_an_oom_kill_during_start_is_published_after_the_start_and_before_the_exit() -> None:
    life, _ = _walk(Seen.CREATED, Seen.START_BEGUN)
    life, effects = _grow(life, 1, 2)
    assert effects == []
    life, effects = _held(life, Seen.EXITED)
    assert effects == []
    life, effects = _held(life, Seen.STARTED)
    published = [Effect.PUBLISH_START, OOM, Effect.SHOW_OOM, Effect.PUBLISH_EXIT]
    assert effects == [*published, Effect.ANSWER_WAITS]
    assert not life.oom_held


def _held(life: Life, seen: Seen) -> tuple[Life, list[Effect]]:
    life, effects = step(life, seen, exit=EXIT if seen is Seen.EXITED else None)
    return life, list(effects)


def test_an_oom_kill_during_a_start_that_fails_is_published() -> None:
    life, _ = _walk(Seen.CREATED, Seen.START_BEGUN)
    life, _ = _grow(life, 1)
    life, effects = _held(life, Seen.START_FAILED)
    assert OOM in effects
    assert life.phase is Phase.CREATED


@pytest.mark.parametrize("end", [(), (Seen.DELETED,)])
def test_after_the_exit_an_oom_kill_is_nobodys(end: tuple[Seen, ...]) -> None:
    life, _ = _walk(*_RUNS, Seen.EXITED, *end)
    _, effects = _grow(life, 5)
    assert effects == []


def test_a_failed_create_publishes_nothing() -> None:
    _, effects = _walk(Seen.CREATE_FAILED)
    life, _ = _grow(Life(), 1)
    effects += step(life, Seen.CREATE_FAILED)[1]
    assert not set(effects) & {*PUBLISHED, OOM}


def test_the_diagram_has_a_row_for_each_cell() -> None:
    assert len(lifecycle.diagram().splitlines()) == len(TABLE) + 2


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("exit_first", [False, True])
def test_a_checkpoint_is_told_before_the_exit_that_comes_with_it(
    *, paused: bool, exit_first: bool
) -> None:
    pause = [Seen.PAUSE_BEGUN, Seen.PAUSED] if paused else []
    end = [Seen.EXITED, Seen.CHECKPOINTED] if exit_first else [Seen.CHECKPOINTED, Seen.EXITED]
    begin = [Seen.CREATED, Seen.START_BEGUN, Seen.STARTED, *pause, Seen.CHECKPOINT_BEGUN]
    life, effects = _walk(*begin, *end)
    assert life.phase is Phase.EXITED
    assert effects[-3:] == [
        Effect.PUBLISH_CHECKPOINTED,
        Effect.PUBLISH_EXIT,
        Effect.ANSWER_WAITS,
    ]


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED])
@pytest.mark.parametrize("end", [Seen.CHECKPOINTED, Seen.CHECKPOINT_FAILED])
def test_a_checkpoint_leaves_the_phase_as_it_was(phase: Phase, end: Seen) -> None:
    life, _ = step(Life(phase=phase, pid=5), Seen.CHECKPOINT_BEGUN)
    assert life.phase in lifecycle.CHECKPOINTING
    assert step(life, end)[0].phase is phase


def test_a_restore_that_fails_leaves_the_task_created_and_can_be_deleted() -> None:
    life, effects = _walk(Seen.CREATED, Seen.RESTORE_BEGUN, Seen.START_FAILED, Seen.DELETED)
    assert life.phase is Phase.DELETED
    assert [e for e in effects if e in PUBLISHED] == [Effect.PUBLISH_CREATE, Effect.PUBLISH_DELETE]
