"""The state folders as they are, read without changing anything: for the operator's commands.

`store.Store` is the daemon's: it makes folders and clears up cut ones. This only reads, and what
goes away meanwhile was never there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import exitrecord, record
from sdshim.core.errors import ShimError
from sdshim.core.listing import Entry
from sdshim.core.names import TaskKey
from sdshim.host.mounts import mount_points
from sdshim.host.statfile import pairs
from sdshim.host.store import EXIT, OOM, RECORD

if TYPE_CHECKING:
    from sdshim.core.exitrecord import ExitRecord
    from sdshim.core.model import ExitStatus


def entries(root: Path) -> list[Entry]:
    """Every incarnation below the state root (/run/sdshim/t), tasks before execs.

    Raises PermissionError when the folder may not be read.
    """
    try:
        os.scandir(root).close()  # glob is silent about what it may not read
    except FileNotFoundError:
        return []
    found = []
    for folder in (*sorted(root.glob("*/*/*")), *sorted(root.glob("*/*/*/x/*/*"))):
        parts = folder.relative_to(root).parts
        exec_id = parts[4] if len(parts) > 3 else ""
        found.append(_entry(folder, TaskKey(parts[0], parts[1]), exec_id))
    return [entry for entry in found if entry is not None]


def _entry(folder: Path, key: TaskKey, exec_id: str) -> Entry | None:
    known, error = None, ""
    try:
        known = record.decode((folder / RECORD).read_bytes())
    except FileNotFoundError:
        if not folder.is_dir():
            return None
    except (ShimError, OSError) as problem:
        error = str(problem)
    exit_record, exit = _exit(folder)
    # The hook's copy is the last word; while the container lives the daemon's record has the count.
    told = known.life.ooms if known and not exec_id else 0
    kills = max(told, pairs(_text(folder / OOM)).get("oom_kill", 0))
    return Entry(key, exec_id, folder.name, str(folder), known, error, exit_record, exit, kills)


def _exit(folder: Path) -> tuple[ExitRecord | None, ExitStatus | None]:
    path = folder / EXIT
    found = exitrecord.parse_record(_text(path))
    if found is None:
        return None, None
    try:
        time_ns = path.stat().st_mtime_ns
    except OSError:
        return None, None
    return found, found.exit_status(time_ns) if found.had_process else None


def acknowledged(folder: Path) -> dict[str, int]:
    """Of each containerd, by its ttrpc address: the number of the last event it took (`folder` is
    /run/sdshim/e; a record keeps an event until its next commit, also when it has arrived)."""
    found = {}
    for path in folder.glob("*.json"):
        try:
            document = json.loads(path.read_bytes())
            found[str(document["address"])] = int(document["acked"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def namespaces(folder: Path) -> list[str]:
    """The containerd namespaces that have a socket (`folder` is /run/sdshim/s)."""
    return sorted(path.name for path in folder.glob("*"))


def mounted() -> list[Path]:
    """Every mount point of this mount namespace, the deepest first."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return mount_points(Path("/"), table)


def started(pid: int) -> int:
    """When a process was started, in clock ticks since boot (/proc/PID/stat, field 22); -1 when it
    is not there: with the pid it names a process for good."""
    words = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(words[19]) if len(words) > 19 else -1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
