"""`sdshim inspect`: everything that is known of one container or exec."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from sdshim.cli.ps import as_json
from sdshim.core import listing, table
from sdshim.survey import node, portrait

if TYPE_CHECKING:
    import argparse

    from sdshim.core.config import Config

_FIRST = (
    "namespace",
    "id",
    "exec_id",
    "unit",
    "description",
    "slice",
    "state",
    "since",
    "pid",
    "exit",
)

_TWICE = ("memory_bytes", "cpu_ns")
"""They stand in `use` too."""


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Print the document; returns the exit status. Raises NotFound and InvalidArgument."""
    document = asyncio.run(_document(arguments, config))
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    order = [*_FIRST, *(name for name in document if name not in (*_FIRST, *_TWICE))]
    shown = [(name, _text(document[name])) for name in order if document[name] is not False]
    lines = [(name.replace("_", " "), text) for name, text in shown if text]
    sys.stdout.write(table.pairs(lines))
    return 0


async def _document(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    pairs = await node.rows(config)
    row = listing.find([row for row, _ in pairs], arguments.name, arguments.namespace)
    entry = next(entry for found, entry in pairs if found is row)
    document = {**as_json(row), **await portrait.of(config, row, entry)}
    if not row.exec_id:
        document["execs"] = portrait.execs(pairs, row.key)
    return document


def _setting(name: str, value: Any) -> tuple[str, str]:
    """One of systemd's properties as a unit file has it: `MemoryMax=64M`, `CPUQuota=50%`."""
    if not isinstance(value, int) or isinstance(value, bool):
        return name, _text(value)
    if name.startswith("Memory") or name.endswith("Bytes"):
        return name, table.size(value)
    if name == "CPUQuotaPerSecUSec":
        return "CPUQuota", f"{value / 1e4:g}%"
    if name.endswith("USec"):
        return name.removesuffix("USec") + "Sec", table.cpu_time(value * 1000)
    if name.endswith("NSec"):
        return name.removesuffix("NSec"), table.cpu_time(value)
    if name == "KillSignal" and value in set(signal.Signals):
        return name, signal.Signals(value).name
    return name, str(value)


def _text(value: Any) -> str:
    """A value on as few lines as it can be read on; empty for nothing."""
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        parts = [_setting(key, one) for key, one in value.items()]
        whole = [f"{key}={text}" for key, text in parts if text]
        return "\n".join(whole) if len(" ".join(whole)) > 70 else " ".join(whole)
    if isinstance(value, list):
        texts = [_text(one) for one in value]
        return "\n".join(texts) if any(isinstance(one, dict) for one in value) else ", ".join(texts)
    return str(value)
