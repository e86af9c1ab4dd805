"""Scenarios for some hosts only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.compare.subject import Subject


def only(cgroup: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """A scenario for hosts with this cgroup flavour."""

    def mark(scenario: Callable[[Subject], None]) -> Callable[[Subject], None]:
        scenario.cgroup = cgroup  # type: ignore[attr-defined]
        return scenario

    return mark
