"""Reading cgroups: which flavour the host has, and which processes are in a container."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def unified(root: Path = CGROUP_ROOT) -> bool:
    """True on cgroup v2, False on hybrid v1."""
    return os.access(f"{root}/cgroup.controllers", os.F_OK)


def hierarchy(root: Path = CGROUP_ROOT) -> Path:
    """The hierarchy that systemd keeps its units in: the v2 tree, or name=systemd."""
    return root if unified(root) else root / "systemd"


def describe(root: Path = CGROUP_ROOT) -> str:
    """The flavour with v2's controllers, for people."""
    if not unified(root):
        return "hybrid v1"
    names = (root / "cgroup.controllers").read_text().split()
    return f"v2 ({', '.join(names) or 'no'} controllers)"


def pids(cgroup: str, root: Path = CGROUP_ROOT) -> list[int]:
    """Every process in a cgroup and below it; empty when the cgroup is gone."""
    top = hierarchy(root) / cgroup.lstrip("/")
    found: list[int] = []
    for file in (top / "cgroup.procs", *top.glob("**/*/cgroup.procs")):
        try:
            found += [int(line) for line in file.read_text().split()]
        except OSError:
            continue
    return sorted(set(found))


def signal_all(cgroup: str, number: int, root: Path = CGROUP_ROOT) -> list[int]:
    """A signal to every process in a cgroup and below it, the oldest first: an init that sees its
    children die may end with a status of its own. The pids that were found."""
    found = pids(cgroup, root)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return found


def kill(cgroup: str, root: Path = CGROUP_ROOT) -> None:
    """SIGKILL to every process in a cgroup and below it, also to one that is being forked."""
    try:
        (root / cgroup.lstrip("/") / "cgroup.kill").write_text("1")
    except OSError:  # hybrid v1 has no such file: until a pass finds nobody new
        seen: set[int] = set()
        while found := set(signal_all(cgroup, signal.SIGKILL, root)) - seen:
            seen |= found


def memory_used(cgroup: str, root: Path = CGROUP_ROOT) -> int | None:
    """Bytes charged to a cgroup and those below it; None when it is gone or nobody counts there."""
    top, name = (root, "memory.current")
    if not unified(root):
        top, name = root / "memory", "memory.usage_in_bytes"
    try:
        return int((top / cgroup.lstrip("/") / name).read_text())
    except OSError:
        return None


def holds(cgroup: str, pid: int) -> bool:
    """Whether a process is in a cgroup or below it, in any hierarchy. Raises OSError when that
    cannot be told (no descriptor is free)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    paths = (line.split(":", 2)[2] for line in lines)
    return any(path == cgroup or path.startswith(f"{cgroup}/") for path in paths)


def prune(cgroup: str, root: Path = CGROUP_ROOT) -> list[Path]:
    """Hybrid v1: remove what the OCI runtime made at and above its own cgroup in the controllers
    that systemd does not manage (freezer, cpuset …), and that neither of them removes. Returned is
    what is still in use: a process that has ended leaves its cgroups a moment later."""
    if unified(root):
        return []
    left = []
    for controller in root.iterdir():
        folder = controller / cgroup.lstrip("/")
        for path in sorted(folder.glob("**/"), reverse=True):
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                left.append(path)
    return left


def remove(cgroup: str, root: Path = CGROUP_ROOT) -> None:
    """Remove a cgroup and those below it, in every hierarchy. Raises OSError when it is in use."""
    tops = [root] if unified(root) else [p for p in root.iterdir() if p.is_dir()]
    for top in tops:
        for path in sorted((top / cgroup.lstrip("/")).glob("**/"), reverse=True):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
