"""Two tapes → their differences, and which of them differences.toml explains. Pure."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.compare.tape import Answer

FILE = Path(__file__).with_name("differences.toml")
KEYS = {"scenario", "step", "field", "stock", "ours", "hosts", "sometimes", "fewer", "reason"}
ABSENT = "(nothing)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one answer that the two shims gave differently."""

    scenario: str
    step: str
    field: str
    stock: str
    ours: str

    def __str__(self) -> str:
        return (
            f"{self.scenario}: {self.step}: {self.field}\n"
            f"    stock: {self.stock}\n    ours:  {self.ours}"
        )


@dataclass(frozen=True, slots=True)
class Known:
    """One entry of differences.toml: patterns, in which `*` stands for any text."""

    reason: str
    scenario: str = "*"
    step: str = "*"
    field: str = "*"
    stock: str = "*"
    ours: str = "*"
    hosts: tuple[str, ...] = ("*",)
    """Where it occurs, as ROOT/CGROUP."""
    sometimes: bool = False
    """It need not occur in every run."""
    fewer: bool = False
    """Stock's words are ours in the same order, some left out."""

    def explains(self, found: Difference) -> bool:
        """Whether this is the known difference."""
        names = ("scenario", "step", "field", "stock", "ours")
        if self.fewer and not _is_part(found.stock.split(), found.ours.split()):
            return False
        return all(_like(getattr(self, name), getattr(found, name)) for name in names)

    def is_for(self, host: str) -> bool:
        """Whether it is to occur on a host."""
        return any(_like(pattern, host) for pattern in self.hosts)

    def __str__(self) -> str:
        return f"{self.scenario}: {self.step}: {self.field}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison has come to."""

    found: tuple[tuple[Difference, Known | None], ...]
    unseen: tuple[Known, ...]
    """Entries that were to occur and did not: the file is behind."""

    @property
    def unexplained(self) -> int:
        """How many differences no entry explains."""
        return sum(known is None for _, known in self.found)


def _is_part(some: list[str], every: list[str]) -> bool:
    rest = iter(every)
    return all(word in rest for word in some)


def _like(pattern: str, text: str) -> bool:
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(".*".join(parts), text, re.DOTALL) is not None


def load(text: str) -> tuple[Known, ...]:
    """The entries of the file. Raises ValueError for what is no entry."""
    made = []
    for entry in tomllib.loads(text).get("difference", []):
        if unknown := entry.keys() - KEYS:
            raise ValueError(f"differences.toml: unknown keys {sorted(unknown)} in {entry}")
        if not str(entry.get("reason", "")).strip():
            raise ValueError(f"differences.toml: no reason in {entry}")
        values: dict[str, Any] = {**entry, "reason": " ".join(entry["reason"].split())}
        if "hosts" in entry:
            values["hosts"] = tuple(entry["hosts"])
        made.append(Known(**values))
    return tuple(made)


def compare(
    scenario: str, stock: Mapping[str, Answer], ours: Mapping[str, Answer]
) -> Iterator[Difference]:
    """The differences of two tapes of a scenario, in the order of stock's."""
    for step in [*stock, *(step for step in ours if step not in stock)]:
        theirs, mine = stock.get(step), ours.get(step)
        if theirs is None or mine is None:
            told = ABSENT if theirs is None else _line(theirs)
            yield Difference(scenario, step, "", told, ABSENT if mine is None else _line(mine))
            continue
        if theirs.get("code") != mine.get("code"):  # an error has no fields to compare
            yield Difference(scenario, step, "answer", _line(theirs), _line(mine))
            continue
        for field in [*theirs, *(field for field in mine if field not in theirs)]:
            pair = theirs.get(field, ABSENT), mine.get(field, ABSENT)
            if pair[0] != pair[1]:
                yield Difference(scenario, step, field, *pair)


def _line(answer: Answer) -> str:
    return " ".join(f"{name}={value}" if name else value for name, value in answer.items() if value)


def judge(found: Iterable[Difference], known: tuple[Known, ...], host: str) -> Verdict:
    """Find the reason of each difference; a reason may be that of many."""
    here = [entry for entry in known if entry.is_for(host)]
    pairs = []
    used: set[Known] = set()
    for difference in found:
        entry = next((entry for entry in here if entry.explains(difference)), None)
        if entry:
            used.add(entry)
        pairs.append((difference, entry))
    unseen = tuple(e for e in here if e not in used and not e.sometimes)
    return Verdict(tuple(pairs), unseen)
