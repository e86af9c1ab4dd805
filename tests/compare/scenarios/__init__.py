"""The scenarios: every public function of these modules is one. `@only("v1")` limits the hosts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from tests.compare.scenarios import (
    cells,
    checkpoints,
    ends,
    execs,
    failures,
    limits,
    lives,
    mounts,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.compare.subject import Subject

MODULES = (cells, lives, execs, ends, failures, streams, limits, mounts, checkpoints)


def scenarios(cgroup: str) -> dict[str, Callable[[Subject], None]]:
    """`module.function` → scenario, for a host of that cgroup flavour."""
    found = {}
    for module in MODULES:
        for name, function in vars(module).items():
            mine = inspect.isfunction(function) and function.__module__ == module.__name__
            if mine and not name.startswith("_") and _fits(function, cgroup):
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = function
    return found


def _fits(function: Callable[[Subject], None], cgroup: str) -> bool:
    return str(getattr(function, "cgroup", cgroup)) == cgroup
