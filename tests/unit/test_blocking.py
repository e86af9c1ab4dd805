"""System calls that may hang, and what is done about a mount of which one does."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import UnknownError
from sdshim.host import mounts
from sdshim.host.blocking import apart
from tests.unit.ttrpc_kit import aio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What the hanging calls of a test wait for; they end with it."""
    made = threading.Event()
    yield made
    made.set()


@aio
async def test_a_result_or_an_error_comes_back() -> None:
    assert await apart(lambda: 7, 5) == 7
    with pytest.raises(ZeroDivisionError):
        await apart(lambda: 1 // 0, 5)


@aio
async def test_however_many_hang_the_next_one_is_done(gate: threading.Event) -> None:
    for _ in range(40):
        with pytest.raises(TimeoutError):
            await apart(gate.wait, 0.001)
    assert await apart(lambda: "done", 5) == "done"


class Libc:
    """umount2(2) that hangs, at most but when it is told to detach."""

    def __init__(self, gate: threading.Event, *, detaches: bool) -> None:
        self.gate = gate
        self.detaches = detaches
        self.calls: list[tuple[bytes, int]] = []

    def umount2(self, point: bytes, flags: int) -> int:
        self.calls.append((point, flags))
        if not (self.detaches and flags & mounts.MNT_DETACH):
            self.gate.wait()
        return 0


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mounts, "UNMOUNT_S", 0.05)
    monkeypatch.setattr(mounts, "DETACH_S", 0.05)
    monkeypatch.setattr(mounts, "mount_points", lambda path, _table: [path])
    return tmp_path / "rootfs"


@aio
async def test_a_mount_whose_umount_does_not_return_is_detached(
    mounted: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = Libc(gate, detaches=True)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    await mounts.unmount_tree(mounted)
    flags = [flags & mounts.MNT_DETACH for _, flags in libc.calls]
    assert flags[0] == 0
    assert mounts.MNT_DETACH in flags


@aio
async def test_one_that_cannot_even_be_detached_is_an_error_that_names_it(
    mounted: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = Libc(gate, detaches=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    with pytest.raises(UnknownError, match="rootfs can neither be unmounted nor detached"):
        await mounts.unmount_tree(mounted)
