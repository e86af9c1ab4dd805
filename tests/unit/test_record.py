"""What stands on disk: comes back as it was, survives other versions, tells when it is broken."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sdshim.core import record
from sdshim.core.errors import Internal
from sdshim.core.exitrecord import from_systemd, parse_record
from sdshim.core.lifecycle import Life, Phase
from sdshim.core.model import (
    Event,
    ExitStatus,
    Identity,
    Mount,
    RecordedReply,
    RuntimeOptions,
    Stdio,
)
from sdshim.core.record import Record

IDENTITY = Identity(
    namespace="default",
    id="c1",
    token="0" * 32,
    bundle="/b",
    unit="sdshim-default-c1.service",
    slice="sdshim-default.slice",
    cgroup="/x/container",
    owns_cgroup=True,
    containerd="/run/containerd/containerd.sock.ttrpc",
    runtime=RuntimeOptions(binary="crun", no_pivot_root=True),
    stdio=Stdio("/i", "/o", ""),
    rootfs=(Mount("overlay", "overlay", "", ("lowerdir=/a:/b",)),),
    create_call=(3, 7),
)
RECORD = Record(
    IDENTITY,
    Life(Phase.EXITED, 42, ExitStatus(137, 5, "signal"), ooms=3, oom_held=True),
    deleting=True,
    events=(Event(9, "/tasks/exit", "containerd.events.TaskExit", b"\x00\xff", 5, "00-a"),),
    replies={(3, 9): RecordedReply(2, "no", b"\x01")},
)


def test_a_record_comes_back_as_it_was() -> None:
    assert record.decode(record.encode(RECORD)) == RECORD


def test_fields_of_a_newer_version_are_kept_and_do_not_disturb() -> None:
    document = json.loads(record.encode(RECORD))
    document["version"] = 99
    document["new_thing"] = {"a": 1}
    document["identity"]["new_field"] = True
    for inner in ("runtime", "stdio", "log"):
        document["identity"][inner]["new_field"] = [inner]
    document["identity"]["rootfs"][0]["new_field"] = 2
    for name in ("events", "replies"):
        document[name][0]["new_field"] = 1
    document["exit"]["new_field"] = 1
    back = record.decode(json.dumps(document).encode())
    assert replace(back, unknown={}) == RECORD
    assert json.loads(record.encode(back)) == document | {"version": record.VERSION}
    later = replace(back, events=(), replies={}, life=Life(Phase.RUNNING, 42))
    written = json.loads(record.encode(later))
    assert (written["events"], written["replies"], written["exit"]) == ([], [], None)
    assert written["identity"] == document["identity"]
    assert written["new_thing"] == {"a": 1}


def test_a_record_of_a_version_that_counted_no_oom_kills_can_be_read() -> None:
    document = json.loads(record.encode(RECORD))
    del document["ooms"], document["oom_held"]
    life = record.decode(json.dumps(document).encode()).life
    assert (life.ooms, life.oom_held) == (0, False)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"identity": 1}', b"\xff\xfe"])
def test_a_broken_record_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(Internal, match="state file cannot be read"):
        record.decode(data)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("i 5 exit-code exited 7\n", 7),
        ("i 5 success exited 0\n", 0),
        ("i 5 signal killed KILL\n", 137),
        ("i 5 success killed TERM\n", 143),
        ("i 5 core-dump dumped SEGV\n", 139),
        ("i 5 signal killed RTMIN+3\n", 165),
        ("i - exit-code - -\n", 255),
    ],
)
def test_the_exit_hooks_line_tells_the_exit_status(line: str, status: int) -> None:
    found = parse_record(line)
    assert found is not None
    assert found.exit_status(1).status == status


@pytest.mark.parametrize("line", ["", "i 5 success exited 0", "a b\n", "\n", "a b c d e f\n"])
def test_a_cut_or_malformed_line_is_no_record(line: str) -> None:
    assert parse_record(line) is None


def test_systemds_codes_become_containerds_statuses() -> None:
    assert from_systemd(0, 0, 1) is None
    for code, status, wanted in ((1, 7, 7), (2, 9, 137), (3, 11, 139)):
        found = from_systemd(code, status, 1)
        assert found is not None
        assert found.status == wanted


@pytest.mark.parametrize(
    "field, value",
    [
        ("cgroup", "/"),
        ("cgroup", ""),
        ("cgroup", "/a/../.."),
        ("unit", "dbus.service"),
        ("unit", "sdshim-default-c2.service"),
        ("id", ".."),
        ("namespace", "a/b"),
        ("token", "../../../etc"),
        ("bundle", "b"),
        ("bundle", "/b/../etc"),
        ("stdio", {"stdin": 5, "stdout": "", "stderr": "", "terminal": False}),
    ],
)
def test_a_record_whose_names_would_reach_others_cannot_be_read(field: str, value: object) -> None:
    document = json.loads(record.encode(RECORD))
    document["identity"][field] = value
    with pytest.raises(Internal):
        record.decode(json.dumps(document).encode())
