"""Fault tests run on the same booted host as the system tests."""

from __future__ import annotations

from tests.system.conftest import (
    ctr,
    host,
    leaves_nothing_behind,
    mount_folder,
    nobody_notices,
    rig,
)

__all__ = ["ctr", "host", "leaves_nothing_behind", "mount_folder", "nobody_notices", "rig"]
