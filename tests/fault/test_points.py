"""The daemon dies at every crash point of every operation; nobody notices (core/points.py).

CI has each point once, as many of them as an operation passes in a row. By hand, with
SDSHIM_POINTS=1: each passing of each point in each operation, three lives in a row
(`make points`; its result is in docs/crash-points.md).
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sdshim.core.points import ACCEPT, POINTS, START
from tests.fault.drill import Drill, drilled, up
from tests.fault.scenes import SCENES, Stage
from tests.system.conftest import rig

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    for number, name in enumerate(ENOUGH):
        aside = [death for death in left if name != "connect" and death[0] == CUT]
        now = [death for death in left if death not in aside]
        try:
            SCENES[name](Stage(host, rig, f"act{number}", partial(drill.arm, now)))
            left = drill.left() + aside
        finally:
            drill.disarm()
            up(host)
    assert not left


@pytest.mark.by_hand("SDSHIM_POINTS")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", SCENES)
def test_three_deaths_in_a_row_are_not_noticed(
    drill: Drill, host: Host, rig: Rig, name: str
) -> None:
    passed = _passed(drill, host, rig, name)
    plan = [(point, n + 1) for point in POINTS for n in range(passed[point])]
    plan += [(point, 1) for point in START if not passed[point]]
    deaths, faults = 0, []
    for number, (point, moment) in enumerate(plan):
        if point == CUT and name != "connect":
            continue
        wanted = [(point, moment, LIVES)]
        if point in START:  # another death has to come before
            wanted.append(("consume", 1, 1))
        stage = Stage(host, rig, f"act{number}", partial(drill.arm, wanted))
        try:
            SCENES[name](stage)
        except Exception as error:
            faults.append(f"{point} {moment}: {error!r}"[:500])
        left = sum(lives for _, _, lives in drill.left())
        drill.disarm()
        up(host)
        deaths += sum(lives for _, _, lives in wanted) - left
    print(f"points: scene={name!r} runs={len(plan)} deaths={deaths} faults={len(faults)}")
    assert not faults, "\n".join(faults)
