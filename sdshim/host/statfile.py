"""The few shapes that cgroup files have. An odd line is left out: no reason to say nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdshim.host.stats import Counters

MAX = 2**64 - 1
MAX_U32 = 2**32 - 1


def number(text: str, most: int = MAX, unlimited: int = MAX) -> int | None:
    """An unsigned number; `max` is `unlimited`, a negative one 0, None is not a number."""
    if text == "max":
        return unlimited
    try:
        return min(max(int(text), 0), most)
    except ValueError:
        return None


def single(counters: Counters, name: str, unlimited: int = MAX) -> int:
    """The value of a file that has one; 0 when there is none."""
    return number(counters.get(name, "").strip(), unlimited=unlimited) or 0


def pairs(text: str) -> dict[str, int]:
    """Lines of `key value`."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and (value := number(words[1])) is not None:
            found[words[0]] = value
    return found


def keyed(text: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Lines of names, then `key=value` each."""
    for line in text.splitlines():
        words = line.split()
        values = [word for word in words if "=" in word]
        names = [word for word in words if "=" not in word]
        if names:
            yield names, dict(word.split("=", 1) for word in values)


def device(word: str) -> tuple[int, int] | None:
    """`major:minor`."""
    major, colon, minor = word.partition(":")
    return (int(major), int(minor)) if colon and major.isdigit() and minor.isdigit() else None


def rdma(text: str) -> list[tuple[str, int, int]]:
    """Device, hca_handles and hca_objects; `max` is 2^32-1 there."""
    entries = []
    for names, values in keyed(text):
        handles, objects = (
            number(values.get(key, ""), MAX_U32, MAX_U32) or 0
            for key in ("hca_handle", "hca_object")
        )
        entries.append((names[0], handles, objects))
    return entries


def huge_sizes(counters: Counters) -> list[str]:
    """The page sizes that the counters have files of, in their order."""
    parts = (name.split(".") for name in counters if name.startswith("hugetlb."))
    return list(dict.fromkeys(words[1] for words in parts))
