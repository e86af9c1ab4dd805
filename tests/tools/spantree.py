"""Prints the collector's JSON lines as trees, one per trace, the oldest first.

    python -m tests.tools.spantree spans.jsonl [--container ID] [--name PART] [--all]

A line is: begin (ms since the trace's first span), duration (ms), name by depth, attributes that
the parent has not already shown, the error. A span whose parent is not in the file (the caller's,
or one not sent yet) stands at the left edge. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KEY = (
    "container.id",
    "container.exec.id",
    "systemd.unit",
    "process.pid",
    "process.exit.code",
    "rpc.grpc.status_code",
)
SHORT = {name: name.removeprefix("container.").removeprefix("process.") for name in KEY}
MS = 1_000_000
Record = dict[str, Any]


def load(lines: Iterable[str]) -> list[Record]:
    """Spans of a file; a line that is cut off (the collector died) is left out."""
    spans: list[Record] = []
    for line in lines:
        try:
            span = json.loads(line)
        except ValueError:
            continue
        if isinstance(span, dict):
            spans.append(span)
    return spans


def traces(spans: list[Record], container: str = "", name: str = "") -> list[list[Record]]:
    """Spans by trace, in order of time; only traces with a span of that container and name."""
    groups: dict[str, list[Record]] = {}
    for span in sorted(spans, key=lambda span: (span["start_ns"], -span["end_ns"])):
        groups.setdefault(span["trace_id"], []).append(span)
    return [
        group
        for group in groups.values()
        if any(_wanted(span, "container.id", container) for span in group)
        and any(name in span["name"] for span in group)
    ]


def _wanted(span: Record, key: str, value: str) -> bool:
    return not value or span["attributes"].get(key) == value


def render(group: list[Record], every: bool = False) -> Iterator[str]:
    """The lines of one trace."""
    first = min(span["start_ns"] for span in group)
    last = max(span["end_ns"] for span in group)
    clock = time.strftime("%H:%M:%S", time.localtime(first // 1_000_000_000))
    millis = first // MS % 1000
    total = (last - first) / MS
    yield f"trace {group[0]['trace_id']}  {clock}.{millis:03d}  {len(group)} spans  {total:.1f} ms"
    known = {span["span_id"] for span in group}
    children: dict[str, list[Record]] = {}
    for span in group:
        inside = span["parent_id"] in known and span["parent_id"] != span["span_id"]
        children.setdefault(span["parent_id"] if inside else "", []).append(span)
    stack = [(span, 0, Record()) for span in reversed(children.get("", []))]
    while stack:
        span, depth, shown = stack.pop()
        yield _line(span, depth, shown, first, every)
        below = {**shown, **span["attributes"]}
        stack += [
            (child, depth + 1, below) for child in reversed(children.get(span["span_id"], []))
        ]


def _line(span: Record, depth: int, shown: Record, first: int, every: bool) -> str:
    begin, duration = (span["start_ns"] - first) / MS, (span["end_ns"] - span["start_ns"]) / MS
    kind = {"server": "> ", "client": "< "}.get(span["kind"], "")
    attributes = span["attributes"]
    names = sorted(attributes) if every else [key for key in KEY if key in attributes]
    words = [
        f"{SHORT.get(key, key)}={attributes[key]}"
        for key in names
        if key not in shown or shown[key] != attributes[key]
    ]
    words += [f"+{(e['ns'] - span['start_ns']) / MS:.1f}:{e['name']}" for e in span["events"]]
    if span["error"] is not None:
        kind_of = attributes.get("error.type", "")
        words.append(f"ERROR {kind_of}: {span['error']}".replace("\n", " "))
    tail = "  " + "  ".join(words) if words else ""
    return f"{begin:9.1f} {duration:9.1f}  {'  ' * depth}{kind}{span['name']}{tail}"


def main(arguments: list[str]) -> int:
    """Print a file's traces."""
    parser = argparse.ArgumentParser(prog="spantree", description="spans as indented trees")
    parser.add_argument("file", type=Path)
    parser.add_argument("--container", default="", help="only traces with this container.id")
    parser.add_argument("--name", default="", help="only traces with a span named like this")
    parser.add_argument("--all", action="store_true", help="every attribute")
    options = parser.parse_args(arguments)
    with options.file.open(encoding="utf-8") as lines:
        spans = load(lines)
    for group in traces(spans, options.container, options.name):
        print(*render(group, options.all), sep="\n", end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
