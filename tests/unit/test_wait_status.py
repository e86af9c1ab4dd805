"""A pidfd tells how its process ended, to who is not its parent too."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from sdshim.core.exitrecord import from_wait_status
from sdshim.host import process
from sdshim.host.process import Watched, tells_exits

needs_kernel = pytest.mark.skipif(not tells_exits(), reason="Linux before 6.15")


async def _watched(script: str) -> tuple[int, Watched]:
    """A child that has ended and is not reaped."""
    pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", script], {})  # noqa: ASYNC221
    over = asyncio.Event()
    watched = Watched(pid, over.set)
    await over.wait()
    return pid, watched


@needs_kernel
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_is_told_once_the_parent_has_reaped(script: str, status: int) -> None:
    async def main() -> None:
        pid, watched = await _watched(script)
        asked = asyncio.ensure_future(watched.wait_status())
        await asyncio.sleep(0)
        assert not asked.done()
        reaped = os.waitpid(pid, 0)[1]  # noqa: ASYNC222 (it has ended)
        assert await asked == reaped == await watched.wait_status()
        assert from_wait_status(reaped, 5).status == status
        watched.close()
        assert await watched.wait_status() is None

    asyncio.run(main())


@needs_kernel
def test_a_parent_that_takes_its_time_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(process, "REAPED_S", 0.01)
        pid, watched = await _watched("exit 3")
        assert await watched.wait_status() is None
        os.waitpid(pid, 0)  # noqa: ASYNC222 (it has ended)
        watched.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("release", "tells"),
    [("6.1.0-13-amd64", False), ("6.14.9", False), ("6.15", True), ("6.18.4-x", True),
     ("7.0-rc1", True), ("odd", False)],
)  # fmt: skip
def test_older_kernels_are_not_asked(
    monkeypatch: pytest.MonkeyPatch, release: str, tells: bool
) -> None:
    told = os.uname_result(("Linux", "host", release, "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: told)
    tells_exits.cache_clear()
    assert tells_exits() == tells
    monkeypatch.undo()
    tells_exits.cache_clear()


def test_a_core_dump_is_an_exit_by_its_signal() -> None:
    assert from_wait_status(signal.SIGSEGV | 0x80, 5).status == 139
