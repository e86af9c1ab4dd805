"""What earlier containers left in a host, read from outside: no process is started for it.

A `Baseline` is taken right after boot; `find()` lists what is there now and should not be.
Everything is read through /proc/<pid of the host's systemd>/root and the host's cgroups.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .keeper import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

# Entries directly below these are namespaces, what is below those belongs to a container.
_PER_NAMESPACE = ("run/containerd/runc", "run/containerd/io.containerd.runtime.v2.task")
_PER_CONTAINER = ("run/runc", "run/crun")
_STATE = ("run/sdshim/t", "run/sdshim/c")
_FIFOS = "run/containerd/fifo"
_STREAMS = ("/run/sdshim/t/", "/run/containerd/fifo/", "/tmp/", "/dev/ptmx", "/dev/pts/")
_CGROUPS = "/sys/fs/cgroup/"
_MOUNTS = ("/run/containerd/", "/run/sdshim/", "/var/lib/containerd/", "/tmp/")
_DAEMONS = {
    # unit -> how the processes that belong there are called
    "containerd.service": ("containerd",),
    "sdshim.service": ("sdshim", "python"),
}


@dataclass(frozen=True, slots=True)
class Baseline:
    """The host as it was right after boot."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    pids: frozenset[int]


def baseline(pid: int, trees: list[Path]) -> Baseline:
    return Baseline(
        mounts=frozenset(_mounts(pid)),
        cgroups=frozenset(path for tree in trees for path in _cgroups(tree)),
        pids=frozenset(number for tree in trees for _, number in _processes(tree)),
    )


def find(pid: int, trees: list[Path], before: Baseline) -> list[str]:
    """One line for each thing; the same thing is never listed twice."""
    root = Path("/proc", str(pid), "root")
    units = _glob(root, "run/systemd/transient/sdshim-*")
    lines = [f"unit {path.name}" for path in units if path.suffix in (".service", ".scope")]
    lines += [f"mount {place}" for place in _mounts(pid) if place not in before.mounts]
    lines += _left_cgroups(trees, before)
    lines += _left_processes(trees, before)
    lines += _left_files(root)
    lines += _left_descriptors(pid, trees)
    return list(dict.fromkeys(lines))


def _glob(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _mounts(pid: int) -> Iterator[str]:
    for line in Path("/proc", str(pid), "mountinfo").read_text().splitlines():
        place = line.split(" ", 5)[4]
        if place.startswith(_MOUNTS):
            yield place


# --- cgroups and processes ----------------------------------------------------------------------


def _cgroups(tree: Path) -> Iterator[str]:
    """Paths of all cgroups below a host's, as the host names them."""
    for folder, children, _ in os.walk(tree):
        relative = os.path.relpath(folder, tree)
        if relative == ".":
            continue
        if relative == CLIENTS:
            children.clear()
            continue
        yield relative


def _left_cgroups(trees: list[Path], before: Baseline) -> Iterator[str]:
    for tree in trees:
        for path in _cgroups(tree):
            if path not in before.cgroups and _is_containers(tree, path):
                yield f"cgroup {path}"


def _is_containers(tree: Path, path: str) -> bool:
    """Or is it one of systemd's own, or an empty parent that runc never removes?"""
    parts = path.split("/")
    if all(part.endswith((".slice", ".scope")) for part in parts) and "docker-" not in path:
        return False
    if parts[0] == "system.slice":
        own = parts[-1].endswith((".service", ".socket")) and not parts[-1].startswith("sdshim-")
        return not own
    # runc makes /<namespace>/<id> and removes only the second.
    return len(parts) > 1 or bool(_read(tree / path / "cgroup.procs"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it went away meanwhile, or is a threaded cgroup
        return ""


def _processes(tree: Path) -> Iterator[tuple[str, int]]:
    for folder, children, _ in os.walk(tree):
        relative = os.path.relpath(folder, tree)
        if relative == CLIENTS:
            children.clear()
            continue
        for number in _read(Path(folder, "cgroup.procs")).split():
            yield relative, int(number)


def _left_processes(trees: list[Path], before: Baseline) -> Iterator[str]:
    seen: set[int] = set()
    # A process is in each hierarchy; only systemd's says what it belongs to.
    for tree in trees[:1]:
        for path, number in _processes(tree):
            name = _read(Path("/proc", str(number), "comm")).strip()
            if not name or number in before.pids or number in seen or _belongs(path, name):
                continue
            seen.add(number)
            command = _read(Path("/proc", str(number), "cmdline")).replace("\0", " ").strip()
            yield f"process {number} {command or name} in {path}"


def _belongs(path: str, name: str) -> bool:
    if path == "init.scope":
        return True
    parts = path.split("/")
    if parts[0] != "system.slice" or len(parts) != 2 or parts[1].startswith("sdshim-"):
        return False
    expected = _DAEMONS.get(parts[1])
    return expected is None or (name.startswith(expected) and "shim-runc" not in name)


# --- descriptors ----------------------------------------------------------------------------------


def _left_descriptors(pid: int, trees: list[Path]) -> Iterator[str]:
    """What the daemon still has of processes: FIFOs and terminals (systemd's fd store for it, too),
    and files of their cgroups."""
    daemon = _read(trees[0] / "system.slice/sdshim.service/cgroup.procs").split()
    for number in (str(pid), *daemon):
        holder = "systemd" if number == str(pid) else f"process {number}"
        for fd in _glob(Path("/proc", number, "fd"), "*"):
            try:
                target = str(fd.readlink())
            except OSError:  # closed, or ended, meanwhile
                continue
            watched = number != str(pid) and target.startswith(_CGROUPS)
            if watched or target.startswith(_STREAMS):
                yield f"descriptor {fd.name} of {holder}: {target}"


# --- files --------------------------------------------------------------------------------------


def _left_files(root: Path) -> Iterator[str]:
    for top in _PER_NAMESPACE:
        for path in _glob(root, f"{top}/*/[!.]*"):  # crun keeps its seccomp filters in .cache
            yield f"runtime state /{path.relative_to(root)}"
    for top in _PER_CONTAINER:
        for path in _glob(root, f"{top}/*"):
            yield f"runtime state /{path.relative_to(root)}"
    for top in _STATE:
        for folder, children, names in os.walk(root / top):
            ours = Path(folder).relative_to(root)
            deep = len(ours.parts) > len(Path(top).parts) + 1  # deeper than a namespace
            if names or (deep and not children):
                yield f"state /{ours}" + (f": {', '.join(sorted(names))}" if names else "")
    for folder, _, names in os.walk(root / _FIFOS):
        for name in names:
            if _is_fifo(Path(folder, name)):
                yield f"fifo /{Path(folder, name).relative_to(root)}"


def _is_fifo(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(path.lstat().st_mode)
    except FileNotFoundError:
        return False
