"""The daemon dies at every crash point of every operation; nobody notices (core/points.py).

CI has each point once, as many of them as an operation passes in a row. By hand, with
SDSHIM_POINTS=1: each passing of each point in each operation, three lives in a row
(`make points`; its result is in docs/crash-points.md).
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sdshim.core.points import ACCEPT, POINTS, START
from tests.fault.drill import Drill, drilled, up
from tests.fault.scenes import NEED_CRIU, SCENES
from tests.fault.stage import Stage
from tests.system.conftest import rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]
pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(600)]

LIVES = 3
LIMITS = ("SetUnitProperties.sent", "SetUnitProperties.answered")
CUT = ACCEPT[0]
"""The one moment whose death costs a connection: only a scene that expects it has it."""
ENOUGH = (
    "create", "create with mounts", "create with a terminal", "a request of 3 MiB", "kill",
    "resume", "update", "delete", "listen", "connect",
)  # fmt: skip
"""Scenes that pass every point together."""


@pytest.fixture(scope="module")
def drill(host: Host) -> Iterator[Drill]:
    with drilled(host) as made:
        yield made


def _passed(drill: Drill, host: Host, rig: Rig, name: str) -> Counter[str]:
    """How often a scene passes each point when nobody dies."""
    SCENES[name](Stage(host, rig, "noted", drill.note))
    return Counter(drill.passed())


@pytest.mark.roots("self")
def test_one_death_at_each_point_is_not_noticed(drill: Drill, host: Host, rig: Rig) -> None:
    without = () if host.controllers else LIMITS  # nothing can be limited
    left = [(point, 1, 1) for point in POINTS if point not in without]
    stages = []
    for number, name in enumerate(ENOUGH):
        aside = [death for death in left if name != "connect" and death[0] == CUT]
        now = [death for death in left if death not in aside]
        stages.append(Stage(host, rig, f"act{number}", partial(drill.arm, now)))
        try:
            SCENES[name](stages[-1])
            left = drill.left() + aside
        finally:
            drill.disarm()
            up(host)
    for stage in stages:
        stage.nothing_more()
    assert not left


@pytest.mark.by_hand("SDSHIM_POINTS")
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
    passed = _passed(drill, host, rig, name)
    plan = [(point, n + 1) for point in POINTS for n in range(passed[point])]
    plan += [(point, 1) for point in START if not passed[point]]
    if name != "connect":
        plan = [passing for passing in plan if passing[0] != CUT]
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
