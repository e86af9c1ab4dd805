"""The bundle's log FIFO: written whole or not at all, and nothing else is ever written to."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from sdshim.stdio.bundlelog import BundleHandler

if TYPE_CHECKING:
    from pathlib import Path


def say(folder: object, text: str) -> None:
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "%s", (text,), None)
    record.bundle = str(folder)
    BundleHandler().emit(record)


def test_a_line_is_containerds_own_form(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    say(tmp_path, 'a "b"\nc')
    say(tmp_path, "\N{EURO SIGN}" * 9000)
    say("", "no bundle")
    first, second = os.read(reader, 1 << 16).splitlines()
    os.close(reader)
    assert first.startswith(b'time="') and first.endswith(b'level=warning msg="a \\"b\\"\\nc"')
    assert 2000 < len(second) < 4096 and second.endswith(b'"')


@pytest.mark.parametrize("what", ["nothing", "no reader", "file", "link"])
def test_what_cannot_take_a_line_is_left_alone(tmp_path: Path, what: str) -> None:
    place, other = tmp_path / "log", tmp_path / "other"
    other.write_text("")
    if what == "no reader":
        os.mkfifo(place)
    elif what == "file":
        place.write_text("")
    elif what == "link":
        place.symlink_to(other)
    say(tmp_path, "x")
    assert other.read_text() == ""
    assert what != "file" or place.read_text() == ""
