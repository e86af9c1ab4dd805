"""Everything that is known of one process, as a JSON-like document (`sdshim inspect`).

Only named fields are read of systemd and of the record: environment variables' values are in
neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core import names
from sdshim.core.listing import UNSET
from sdshim.core.table import iso
from sdshim.host import cgroup, inventory
from sdshim.survey import node

if TYPE_CHECKING:
    from sdshim.core.config import Config
    from sdshim.core.exitrecord import ExitRecord
    from sdshim.core.listing import Entry, Row
    from sdshim.core.model import Identity
    from sdshim.core.record import Record
    from sdshim.survey.node import Kind

LIMITS: tuple[tuple[Kind, str], ...] = tuple(
    ("Service", name)
    for name in (
        "MemoryMin",
        "MemoryLow",
        "MemoryHigh",
        "MemoryMax",
        "MemorySwapMax",
        "CPUWeight",
        "CPUQuotaPerSecUSec",
        "CPUQuotaPeriodUSec",
        "AllowedCPUs",
        "AllowedMemoryNodes",
        "IOWeight",
        "TasksMax",
    )
)
USE: tuple[tuple[Kind, str], ...] = tuple(
    ("Service", name)
    for name in ("MemoryCurrent", "CPUUsageNSec", "TasksCurrent", "IOReadBytes", "IOWriteBytes")
)
UNIT: tuple[tuple[Kind, str], ...] = (
    ("Unit", "Description"),
    ("Unit", "LoadState"),
    ("Unit", "ActiveState"),
    ("Unit", "SubState"),
    ("Unit", "FreezerState"),
    ("Unit", "InvocationID"),
    ("Unit", "FragmentPath"),
    ("Unit", "DropInPaths"),
    ("Service", "Type"),
    ("Service", "Result"),
    ("Service", "StatusText"),
    ("Service", "ControlGroup"),
    ("Service", "KillSignal"),
    ("Service", "TimeoutStopUSec"),
)
_DEFAULTS: tuple[object, ...] = (0, UNSET, [], "")


async def of(config: Config, row: Row, entry: Entry | None) -> dict[str, Any]:
    """The document of one process; parts that are not known are null."""
    unit, limits, use, helpers = await _systemd(row)
    record = entry.record if entry else None
    me = record.identity if record else None
    path = me.cgroup if me else str((unit or {}).get("ControlGroup", ""))
    return {
        "token": entry.token if entry else None,
        "description": (unit or {}).get("Description"),
        "systemd": unit,
        "cgroup": {
            "path": path or None,
            "owner": None if me is None else "sdshim" if me.owns_cgroup else "somebody else",
            "hierarchy": "v2" if cgroup.unified() else "hybrid v1",
        },
        "processes": [_process(pid) for pid in (cgroup.pids(path) if path else [])],
        "limits": limits,
        "use": use,
        **(_record(record) if record else {}),
        "exit_hook": _hook(entry.exit_record) if entry and entry.exit_record else None,
        "oom_kills": entry.oom_kills if entry else None,
        "pending_events": pending(config, record) if record else [],
        "state_dir": entry.folder if entry else None,
        "helpers": helpers,
        "error": (entry.error or None) if entry else "no state on disk",
    }


Part = dict[str, Any]


async def _systemd(row: Row) -> tuple[Part | None, Part, Part, list[str]]:
    """Unit, limits, use, and the units that serve it (a logger, a FUSE program …); no unit and
    empty parts when it is not loaded."""
    async with node.systemd() as questions:
        stem = row.unit.removesuffix(names.SUFFIX)
        serving = [unit.name for unit in await node.helpers(questions)]
        own = f"{stem}:" if row.exec_id else f"{stem}::"
        helpers = [name for name in serving if name.startswith(own)]
        if not await questions.list_units(row.unit):
            return None, {}, {}, helpers
        unit = await node.ask(questions, row.unit, UNIT)
        limits = await node.ask(questions, row.unit, LIMITS)
        use = await node.ask(questions, row.unit, USE)
    invocation = unit.get("InvocationID")
    unit["InvocationID"] = invocation.hex() if isinstance(invocation, bytes) else None
    return (
        unit,
        {k: _plain(v) for k, v in limits.items() if v not in _DEFAULTS and v != b""},
        {k: v for k, v in use.items() if v != UNSET},
        helpers,
    )


def _plain(value: object) -> object:
    """systemd's bit masks (AllowedCPUs) as lists of numbers."""
    if not isinstance(value, bytes):
        return value
    return [8 * n + bit for n, byte in enumerate(value) for bit in range(8) if byte >> bit & 1]


def _process(pid: int) -> dict[str, Any]:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        name = None
    return {"pid": pid, "name": name}


def _record(record: Record) -> dict[str, Any]:
    me = record.identity
    return {
        "phase": str(record.life.phase),
        "deleting": record.deleting,
        "bundle": me.bundle,
        "containerd": me.containerd,
        "shares_pid_namespace": not me.private_pids,
        "runtime": {"binary": me.runtime.binary, "root": f"{me.runtime.root}/{me.namespace}"},
        "options": {
            name: getattr(me.runtime, name)
            for name in me.runtime.__dataclass_fields__
            if name not in ("binary", "root") and getattr(me.runtime, name)
        },
        "streams": {
            "stdin": me.stdio.stdin or None,
            "stdout": me.stdio.stdout or None,
            "stderr": me.stdio.stderr or None,
            "terminal": me.stdio.terminal,
        },
        "log": _log(me),
        "rootfs": [
            {"type": m.type, "source": m.source, "target": m.target, "options": list(m.options)}
            for m in me.rootfs
        ],
        "traceparent": me.traceparent or None,
        "task_token": me.task_token or None,
    }


def _log(me: Identity) -> dict[str, Any]:
    """Where the output goes, and the command that shows what is in the journal."""
    if not me.log.piped:
        return {"mode": me.log.mode}
    space = f" --namespace={me.log.namespace}" if me.log.namespace else ""
    return {
        "mode": me.log.mode,
        "namespace": me.log.namespace or None,
        "stdout_priority": me.log.stdout_priority,
        "stderr_priority": me.log.stderr_priority,
        "read_by": f"journalctl{space} -u {me.unit}",
    }


def _hook(hook: ExitRecord) -> dict[str, Any]:
    return {
        "invocation_id": hook.invocation_id,
        "pid": hook.pid or None,
        "result": hook.result or None,
        "code": hook.code or None,
        "status": hook.status or None,
    }


def pending(config: Config, record: Record) -> list[dict[str, Any]]:
    """The events that containerd has not taken yet, oldest first."""
    taken = inventory.acknowledged(Path(config.run_dir) / "e").get(record.identity.containerd, 0)
    waiting = sorted((e for e in record.events if e.seq > taken), key=lambda e: e.seq)
    return [{"seq": e.seq, "topic": e.topic, "time": iso(e.time_ns)} for e in waiting]


def execs(pairs: list[tuple[Row, Entry | None]], key: names.TaskKey) -> list[str]:
    """The exec ids of a task."""
    return [row.exec_id for row, _ in pairs if row.key == key and row.exec_id]
