"""The freezer of a container's cgroup: cgroup v2's own, or the v1 hierarchy beside systemd's."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sdshim.host.cgroup import CGROUP_ROOT, unified

if TYPE_CHECKING:
    from pathlib import Path


def frozen(cgroup: str, root: Path = CGROUP_ROOT) -> bool:
    """Whether the cgroup's processes stand still, or are about to: by its own state or that of one
    above it (`systemctl freeze`). False when it is gone."""
    if unified(root):
        return "frozen 1" in _read(_folder(cgroup, root) / "cgroup.events")
    return _read(_folder(cgroup, root) / "freezer.state").strip() in ("FREEZING", "FROZEN")


def told_by(cgroup: str, root: Path = CGROUP_ROOT) -> Path | None:
    """The file that changes with `frozen`, whoever freezes; None on v1, which has none."""
    return _folder(cgroup, root) / "cgroup.events" if unified(root) else None


def wanted(cgroup: str, root: Path = CGROUP_ROOT) -> bool | None:
    """Whether this cgroup or one above it was told to freeze, on v2. None when it is gone."""
    folder = _folder(cgroup, root)
    if not (word := _read(folder / "cgroup.freeze").strip()):
        return None
    above = [one for one in folder.parents if one.is_relative_to(root)]
    return word == "1" or any(_read(one / "cgroup.freeze").strip() == "1" for one in above)


def asked(cgroup: str, root: Path = CGROUP_ROOT) -> bool:
    """Whether this cgroup itself was told to freeze. False when it is gone."""
    name = "cgroup.freeze" if unified(root) else "freezer.self_freezing"
    return _read(_folder(cgroup, root) / name).strip() == "1"


def thaw(cgroup: str, root: Path = CGROUP_ROOT) -> None:
    """Let the cgroup's processes go on; fine when they run, or the cgroup is gone."""
    if not asked(cgroup, root):
        return
    name, word = ("cgroup.freeze", "0") if unified(root) else ("freezer.state", "THAWED")
    try:
        (_folder(cgroup, root) / name).write_text(word)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # it went meanwhile
            raise


def _folder(cgroup: str, root: Path) -> Path:
    return (root if unified(root) else root / "freezer") / cgroup.lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
