"""Cgroups of hybrid v1 that nobody removes but us; folders stand for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.host import cgroup

if TYPE_CHECKING:
    from pathlib import Path

UNIT = "sdshim.slice/sdshim-default.slice/sdshim-default-c1.service"


def test_what_is_empty_goes_in_every_hierarchy_and_what_is_in_use_is_told(tmp_path: Path) -> None:
    for controller in ("freezer", "memory"):
        (tmp_path / controller / UNIT / "container" / "inner").mkdir(parents=True)
    used = tmp_path / "memory" / UNIT / "container"
    (used / "a process").touch()
    assert cgroup.prune(f"/{UNIT}", tmp_path) == [used, used.parent]
    assert not (tmp_path / "freezer" / UNIT).exists()
    assert (tmp_path / "freezer" / UNIT).parent.exists()
    (used / "a process").unlink()
    assert cgroup.prune(f"/{UNIT}", tmp_path) == []
    assert cgroup.prune(f"/{UNIT}", tmp_path) == []


def test_on_v2_systemd_removes_all(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / UNIT).mkdir(parents=True)
    assert cgroup.prune(f"/{UNIT}", tmp_path) == []
    assert (tmp_path / UNIT).exists()
