"""Doctor's checks: one list, one small function each. A check reads facts and changes nothing.

A new one is a function of `Facts` that yields findings, a line in CHECKS, and a test that makes the
fault on a booted host (tests/system/doctor).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.core.diagnosis import Finding, Level
from sdshim.survey.checks import daemon, host, leaks, place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sdshim.survey.facts import Facts

    Check = Callable[[Facts], Iterable[Finding]]

# Repairs are made in this order: the OCI runtime's state before the mounts and cgroups it holds.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("bus", daemon.bus),
    ("daemon", daemon.runs),
    ("containerd", daemon.containerds),
    ("fd-store", daemon.fd_store),
    ("outbox", daemon.outbox),
    ("disk", daemon.disk),
    ("permissions", daemon.permissions),
    ("tasks", leaks.tasks),
    ("state", leaks.state),
    ("runtime-state", leaks.runtime_state),
    ("mounts", leaks.mounts),
    ("units", leaks.units),
    ("cgroups", leaks.cgroups),
    ("files", leaks.files),
    ("fifos", leaks.fifos),
    ("versions", host.versions),
    ("criu", host.criu),
    ("cgroup-mode", host.cgroup_mode),
    ("foreign-cgroups", place.foreign_cgroups),
    ("host-run", place.host_run),
    ("mount-namespace", place.mount_namespace),
    ("drop-ins", place.drop_ins),
)


def run(facts: Facts) -> list[Finding]:
    """Every check's findings. One that cannot be made is a finding itself."""
    found: list[Finding] = []
    for name, check in CHECKS:
        try:
            found += check(facts)
        except OSError as error:
            text = f"cannot be checked: {error}"
            found.append(Finding(name, Level.UNKNOWN, name, text, "run doctor as root"))
    return found
