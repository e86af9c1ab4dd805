"""Decoding of the Manager's signals: bodies in, frozen records out. Pure, no I/O.

A body that does not have the documented shape is an `Internal` error, raised once here, so that no
other code indexes into a signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdshim.core.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class JobRemoved:
    """A job has left the queue: done, canceled, timeout, failed, dependency, skipped, assert…"""

    id: int
    unit: str
    result: str


@dataclass(frozen=True, slots=True)
class JobNew:
    """A job has been queued; of which kind it is the signal does not say."""

    id: int
    unit: str


@dataclass(frozen=True, slots=True)
class UnitNew:
    """systemd has a unit of this name in memory now."""

    unit: str


@dataclass(frozen=True, slots=True)
class UnitRemoved:
    """systemd has forgotten the unit: its name can be used again."""

    unit: str


@dataclass(frozen=True, slots=True)
class Reloading:
    """A daemon-reload begins (`active`) or has ended; sent before a daemon-reexec too."""

    active: bool


ManagerSignal = JobNew | JobRemoved | UnitNew | UnitRemoved | Reloading


def decode(member: str, body: Sequence[object]) -> ManagerSignal | None:
    """The record for a signal of ``org.freedesktop.systemd1.Manager``; None for other members."""
    match member, list(body):
        case "JobRemoved", [int(job), str(), str(unit), str(result)]:
            return JobRemoved(job, unit, result)
        case "JobNew", [int(job), str(), str(unit)]:
            return JobNew(job, unit)
        case "UnitNew", [str(unit), str()]:
            return UnitNew(unit)
        case "UnitRemoved", [str(unit), str()]:
            return UnitRemoved(unit)
        case "Reloading", [bool(active)]:
            return Reloading(active)
        case "JobNew" | "JobRemoved" | "UnitNew" | "UnitRemoved" | "Reloading", _:
            raise Internal(f"signal {member} of systemd has an unexpected body {list(body)!r}")
    return None
