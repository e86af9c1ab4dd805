"""The host: versions, criu, how its cgroups are mounted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from sdshim.core.criu import MINIMUM
from sdshim.core.diagnosis import Finding, Level
from sdshim.host import cgroup
from sdshim.survey.facts import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdshim.survey.facts import Facts

OLDEST = {
    "systemd": (252,),
    "containerd": (1, 6),
    "runc": (1, 1),
    "crun": (1, 8),
    "python": (3, 11),
}
"""What sdshim is made for and tested with."""


def versions(facts: Facts) -> Iterator[Finding]:
    """Everything that is worked with is new enough; the configured OCI runtime is there."""
    for name, version in facts.versions.items():
        oldest = OLDEST.get(name.split(" ", maxsplit=1)[0])
        if oldest and version and number(version) < oldest:
            wanted = ".".join(map(str, oldest))
            text = f"{name} is version {version}; sdshim needs {wanted} or newer"
            yield Finding("versions", Level.FAULT, name, text, f"upgrade {name}")
    users = {facts.config.runtime: "the configuration"}
    for entry in facts.tasks:
        if entry.record:
            users.setdefault(entry.record.identity.runtime.binary, entry.name)
    for binary, user in users.items():
        if shutil.which(binary) is None:
            text = f"the OCI runtime {binary}, which {user} names, cannot be found"
            yield Finding("versions", Level.FAULT, binary, text, f"install {binary}")


def criu(facts: Facts) -> Iterator[Finding]:
    """A criu that is there must be new enough; none at all is no fault, but for a task whose
    options name one."""
    version = facts.versions.get("criu", "")
    if version and number(version) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        text = f"criu is version {version}; checkpoints need {wanted} or newer"
        yield Finding("criu", Level.WARNING, "criu", text, "upgrade criu")
    for entry in facts.tasks:
        path = entry.record.identity.runtime.criu_path if entry.record else ""
        if path and shutil.which(path) is None:
            text = f"criu at {path}, which {entry.name} names, cannot be run"
            yield Finding("criu", Level.WARNING, entry.name, text, "install criu there")


def cgroup_mode(facts: Facts) -> Iterator[Finding]:
    """cgroup v2, or v1 with systemd's own hierarchy and v2 beside it (hybrid)."""
    del facts
    root = cgroup.CGROUP_ROOT
    if not cgroup.unified() and not (root / "systemd").is_dir():
        text = f"{root} is neither cgroup v2 nor hybrid v1"
        advice = "boot with systemd.unified_cgroup_hierarchy=1"
        yield Finding("cgroup-mode", Level.FAULT, str(root), text, advice)
