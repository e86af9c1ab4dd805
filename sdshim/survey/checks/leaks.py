"""What is left of containers that nobody has any more: not on disk, not systemd, not containerd.

Everything here is `passing`: a Create or Delete under way looks the same for a moment.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import names
from sdshim.core.diagnosis import Act, Finding, Level, Repair
from sdshim.core.listing import process_of, state_of
from sdshim.core.names import TaskKey
from sdshim.host import cgroup
from sdshim.host.inventory import started
from sdshim.runtime.bundle import START, TOKEN
from sdshim.survey.facts import is_live, number, token_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdshim.core.listing import Entry, UnitFacts
    from sdshim.survey.containerd import View
    from sdshim.survey.facts import Facts

RUNTIME_ROOT = Path("/run/containerd/runc")
BUNDLES = Path("/run/containerd/io.containerd.runtime.v2.task")
LOOKS_AGAIN_SINCE = (1, 7)
"""containerd 1.6 keeps a task over its restart as long as the bundle is there."""
FIFOS = Path("/run/containerd/fifo")
FIFO_AGE_S = 60
"""A client makes its FIFOs just before it asks for the container or exec."""


def _leak(
    check: str,
    level: Level,
    subject: str,
    text: str,
    advice: str = "",
    repair: Repair | None = None,
) -> Finding:
    fix = advice or "sdshim doctor --fix removes it"
    return Finding(check, level, subject, text, fix, repair, passing=True)


# --- tasks: the disk against containerd


def tasks(facts: Facts) -> Iterator[Finding]:
    """State without a task in containerd, and tasks in containerd without state."""
    views = {view.address: view for view in facts.views if not view.error}
    for entry in facts.tasks:
        record = entry.record
        view = views.get(record.identity.containerd) if record else None
        if view is None or record is None or record.life.phase == "creating":
            continue
        if entry.key not in view.tasks:
            yield _without_task(facts, entry)
    here = {entry.key for entry in facts.entries}
    for view in views.values():
        for key in sorted(view.ghosts - here):
            yield _leak(
                "tasks",
                Level.FAULT,
                str(key),
                f"containerd has the task {key}, of which sdshim has no state",
                _forgotten(view, key),
            )


def _forgotten(view: View, key: TaskKey) -> str:
    """How containerd is made to forget a task; `ctr task rm` needs the shim's word for it."""
    again = "systemctl restart containerd, which looks again; then sdshim doctor --fix"
    if number(view.version) >= LOOKS_AGAIN_SINCE:
        return again
    bundle = BUNDLES / key.namespace / key.id
    return f"umount {bundle}/rootfs; rm -r {bundle}; {again}"


def _without_task(facts: Facts, entry: Entry) -> Finding:
    unit = facts.unit(entry.unit)
    if unit is not None and unit.alive:
        return _leak(
            "tasks",
            Level.FAULT,
            entry.name,
            f"{entry.unit} runs, but containerd has no task {entry.name}",
            f"systemctl stop {entry.unit}, then sdshim doctor --fix",
        )
    words = (entry.key.namespace, entry.key.id, entry.token)
    # only the daemon can forget a task that it has in memory
    repair = Repair(Act.CLEAN_UP, words) if facts.daemon_runs else None
    advice = "" if repair else "systemctl start sdshim, then sdshim doctor --fix"
    text = f"state of {entry.name} is kept, but containerd has no such task"
    return _leak("tasks", Level.WARNING, entry.name, text, advice, repair)


# --- state folders


def state(facts: Facts) -> Iterator[Finding]:
    """Folders whose record cannot be read or is missing, and processes that are lost."""
    for entry in facts.entries:
        unit = facts.unit(entry.unit)
        idle = facts.units is not None and not (unit and unit.alive)
        remove = Repair(Act.REMOVE_FOLDER, (entry.folder,)) if idle else None
        if entry.record is None and entry.error:
            wanted = any(entry.key in view.tasks | view.ghosts for view in facts.views)
            repair = remove if facts.complete and not wanted else None
            text = f"state of {entry.name} cannot be read: {entry.error} ({entry.folder})"
            advice = "" if repair else f"ctr -n {entry.key.namespace} task rm -f {entry.key.id}"
            yield _leak("state", Level.FAULT, entry.folder, text, advice, repair)
        elif entry.record is None:
            text = f"state folder of {entry.name} without a record ({entry.folder})"
            advice = "" if remove else f"systemctl status {entry.unit}"
            yield _leak("state", Level.WARNING, entry.folder, text, advice, remove)
        elif facts.units is not None and state_of(entry, unit) == "lost":
            text = f"{entry.name} is {entry.record.life.phase} on disk, and its process is gone"
            advice = f"ctr -n {entry.key.namespace} task rm -f {entry.key.id}"
            yield _leak("state", Level.FAULT, entry.name, text, advice)


# --- units


def units(facts: Facts) -> Iterator[Finding]:
    """Units of ours that no state folder belongs to."""
    tokens = {entry.token for entry in facts.entries}
    here = {entry.key for entry in facts.entries}
    for unit in facts.units or ():
        token = token_of(unit)
        if not token or token not in tokens:
            yield _unit(unit, ours=bool(token))
    for unit in facts.helpers:
        if names.helper_of(unit.name) not in here:
            yield _unit(unit, ours=True)


def _unit(unit: UnitFacts, *, ours: bool) -> Finding:
    """`ours`: without our token it may be somebody's who chose such a name."""
    if unit.alive:
        text = f"{unit.name} runs, and sdshim has no state of it"
        return _leak("units", Level.FAULT, unit.name, text, f"systemctl stop '{unit.name}'")
    repair = Repair(Act.RESET_FAILED, (unit.name,)) if ours else None
    advice = "" if ours else f"systemctl reset-failed '{unit.name}'"
    text = f"{unit.name} has ended, and sdshim has no state of it"
    return _leak("units", Level.WARNING, unit.name, text, advice, repair)


# --- mounts


def mounts(facts: Facts) -> Iterator[Finding]:
    """Mounts in bundles of ours whose container nobody has."""
    if not facts.complete:
        return
    bundles = {e.record.identity.bundle for e in facts.entries if e.record}
    for point in facts.mounts:
        bundle = point.parent
        if point.name != "rootfs" or str(bundle) in bundles or not _is_ours(bundle):
            continue
        if facts.known(TaskKey(bundle.parent.name, bundle.name)):
            continue
        text = f"{point} is mounted, and its container is gone"
        yield _leak(
            "mounts", Level.WARNING, str(point), text, "", Repair(Act.UNMOUNT, (str(point),))
        )


def _is_ours(bundle: Path) -> bool:
    return (bundle / TOKEN).exists() or (bundle / START).exists()


# --- cgroups


def cgroups(facts: Facts) -> Iterator[Finding]:
    """Cgroups of units of ours that systemd does not have."""
    if facts.units is None:
        return
    loaded = {unit.name for unit in (*facts.units, *facts.helpers)}
    left: dict[str, list[int]] = {}
    for root in _hierarchies():
        for folder, children, _ in os.walk(root):
            for name in list(children):
                if not process_of(name) and not names.helper_of(name):
                    continue
                children.remove(name)
                path = f"/{os.path.relpath(os.path.join(folder, name), root)}"  # noqa: PTH118
                if name not in loaded:
                    left.setdefault(path, []).extend(_pids(Path(folder, name)))
    for path, pids in left.items():
        if pids:
            found = ", ".join(map(str, sorted(set(pids))))
            text = f"cgroup {path} has processes ({found}) and no unit"
            yield _leak("cgroups", Level.FAULT, path, text, f"kill {found}, if nobody needs them")
        elif not _is_task(facts, path.rpartition("/")[2]):
            text = f"cgroup {path} is left, without processes and without a unit"
            repair = Repair(Act.REMOVE_CGROUP, (path,))
            yield _leak("cgroups", Level.WARNING, path, text, "", repair)


def _is_task(facts: Facts, unit: str) -> bool:
    """Whether a unit is that of a task: systemd forgets what has ended well once the daemon lets go
    of it, and on v1 the OCI runtime's cgroups stay until Delete."""
    process = process_of(unit)
    return process is not None and facts.known(process.key)


def _hierarchies() -> list[Path]:
    """Where cgroups may be left: the v2 tree, or each of v1's controllers."""
    if cgroup.unified():
        return [cgroup.CGROUP_ROOT]
    return [p for p in cgroup.CGROUP_ROOT.iterdir() if p.is_dir() and not p.is_symlink()]


def _pids(folder: Path) -> list[int]:
    found: list[int] = []
    for file in folder.glob("**/cgroup.procs"):
        try:
            found += map(int, file.read_text().split())
        except OSError:
            continue
    return found


# --- the OCI runtime's state


def runtime_state(facts: Facts) -> Iterator[Finding]:
    """State of the OCI runtime for containers of ours that nobody has."""
    if not facts.complete:
        return
    roots = {Path(e.record.identity.runtime.root) for e in facts.entries if e.record}
    for folder in sorted(p for root in roots | {RUNTIME_ROOT} for p in root.glob("*/*")):
        key = TaskKey(folder.parent.name, folder.name)
        for binary, name, *process in (
            ("runc", "state.json", "init_process_pid", "init_process_start"),
            ("crun", "status", "pid", "process-start-time"),
        ):
            try:
                document = json.loads((folder / name).read_bytes())
            except (OSError, ValueError):
                continue
            text = json.dumps(document)
            if names.init_unit(key) not in text or facts.known(key):
                continue
            pid, start = (int(document.get(key) or 0) for key in process)
            yield _runtime_leak(binary, folder, pid if started(pid) == start else 0)


def _runtime_leak(binary: str, folder: Path, pid: int) -> Finding:
    """`pid` is that of a process which lives, or 0."""
    key = TaskKey(folder.parent.name, folder.name)
    if pid:
        text = f"{binary} has the container {key} with the living process {pid}; nobody else has"
        advice = f"{binary} --root {folder.parent} delete --force {folder.name}"
        return _leak("runtime-state", Level.FAULT, str(folder), text, advice)
    repair = Repair(Act.DELETE_RUNTIME_STATE, (binary, str(folder.parent), folder.name))
    text = f"{binary} keeps state of the container {key}, which is gone ({folder})"
    return _leak("runtime-state", Level.WARNING, str(folder), text, "", repair)


# --- files of ours, and FIFOs of clients


def files(facts: Facts) -> Iterator[Finding]:
    """Console sockets of processes that are gone."""
    tokens = {entry.token for entry in facts.entries}
    for path in sorted(facts.run_dir.glob("c/*")):
        if path.name not in tokens:
            text = f"console socket {path} of a process that is gone"
            repair = Repair(Act.REMOVE_FILE, (str(path),))
            yield _leak("files", Level.WARNING, str(path), text, "", repair)


def fifos(facts: Facts) -> Iterator[Finding]:
    """FIFOs that a client of containerd made and left: no process and no container has them."""
    used = {
        path
        for e in facts.entries
        if e.record and is_live(e)
        for path in (
            e.record.identity.stdio.stdin,
            e.record.identity.stdio.stdout,
            e.record.identity.stdio.stderr,
        )
    }
    old = [p for p in sorted(FIFOS.glob("*/*")) if str(p) not in used and _is_old(p, facts.now_ns)]
    opened = _open_files() if old else set()
    for path in old:
        if str(path) not in opened:
            text = f"FIFO {path} is left by a client of containerd (ctr does so after exec -d)"
            repair = Repair(Act.REMOVE_FILE, (str(path),))
            yield _leak("fifos", Level.WARNING, str(path), text, "", repair)


def _is_old(path: Path, now_ns: int) -> bool:
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISFIFO(facts.st_mode) and now_ns - facts.st_mtime_ns > FIFO_AGE_S * 10**9


def _open_files() -> set[str]:
    """What any process has open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(str(link.readlink()))
        except OSError:
            continue
    return found
