"""Readiness: what the container's spec gets, what of its words is passed on, and that a word waits
in the socket until it was passed on."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from sdshim.core import notify
from sdshim.stdio import notifysocket

if TYPE_CHECKING:
    from pathlib import Path


def test_the_spec_gets_one_mount_and_one_variable_however_often() -> None:
    spec = {
        "mounts": [{"destination": "/run", "type": "tmpfs"}],
        "process": {"env": ["A=1", "NOTIFY_SOCKET=/run/systemd/notify"], "args": ["x"]},
    }
    once = notify.with_socket(spec, "/state")
    assert notify.with_socket(once, "/state") == once
    assert [m["destination"] for m in once["mounts"]] == ["/run", "/run/host/notify"]
    assert once["mounts"][1]["source"] == "/state/notify"
    assert once["process"] == {
        "env": ["A=1", "NOTIFY_SOCKET=/run/host/notify/socket"],
        "args": ["x"],
    }
    assert spec["process"]["env"][1] == "NOTIFY_SOCKET=/run/systemd/notify"  # type: ignore[index]


def test_a_spec_without_process_or_mounts_is_taken() -> None:
    assert "process" not in notify.with_socket({}, "/state")
    assert len(notify.with_socket({"mounts": None, "process": {}}, "/state")["mounts"]) == 1


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (b"READY=1", "READY=1"),
        (b"STATUS=up\nREADY=1\nMAINPID=1\n", "READY=1\nSTATUS=up"),
        (b"READY=0", ""),
        (b"XREADY=1", ""),
        (b"STATUS=\x1b]0;x\x07\ttab", "STATUS=?]0;x??tab"),
        (b"STATUS=\xff\xfe", "STATUS=\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
        (b"STATUS=" + b"x" * 1000, "STATUS=" + "x" * notify.MAX_STATUS),
        (b"STOPPING=1\nRELOADING=1\nWATCHDOG=trigger\nFDSTORE=1\nFDNAME=a", ""),
        (b"", ""),
        (b"\0\n\n=", ""),
    ],
)
def test_what_is_passed_on(said: bytes, passed: str) -> None:
    assert notify.passed_on(said) == passed


def test_a_barrier_wants_an_answer() -> None:
    assert notify.wants_answer(b"BARRIER=1")
    assert not notify.wants_answer(b"BARRIER=10\nREADY=1")


def test_a_word_is_there_again_for_who_died_over_it(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 60)
    folder.mkdir()
    fd = notifysocket.bind(folder)
    with socket.socket(fileno=fd), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        here = folder / "notify"
        assert (here / "socket").stat().st_mode & 0o777 == 0o666
        with notifysocket.short(here) as place:
            speaker.connect(f"{place}/socket")
        speaker.send(b"READY=1")
        speaker.send(b"STATUS=two")
        assert asyncio.run(_heard(fd, 1, dies=True)) == [b"READY=1"]
        assert asyncio.run(_heard(fd, 2)) == [b"READY=1", b"STATUS=two"]


async def _heard(fd: int, count: int, *, dies: bool = False) -> list[bytes]:
    """The next messages as a listener gets them; one that dies does not get to the end of one."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listener(message: bytes) -> None:
        await heard.put(message)
        if dies:
            await asyncio.Event().wait()

    serving = asyncio.create_task(notifysocket.serve(fd, listener))
    found = [await asyncio.wait_for(heard.get(), 10) for _ in range(count)]
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    return found


def test_a_socket_is_made_anew_in_the_same_place(tmp_path: Path) -> None:
    for _ in range(2):
        with socket.socket(fileno=notifysocket.bind(tmp_path)) as made:
            assert not os.get_blocking(made.fileno())
