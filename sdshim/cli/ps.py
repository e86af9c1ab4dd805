"""`sdshim ps`: one line for each container (and exec)."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from sdshim.core import table
from sdshim.core.table import Column
from sdshim.survey import node

if TYPE_CHECKING:
    import argparse

    from sdshim.core.config import Config
    from sdshim.core.listing import Row

COLUMNS = (
    Column("NAMESPACE"),
    Column("ID", shortest=12),
    Column("UNIT", spare=5),
    Column("SLICE", spare=6),
    Column("PID", right=True),
    Column("STATE"),
    Column("SINCE"),
    Column("MEMORY", right=True, spare=1),
    Column("CPU", right=True, spare=2),
    Column("EXIT"),
)


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Print the table; returns the exit status."""
    pairs = asyncio.run(node.rows(config))
    wanted = [
        row
        for row, _ in pairs
        if (arguments.execs or not row.exec_id) and arguments.namespace in ("", row.key.namespace)
    ]
    if arguments.json:
        print(json.dumps([as_json(row) for row in wanted], indent=2))
    elif arguments.quiet:
        names = [row.name for row in wanted] if arguments.wide else short_names(wanted)
        sys.stdout.writelines(f"{name}\n" for name in names)
    else:
        width = None
        if sys.stdout.isatty() and not arguments.wide:
            width = shutil.get_terminal_size().columns
        now = time.time_ns()
        sys.stdout.write(table.render(COLUMNS, [_cells(row, now) for row in wanted], width))
    return 0


def short_names(rows: list[Row]) -> list[str]:
    """Names that `sdshim inspect` takes: ids where they are unique, else with the namespace."""
    owners: dict[str, set[str]] = {}
    for row in rows:
        owners.setdefault(row.key.id, set()).add(row.key.namespace)
    return [row.name if len(owners[row.key.id]) > 1 else row.name.partition("/")[2] for row in rows]


def _cells(row: Row, now_ns: int) -> list[str]:
    return [
        row.key.namespace,
        f"└ {row.exec_id}" if row.exec_id else row.key.id,
        row.unit,
        row.slice,
        str(row.pid or table.NOTHING),
        row.state,
        table.ago(row.since_ns, now_ns),
        table.size(row.memory),
        table.cpu_time(row.cpu_ns),
        _exit(row),
    ]


def _exit(row: Row) -> str:
    if row.exit is None:
        return table.NOTHING
    return f"{row.exit.status} oom" if row.oom else str(row.exit.status)


def as_json(row: Row) -> dict[str, Any]:
    """The fields of a row; sizes in bytes, times in ISO 8601 (UTC), null for what is unknown."""
    return {
        "namespace": row.key.namespace,
        "id": row.key.id,
        "exec_id": row.exec_id or None,
        "unit": row.unit,
        "slice": row.slice,
        "pid": row.pid or None,
        "state": row.state,
        "since": table.iso(row.since_ns) or None,
        "memory_bytes": row.memory,
        "cpu_ns": row.cpu_ns,
        "exit": exit_json(row),
    }


def exit_json(row: Row) -> dict[str, Any] | None:
    """How it ended; None while it has not."""
    if row.exit is None:
        return None
    return {
        "status": row.exit.status,
        "time": table.iso(row.exit.time_ns) or None,
        "reason": row.exit.reason or None,
        "oom": row.oom,
    }
