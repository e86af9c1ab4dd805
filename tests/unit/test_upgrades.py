"""What another version left where this one finds it: kept, not taken for rubbish."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sdshim.daemon.publisher import Mailbox, Publisher
from sdshim.daemon.recovery import STRANGE, leave_strange
from sdshim.host.reserve import Reserve
from sdshim.telemetry import tracer_from_env

if TYPE_CHECKING:
    import pytest

    from sdshim.daemon.node import Keeper

TOKEN = "0" * 32
ADDRESS = "/run/containerd/containerd.sock.ttrpc"


def _descriptor() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def _is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_descriptors_of_unknown_names_and_of_unreadable_records_are_left_in_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["novel.1", f"io.{TOKEN}.stdout", f"io.{'1' * 32}.stdout", "event.0123456789abcdef"]
    kept = [(name, _descriptor()) for name in names]
    rest = leave_strange(kept, {TOKEN})
    assert rest == kept[2:]  # nobody's, and of a known form
    assert [_is_open(fd) for _, fd in kept] == [False, False, True, True]
    for _, fd in rest:
        os.close(fd)
    (line,) = caplog.messages
    assert "novel.1" in line


def test_no_more_than_a_few_are_left() -> None:
    kept = [(f"novel.{number}", _descriptor()) for number in range(STRANGE + 2)]
    rest = leave_strange(kept, set())
    assert rest == kept[STRANGE:]
    for _, fd in rest:
        os.close(fd)


def _publisher(tmp_path: Path) -> tuple[Publisher, list[Mailbox]]:
    boxes: list[Mailbox] = []
    made = Publisher(
        tmp_path / "e", cast("Keeper", None), tracer_from_env({}, None), Reserve(tmp_path / "r")
    )
    made.start_box = boxes.append
    return made, boxes


def _outbox_file(tmp_path: Path) -> Path:
    """The file of ADDRESS."""
    box = Mailbox(
        ADDRESS,
        tmp_path / "e",
        cast("Keeper", None),
        tracer_from_env({}, None),
        Reserve(tmp_path / "r"),
    )
    return tmp_path / "e" / f"{box.fd_name.removeprefix('event.')}.json"


def test_fields_of_a_newer_outbox_file_are_written_again(tmp_path: Path) -> None:
    publisher, boxes = _publisher(tmp_path)
    path = _outbox_file(tmp_path)
    old = {"version": 9, "address": ADDRESS, "acked": 5, "sending": 6, "stream": 3, "novelty": [1]}
    path.write_text(json.dumps(old))
    assert publisher.load([]) == []
    (box,) = boxes
    assert (box.acked, box.last_sent) == (5, 6)
    box._acknowledge(6)
    assert json.loads(path.read_text()) == old | {"version": 1, "acked": 6}


def test_an_outbox_file_that_cannot_be_read_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, boxes = _publisher(tmp_path)
    path = _outbox_file(tmp_path)
    path.write_text("{novel")
    publisher.load([])
    assert not boxes
    assert not path.exists()
    assert path.with_name(path.name + ".unreadable").read_text() == "{novel"
    assert "moved to" in caplog.text
