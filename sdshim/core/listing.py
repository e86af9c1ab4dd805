"""What the disk says of a process and what systemd says of its unit → one row. Pure.

Nothing here asks the daemon: with the daemon stopped the record may be behind, so an exit record
or a unit that is gone or frozen counts for more than the phase on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sdshim.core import names
from sdshim.core.errors import InvalidArgument, NotFound
from sdshim.core.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sdshim.core.exitrecord import ExitRecord
    from sdshim.core.model import ExitStatus
    from sdshim.core.record import Record

UNSET = 2**64 - 1
"""systemd's word for a counter that it does not have."""

STRAY, BROKEN, LOST, EXITED, PAUSED = "stray", "broken", "lost", "exited", "paused"
"""States that are no phase: a unit without state on disk, state that cannot be read, a process of
which nothing is left but its record."""

_BEFORE_ITS_UNIT = (Phase.CREATING, Phase.CREATED, Phase.STARTING, Phase.RESTORING)
"""An exec and a container to be restored have their unit from Start on, others from Create on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One state folder: of a container's init process or of an exec."""

    key: names.TaskKey
    exec_id: str
    token: str
    folder: str
    record: Record | None
    """None when there is none, or it cannot be read."""
    error: str = ""
    """Why it cannot be read."""
    exit_record: ExitRecord | None = None
    exit: ExitStatus | None = None
    """From the exit hook's record."""
    oom_kills: int = 0

    @property
    def name(self) -> str:
        """`namespace/id`, or `namespace/id:exec`."""
        return full_name(self.key, self.exec_id)

    @property
    def unit(self) -> str:
        """The unit that is this process."""
        return (
            names.exec_unit(self.key, self.exec_id) if self.exec_id else names.init_unit(self.key)
        )


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """A loaded unit, as systemd describes it."""

    name: str
    description: str
    active: str
    sub: str
    properties: Mapping[str, object] = field(default_factory=dict)
    """By D-Bus name; what systemd did not tell is not there."""

    def text(self, name: str) -> str:
        """A property as text; empty when there is none."""
        value = self.properties.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int | None:
        """A property as a number; None when systemd has none."""
        value = self.properties.get(name)
        return value if isinstance(value, int) and value != UNSET else None

    @property
    def alive(self) -> bool:
        """Whether it has processes, or is about to."""
        return self.active not in ("inactive", "failed")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `sdshim ps`."""

    key: names.TaskKey
    exec_id: str
    unit: str
    slice: str
    pid: int
    state: str
    since_ns: int
    """Wall clock; since when it is in its state. 0 when that is unknown."""
    memory: int | None
    cpu_ns: int | None
    exit: ExitStatus | None
    oom: bool

    @property
    def name(self) -> str:
        """`namespace/id`, or `namespace/id:exec`."""
        return full_name(self.key, self.exec_id)


def full_name(key: names.TaskKey, exec_id: str) -> str:
    """`namespace/id`, or `namespace/id:exec`."""
    return f"{key}:{exec_id}" if exec_id else str(key)


def process_of(unit: str) -> names.UnitName | None:
    """What a unit's name stands for; None when it is not that of a container or an exec."""
    parsed = names.parse_unit(unit)
    return None if parsed is None or parsed.logger else parsed


def join(entries: Iterable[Entry], units: Iterable[UnitFacts]) -> list[tuple[Row, Entry | None]]:
    """A row for each process and each unit of ours, containers before their execs, by name."""
    left = {unit.name: unit for unit in units}
    found: list[tuple[Row, Entry | None]] = []
    for entry in entries:
        record = entry.record
        if record is not None and record.life.phase is Phase.DELETED:
            continue  # on disk only for its last event
        found.append((row(entry, left.pop(entry.unit, None)), entry))
    for unit in left.values():
        parsed = process_of(unit.name)
        if parsed is not None:
            found.append((_stray(parsed.key, parsed.exec_id, unit), None))
    return sorted(found, key=lambda pair: (pair[0].key, pair[0].exec_id))


def row(entry: Entry, unit: UnitFacts | None) -> Row:
    """The row of one process; `unit` is None when systemd has none loaded."""
    record = entry.record
    exit = entry.exit
    pid, slice_name = 0, names.namespace_slice(entry.key.namespace)
    if record is not None:
        pid, slice_name = record.life.pid, record.identity.slice
        exit = _best(record.life.exit, exit)
    state = state_of(entry, unit)
    since = exit.time_ns if exit and state == EXITED else _since(unit)
    pid = pid or (unit.number("MainPID") or 0 if unit and not entry.exec_id else 0)
    return Row(
        key=entry.key,
        exec_id=entry.exec_id,
        unit=entry.unit,
        slice=slice_name,
        pid=pid,
        state=state,
        since_ns=since,
        # an exec's process is in the container's cgroup; its unit holds the subreaper only
        memory=unit.number("MemoryCurrent") if unit and not entry.exec_id else None,
        cpu_ns=unit.number("CPUUsageNSec") if unit and not entry.exec_id else None,
        exit=exit if state == EXITED else None,
        oom=bool(entry.oom_kills) or (exit is not None and exit.reason == "oom-kill"),
    )


def _best(recorded: ExitStatus | None, hook: ExitStatus | None) -> ExitStatus | None:
    """What containerd was told; the reason, systemd's word, often stands in the hook's only."""
    if recorded is None or recorded.reason or hook is None:
        return recorded or hook
    return replace(recorded, reason=hook.reason)


def state_of(entry: Entry, unit: UnitFacts | None) -> str:
    """The phase on disk, corrected by what systemd and the exit hook know better."""
    if entry.record is None:
        return BROKEN if entry.error else Phase.CREATING
    phase = entry.record.life.phase
    if phase is Phase.EXITED or (entry.exit is not None and phase is not Phase.CREATING):
        return EXITED
    if unit is not None and unit.alive:
        frozen = unit.text("FreezerState").startswith(("frozen", "freezing"))
        return PAUSED if frozen and phase is Phase.RUNNING else str(phase)
    late = entry.exec_id or entry.record.identity.checkpoint
    early = phase in _BEFORE_ITS_UNIT if late else phase is Phase.CREATING
    return str(phase) if early else LOST


def _since(unit: UnitFacts | None) -> int:
    if unit is None:
        return 0
    name = "ActiveEnterTimestamp" if unit.active == "active" else "StateChangeTimestamp"
    return (unit.number(name) or 0) * 1000


def _stray(key: names.TaskKey, exec_id: str, unit: UnitFacts) -> Row:
    return Row(
        key=key,
        exec_id=exec_id,
        unit=unit.name,
        slice=unit.text("Slice"),
        pid=unit.number("MainPID") or 0,
        state=STRAY,
        since_ns=_since(unit),
        memory=unit.number("MemoryCurrent"),
        cpu_ns=unit.number("CPUUsageNSec"),
        exit=None,
        oom=False,
    )


def find(rows: Sequence[Row], word: str, namespace: str = "") -> Row:
    """The row that a user means by a unit, `id`, `namespace/id`, `id:exec` or a unique beginning.

    Raises NotFound, or InvalidArgument with the candidates when there are several.
    """
    pool = [row for row in rows if not namespace or row.key.namespace == namespace]
    found = [row for row in pool if word in (row.unit, row.unit.removesuffix(".service"), row.name)]
    if not found:
        found = [row for row in pool if _short(row) == word]
    if not found and word:
        found = [row for row in pool if not row.exec_id and row.key.id.startswith(word)]
    if not found:
        place = f" in namespace {namespace}" if namespace else ""
        raise NotFound(f"no container, exec or unit {word!r}{place}", hint="sdshim ps --execs")
    if len(found) > 1:
        names_ = ", ".join(row.name for row in found)
        raise InvalidArgument(
            f"{word!r} is ambiguous: {names_}", hint="name one of these, or use --namespace"
        )
    return found[0]


def _short(row: Row) -> str:
    return f"{row.key.id}:{row.exec_id}" if row.exec_id else row.key.id
