"""Files that tell when they change: what is closed is closed once, and never another's."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdshim.host.changes import Changes
from tests.unit.ttrpc_kit import aio

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path("/proc/self/mounts")  # it can be polled as cgroup.events can
HELD = Path("/proc/self/fd")


@contextmanager
def _changes() -> Iterator[Changes]:
    made = Changes()
    try:
        yield made
    finally:
        made.close_all()


def _count() -> int:
    return len(os.listdir(HELD))  # noqa: PTH208


@aio
async def test_a_file_that_is_not_there_is_not_watched(tmp_path: Path) -> None:
    with _changes() as changes, pytest.raises(FileNotFoundError):
        changes.watch(tmp_path / "none", lambda: None)


@aio
async def test_a_file_that_cannot_be_polled_leaves_no_descriptor(tmp_path: Path) -> None:
    with _changes() as changes:
        changes.watch(FILE, lambda: None)
        (tmp_path / "plain").touch()
        before = _count()
        with pytest.raises(PermissionError):
            changes.watch(tmp_path / "plain", lambda: None)
        assert _count() == before


@aio
async def test_closing_twice_never_closes_the_next_file_with_that_descriptor() -> None:
    with _changes() as changes:
        first = changes.watch(FILE, lambda: None)
        changes.close(first)
        second = changes.watch(FILE, lambda: None)
        assert second.fd == first.fd
        changes.close(first)
        os.fstat(second.fd)
        changes.close(second)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(second.fd)


@aio
async def test_all_are_closed_in_the_end() -> None:
    before = _count()
    changes = Changes()
    for _ in range(3):
        changes.watch(FILE, lambda: None)
    changes.close_all()
    assert _count() == before
