"""Columns, sizes and times as people read them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "  "
ELLIPSIS = "…"
NOTHING = "-"
_SPANS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, and what becomes of it where room is scarce."""

    title: str
    right: bool = False
    """Numbers stand at the right."""
    spare: int = 0
    """Left out before those with a smaller number; 0: never left out."""
    shortest: int = 0
    """May be shortened to so many characters when nothing more can be left out; 0: never."""


def render(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """The table as lines. `width` is a terminal's; None (a pipe, a file) leaves nothing out."""
    kept = list(range(len(columns)))
    widths = [
        max(len(column.title), *(len(row[n]) for row in rows)) if rows else len(column.title)
        for n, column in enumerate(columns)
    ]
    if width is not None:
        kept = _fit(columns, kept, widths, width)
        _shorten(columns, kept, widths, width)
    lines = [[column.title for column in columns], *rows]
    return "".join(
        GAP.join(_cell(columns[n], line[n], widths[n]) for n in kept).rstrip() + "\n"
        for line in lines
    )


def _needed(kept: list[int], widths: list[int]) -> int:
    return sum(widths[n] for n in kept) + len(GAP) * (len(kept) - 1)


def _fit(columns: Sequence[Column], kept: list[int], widths: list[int], width: int) -> list[int]:
    """What is left when the most dispensable columns have made room."""
    spare = sorted((n for n in kept if columns[n].spare), key=lambda n: -columns[n].spare)
    for n in spare:
        if _needed(kept, widths) <= width:
            break
        kept = [k for k in kept if k != n]
    return kept


def _shorten(columns: Sequence[Column], kept: list[int], widths: list[int], width: int) -> None:
    for n in kept:
        excess = _needed(kept, widths) - width
        if excess > 0 and columns[n].shortest:
            widths[n] = max(min(widths[n], columns[n].shortest), widths[n] - excess)


def _cell(column: Column, text: str, width: int) -> str:
    if len(text) > width:
        # both ends tell more than one: names begin alike, and end in what makes them unique
        head = width // 2
        text = text[:head] + ELLIPSIS + text[len(text) - (width - head - 1) :]
    return text.rjust(width) if column.right else text.ljust(width)


def pairs(entries: Sequence[tuple[str, str]]) -> str:
    """`name: value` lines with the values one below the other; further lines of a value too."""
    wide = max((len(name) for name, _ in entries), default=0)
    out = []
    for name, value in entries:
        first, *rest = value.split("\n")
        out.append(f"{name:>{wide}}: {first}".rstrip())
        out += [f"{'':{wide}}  {line}".rstrip() for line in rest]
    return "".join(f"{line}\n" for line in out)


def size(number: int | None) -> str:
    """Bytes as `532B`, `1.5M`, `12G` (powers of 1024)."""
    if number is None:
        return NOTHING
    amount, unit = float(number), "B"
    for unit in "BKMGTPE":
        if amount < 1023.95 or unit == "E":
            break
        amount /= 1024
    text = f"{amount:.1f}".removesuffix(".0") if amount < 10 and unit != "B" else f"{amount:.0f}"
    return text + unit


def cpu_time(nanoseconds: int | None) -> str:
    """CPU time as systemctl writes it: `31ms`, `2.5s`, `3min 4s`, `2h 7min`."""
    if nanoseconds is None:
        return NOTHING
    if nanoseconds < 999_500_000:
        return f"{nanoseconds / 1e6:.0f}ms"
    if nanoseconds < 59_950_000_000:
        return f"{nanoseconds / 1e9:.1f}".removesuffix(".0") + "s"
    return _span(nanoseconds // 10**9, 2)


def ago(then_ns: int, now_ns: int) -> str:
    """How long since: `12s ago`, `3min ago`, `5d ago`; empty times are `-`."""
    if not then_ns:
        return NOTHING
    return f"{_span(max(0, now_ns - then_ns) // 10**9, 1)} ago"


def _span(seconds: int, parts: int) -> str:
    words: list[str] = []
    for unit, length in _SPANS:
        if seconds >= length or (unit == "s" and not words):
            words.append(f"{seconds // length}{unit}")
            seconds %= length
        elif words:
            break
    return " ".join(words[:parts])


def iso(time_ns: int) -> str:
    """A time as `2026-11-25T18:09:28.165627Z`; empty for none."""
    if not time_ns:
        return ""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC).replace(
        microsecond=time_ns % 10**9 // 1000
    )
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
