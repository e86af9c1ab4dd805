"""What doctor finds, what may be done about it, and the exit status for monitoring. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Level(IntEnum):
    """How bad a finding is; the exit status is that of the worst (`exit_status`)."""

    WARNING = 1
    FAULT = 2
    UNKNOWN = 3
    """The check could not be made."""


class Act(StrEnum):
    """What `--fix` can do. Each is safe to do twice."""

    RESET_FAILED = "systemctl reset-failed"
    UNMOUNT = "umount"
    REMOVE_CGROUP = "rmdir cgroup"
    DELETE_RUNTIME_STATE = "OCI runtime delete"
    REMOVE_FILE = "rm"
    REMOVE_FOLDER = "rm -r"
    CLEAN_UP = "have the daemon remove the remains"
    CHMOD = "chmod"


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing to do; `arguments` as the act wants them (survey/repair.py)."""

    act: Act
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.act} {' '.join(self.arguments)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    check: str
    level: Level
    subject: str
    """What it is about; with `check` the same over two looks at the same thing."""
    text: str
    advice: str = ""
    """What a person can do."""
    repair: Repair | None = None
    """What `--fix` does; None when nothing is safe to do by itself."""
    passing: bool = False
    """An operation under way looks the same for a moment: counts only when it is seen twice."""

    @property
    def identity(self) -> tuple[str, str]:
        """Names the finding over several looks."""
        return self.check, self.subject


def exit_status(findings: Iterable[Finding]) -> int:
    """0 fine, 1 warnings, 2 faults, 3 cannot tell (and no fault found): what monitoring plugins
    use. A fault counts for more than what could not be looked at."""
    levels = {finding.level for finding in findings}
    for level in (Level.FAULT, Level.UNKNOWN, Level.WARNING):
        if level in levels:
            return int(level)
    return 0


def lasting(first: Iterable[Finding], second: Iterable[Finding]) -> list[Finding]:
    """What the second look still finds; passing sights only if the first had them too."""
    before = {finding.identity for finding in first}
    return [f for f in second if not f.passing or f.identity in before]
