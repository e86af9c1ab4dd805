"""`sdshim ps` and `inspect`: what disk and systemd say becomes a row, and a name finds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sdshim.core import listing, record
from sdshim.core.errors import InvalidArgument, NotFound
from sdshim.core.lifecycle import Life, Phase
from sdshim.core.listing import Entry, Row, UnitFacts
from sdshim.core.model import ExitStatus
from sdshim.core.names import TaskKey
from sdshim.core.record import Record
from sdshim.host import inventory
from tests.unit.test_record import IDENTITY

if TYPE_CHECKING:
    from pathlib import Path

KEY = TaskKey("default", "c1")
UNIT = UnitFacts(
    "sdshim-default-c1.service",
    "Container default/c1",
    "active",
    "running",
    {
        "MainPID": 42,
        "MemoryCurrent": 6 << 20,
        "CPUUsageNSec": listing.UNSET,
        "ActiveEnterTimestamp": 5_000_000,
        "FreezerState": "running",
        "Slice": "sdshim-default.slice",
    },
)
EXIT = ExitStatus(137, 7, "signal")


def entry(phase: Phase = Phase.RUNNING, exit: ExitStatus | None = None) -> Entry:
    known = Record(IDENTITY, Life(phase, 42, exit))
    return Entry(KEY, "", IDENTITY.token, "/run/sdshim/t/default/c1/0", known)


def exec_entry(phase: Phase) -> Entry:
    me = replace(IDENTITY, exec_id="e1", unit="sdshim-default-c1:e1.service")
    return replace(entry(), exec_id="e1", record=Record(me, Life(phase, 50)))


def test_a_running_container_has_all_that_systemd_tells() -> None:
    row = listing.row(entry(), UNIT)
    assert (row.state, row.pid, row.memory, row.cpu_ns) == ("running", 42, 6 << 20, None)
    assert row.since_ns == 5_000_000_000
    assert row.exit is None


def test_an_exit_record_counts_for_more_than_a_phase_of_a_dead_daemon() -> None:
    row = listing.row(replace(entry(), exit=EXIT), None)
    assert (row.state, row.exit, row.since_ns) == ("exited", EXIT, 7)


def test_the_reason_of_an_exit_comes_from_the_hook_when_the_record_has_none() -> None:
    found = replace(entry(Phase.EXITED, ExitStatus(137, 7)), exit=replace(EXIT, reason="oom-kill"))
    row = listing.row(found, None)
    assert row.exit == ExitStatus(137, 7, "oom-kill")
    assert row.oom


def test_a_frozen_unit_is_paused_whoever_froze_it() -> None:
    frozen = replace(UNIT, properties={**UNIT.properties, "FreezerState": "frozen"})
    assert listing.row(entry(), frozen).state == "paused"


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.STARTING, Phase.RUNNING, Phase.PAUSED])
def test_a_container_without_unit_and_exit_record_is_lost(phase: Phase) -> None:
    assert listing.row(entry(phase), None).state == "lost"
    assert listing.row(entry(phase), replace(UNIT, active="failed")).state == "lost"


def test_what_has_no_unit_yet_is_not_lost() -> None:
    assert listing.row(entry(Phase.CREATING), None).state == "creating"
    assert listing.row(exec_entry(Phase.CREATED), None).state == "created"
    assert listing.row(exec_entry(Phase.RUNNING), None).state == "lost"


def test_a_container_to_be_restored_has_its_unit_only_from_its_start_on() -> None:
    restored = replace(IDENTITY, checkpoint="/images")
    for phase in (Phase.CREATED, Phase.RESTORING):
        found = replace(entry(), record=Record(restored, Life(phase)))
        assert listing.row(found, None).state == str(phase)


def test_an_exec_has_no_memory_of_its_own() -> None:
    row = listing.row(exec_entry(Phase.RUNNING), UNIT)
    assert (row.pid, row.memory, row.cpu_ns) == (50, None, None)


def test_units_without_state_and_state_that_cannot_be_read_are_listed_as_such() -> None:
    broken = replace(entry(), record=None, error="not JSON")
    other = replace(UNIT, name="sdshim-my:ns-x:e.service")
    slice_ = replace(UNIT, name="sdshim-default.slice")
    rows = [row for row, _ in listing.join([broken], [other, slice_])]
    assert [(row.name, row.state) for row in rows] == [
        ("default/c1", "broken"),
        ("my-ns/x:e", "stray"),
    ]


def test_loggers_are_no_rows_of_their_own() -> None:
    units = [replace(UNIT, name=f"sdshim-my:ns-x:{exec_id}:log.service") for exec_id in ("", "e")]
    assert listing.join([], units) == []


def test_deleted_tasks_that_wait_for_their_last_event_are_not_listed() -> None:
    assert listing.join([entry(Phase.DELETED)], []) == []


def _row(namespace: str, id_: str, exec_id: str = "") -> Row:
    key = TaskKey(namespace, id_)
    me = replace(entry(), key=key, exec_id=exec_id)
    return listing.row(me, None)


ROWS = [_row("default", "web"), _row("k8s.io", "web"), _row("k8s.io", "web", "e1")]
ROWS += [_row("default", "a1b2c3"), _row("default", "a1"), _row("k8s.io", "a1b2d4")]


@pytest.mark.parametrize(
    ("word", "namespace", "name"),
    [
        ("sdshim-k8s.io-web.service", "", "k8s.io/web"),
        ("sdshim-k8s.io-web:e1", "", "k8s.io/web:e1"),
        ("default/web", "", "default/web"),
        ("web", "k8s.io", "k8s.io/web"),
        ("web:e1", "", "k8s.io/web:e1"),
        ("a1", "", "default/a1"),
        ("a1b2c", "", "default/a1b2c3"),
        ("a1b", "k8s.io", "k8s.io/a1b2d4"),
    ],
)
def test_a_name_finds_its_row(word: str, namespace: str, name: str) -> None:
    assert listing.find(ROWS, word, namespace).name == name


def test_an_ambiguous_name_is_an_error_with_the_candidates() -> None:
    with pytest.raises(InvalidArgument, match=r"'web' is ambiguous: default/web, k8s.io/web"):
        listing.find(ROWS, "web")
    with pytest.raises(InvalidArgument, match=r"default/a1b2c3, k8s.io/a1b2d4"):
        listing.find(ROWS, "a1b")


def test_an_unknown_name_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(NotFound, match=r"'nope' in namespace x .*sdshim ps"):
        listing.find(ROWS, "nope", "x")
    with pytest.raises(NotFound):
        listing.find(ROWS, "")


def test_the_state_folders_are_read_and_left_as_they_are(tmp_path: Path) -> None:
    task = tmp_path / "default" / "c1" / "tok"
    child = task / "x" / "e1" / "tok2"
    half = tmp_path / "default" / "c2" / "tok3"
    for folder in (child, half):
        folder.mkdir(parents=True)
    (task / "task.json").write_bytes(record.encode(entry().record or Record(IDENTITY)))
    (task / "exit").write_text("id 42 oom-kill killed KILL\n")
    (task / "oom").write_text("oom_kill 2\n")
    (child / "task.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    found = inventory.entries(tmp_path)
    assert [one.name for one in found] == ["default/c1", "default/c2", "default/c1:e1"]
    assert found[0].exit is not None
    assert (found[0].exit.status, found[0].oom_kills) == (137, 2)
    assert found[1].record is None
    assert found[1].error == ""
    assert "cannot be read" in found[2].error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert inventory.entries(tmp_path / "none") == []
    assert inventory.acknowledged(tmp_path / "none") == {}


def test_the_last_event_that_each_containerd_took(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"address": "/c.sock", "acked": 7, "sending": 8}')
    (tmp_path / "b.json").write_text("torn")
    assert inventory.acknowledged(tmp_path) == {"/c.sock": 7}
