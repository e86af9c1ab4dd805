"""Kill everything in a unit's cgroup without systemd's help."""

from __future__ import annotations

import contextlib
import os
import signal

ROOT = "/sys/fs/cgroup"


def of_unit(slice_name: str, unit: str) -> str:
    """Cgroup that systemd gives to `unit` in a slice (core/names.py: unit_cgroup)."""
    parts = slice_name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts))) + f"/{unit}"


def kill(cgroup: str) -> None:
    """SIGKILL to each process at and below `cgroup`, in the unified and the hybrid layout."""
    for root in (ROOT, f"{ROOT}/unified", f"{ROOT}/systemd"):
        if os.path.isdir(root + cgroup):
            _kill_one(root + cgroup)


def populated(cgroup: str) -> bool:
    """Whether a process is left there that has not even begun to die."""
    roots = (ROOT, f"{ROOT}/unified", f"{ROOT}/systemd")
    return any(not _dying(pid) for root in roots for pid in _pids(root + cgroup))


def _kill_one(path: str) -> None:
    with contextlib.suppress(OSError):
        with open(f"{path}/cgroup.kill", "w") as file:
            file.write("1")
        return
    for _ in range(20):  # until a pass finds nobody: a fork may slip past a single one
        pids = [pid for pid in _pids(path) if not _dying(pid)]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _dying(pid: int) -> bool:
    """Gone, or SIGKILL is pending (it may wait for I/O or for a thaw)."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.partition(":")[::2] for line in file)
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    except (OSError, KeyError):
        return True
    return bool(pending >> (signal.SIGKILL - 1) & 1) or fields["State"].strip()[:1] in "ZX"


def _pids(path: str) -> list[int]:
    pids: list[int] = []
    for directory, _, files in os.walk(path):
        if "cgroup.procs" in files:
            with contextlib.suppress(OSError), open(f"{directory}/cgroup.procs") as file:
                pids += [int(line) for line in file]
    return [pid for pid in pids if pid > 0]
