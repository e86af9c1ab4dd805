"""The daemon dies at every crash point of every operation; nobody notices (core/points.py).

CI has each point once, as many of them as an operation passes in a row, and in each operation those
of its own work. By hand, with SDSHIM_POINTS=full: each passing of each point in each operation,
three lives in a row; or fewer, with SDSHIM_POINTS=brief (`make points`; docs/crash-points.md has
its result, and says which are left out).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from sdshim.core.points import ACCEPT, POINTS, START
from tests.fault.drill import Death, Drill, drilled, up
from tests.fault.scenes import EXEC_LOST, NEED_CRIU, SCENES
from tests.fault.stage import Stage
from tests.system.conftest import rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]
pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(600)]

LIVES = 3
BY_HAND, BRIEF = "SDSHIM_POINTS", "brief"
LIMITS = ("SetUnitProperties.sent", "SetUnitProperties.answered")
COSTLY = MappingProxyType(
    {ACCEPT[0]: ("connect",), "console.taken": ("create with a terminal", EXEC_LOST)}
)
"""The two moments whose death costs something: only scenes that expect that have them."""
ENOUGH = (
    "create", "create with mounts", "create with a terminal", "a request of 3 MiB", "update",
    "listen", "connect",
)  # fmt: skip
"""Scenes that pass every point together."""
OWN = MappingProxyType(
    {
        "create that fails": ("StopUnit.answered",),
        "start": ("runtime.ended",),
        "start of what lasts": ("runtime.spawned",),
        "exec": ("state.made", "StartTransientUnit.sent", "exit.known"),
        "exec that is short": ("StartTransientUnit.answered",),
        "exec that fails": ("StartTransientUnit.answered",),
        EXEC_LOST: ("console.taken",),
        "kill": ("signal.sent",),
        "kill all": ("signal.sent",),
        "kill of an exec": ("signal.sent",),
        "delete": ("ResetFailedUnit.sent",),
        "delete of what never ran": ("state.written",),
        "pause": ("runtime.spawned",),
        "resume": ("runtime.spawned",),
        "update": ("runtime.spawned",),
        "checkpoint that fails": ("StartTransientUnit.sent",),
        "close stdin": ("fd.removed",),
        "wait": ("exit.known",),
        "questions": ("inline",),
        "delete by the launcher": ("runtime.spawned",),
        "delete by the launcher of what has ended": ("bundle.written",),
    }
)
"""What the others do themselves: the points at which CI has them die as well."""


@pytest.fixture(scope="module")
def drill(host: Host) -> Iterator[Drill]:
    with drilled(host, zygote=host.cgroup == "v2") as made:
        yield made


def _passings(drill: Drill, host: Host, rig: Rig, name: str) -> list[tuple[str, int]]:
    """Each point that a scene passes when nobody dies, with the how-manieth time. The brief form:
    until the container is ended, and of each point the first and the last passing."""
    brief = os.environ.get(BY_HAND) == BRIEF
    over = drill.disarm if brief else lambda: None
    SCENES[name](Stage(host, rig, "noted", drill.note, over))
    passed = Counter(drill.passed())
    times = {point: range(1, passed[point] + 1) for point in POINTS}
    times |= {point: range(1, 2) for point in START if not passed[point]}
    return [
        (point, n)
        for point, all_ in times.items()
        for n in all_
        if _may(name, point) and (not brief or n in (all_[0], all_[-1]))
    ]


@pytest.mark.roots("self")
def test_one_death_at_each_point_is_not_noticed(drill: Drill, host: Host, rig: Rig) -> None:
    without = () if host.controllers else LIMITS  # nothing can be limited
    left = [(point, 1, 1) for point in POINTS if point not in without]
    stages = []
    for name in ENOUGH:
        now = [death for death in left if _may(name, death[0])]
        aside = [death for death in left if death not in now]
        stages.append(_play(drill, host, rig, name, now))
        left = drill.left() + aside
        drill.disarm()
    assert not left
    for stage in stages:
        stage.nothing_more()


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
def test_a_death_in_what_each_other_operation_does_is_not_noticed(
    drill: Drill, host: Host, rig: Rig
) -> None:
    stages = []
    for name, points in OWN.items():
        stages.append(_play(drill, host, rig, name, [(point, 1, 1) for point in points]))
        assert not drill.left(), name
    for stage in stages:
        stage.nothing_more()


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
@pytest.mark.parametrize("moment", range(1, 6))
@pytest.mark.parametrize("name", ["delete", "delete by the launcher of what has ended"])
def test_the_exit_status_is_told_also_when_a_delete_was_cut(
    drill: Drill, host: Host, rig: Rig, name: str, moment: int
) -> None:
    """At each record that a delete writes: one of them is that the task is deleted, which the
    launcher's `delete` has to know afterwards."""
    _play(drill, host, rig, name, [("state.written", moment, 1)]).nothing_more()
    drill.disarm()


def _may(scene: str, point: str) -> bool:
    """Whether the daemon may die at that point in that scene."""
    if scene == EXEC_LOST:  # all the others are had in "exec with a terminal"
        return point == "console.taken"
    return scene in COSTLY.get(point, (scene,))


def _play(drill: Drill, host: Host, rig: Rig, name: str, deaths: list[Death]) -> Stage:
    """A scene with these deaths; whatever becomes of it, a daemon serves afterwards."""
    stage = Stage(host, rig, f"act-{name.replace(' ', '-')}", partial(drill.arm, deaths))
    try:
        SCENES[name](stage)
    except BaseException:
        drill.disarm()
        raise
    finally:
        up(host)
    return stage


@pytest.mark.by_hand(BY_HAND)
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.roots("trixie", "forky") if name in NEED_CRIU else ())
        for name in SCENES
    ],
)
def test_three_deaths_in_a_row_are_not_noticed(
    drill: Drill, host: Host, rig: Rig, name: str
) -> None:
    plan = _passings(drill, host, rig, name)
    told, begun = Counter[str](runs=len(plan), deaths=0, missed=0), time.monotonic()
    faults: list[str] = []
    played: dict[str, Stage] = {}

    def good(what: str, part: Callable[[], None]) -> bool:
        try:
            part()
        except Exception as error:
            faults.append(f"{what}: {error!r}"[:500])
            print(f"points: fault in {name!r} at {faults[-1]}", flush=True)
            return False
        return True

    for number, (point, moment) in enumerate(plan):
        wanted = [(point, moment, LIVES)]
        if point in START:  # another death has to come before
            wanted.append(("consume", 1, 1))
        stage = Stage(host, rig, f"act{number}", partial(drill.arm, wanted))
        if good(f"{point} {moment}", partial(SCENES[name], stage)):
            played[f"{point} {moment}"] = stage
        left = drill.left()
        drill.disarm()
        up(host)
        stage.line.close()
        told["deaths"] += sum(lives for _, _, lives in wanted) - sum(lives for *_, lives in left)
        if any(lives == LIVES for *_, lives in left):  # it depends on who is faster
            told["missed"] += 1
            print(f"points: {name!r} did not pass {point} {moment} times", flush=True)
    for passing, stage in played.items():
        good(f"{passing}, afterwards", stage.nothing_more)
    told["faults"], told["seconds"] = len(faults), round(time.monotonic() - begun)
    figures = " ".join(f"{what}={number}" for what, number in told.items())
    print(f"points: scene={name!r} host={host.root.name}/{host.cgroup} {figures}", flush=True)
    assert not faults, "\n".join(faults)
