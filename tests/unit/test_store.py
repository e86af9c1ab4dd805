"""State folders: what a cut between two steps leaves is gone with the next start."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sdshim.core.record import Record
from sdshim.host.store import Broken, Store
from tests.unit.test_record import IDENTITY

if TYPE_CHECKING:
    from pathlib import Path

EXEC = replace(
    IDENTITY,
    exec_id="e1",
    token="1" * 32,
    task_token=IDENTITY.token,
    unit="sdshim-default-c1:e1.service",
)


def test_records_come_back_tasks_before_their_execs(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    for me in (EXEC, IDENTITY):
        store.make(me)
        store.write(Record(me))
    assert list(store.load()) == [Record(IDENTITY), Record(EXEC)]


def test_a_removal_leaves_no_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    for me in (IDENTITY, EXEC):
        store.make(me)
        store.write(Record(me))
    store.remove(EXEC)
    store.remove(IDENTITY)
    assert not list(store.root.iterdir())


def test_what_a_cut_removal_or_creation_left_is_gone_with_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    store.make(EXEC).rmdir()  # only parents are left
    store.make(replace(IDENTITY, id="halfway"))  # no record yet
    assert not list(store.load())
    assert not list(store.root.iterdir())


def test_a_broken_record_is_told_and_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    folder = store.make(IDENTITY)
    (folder / "task.json").write_text("{")
    (found,) = store.load()
    assert isinstance(found, Broken)
    assert found.folder == folder
    assert folder.exists()


def test_making_a_folder_twice_is_making_it_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    assert store.make(IDENTITY) == store.make(IDENTITY)


def test_a_record_in_another_tasks_folder_is_broken_and_costs_that_task_nothing(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "t")
    other = replace(IDENTITY, id="c2", unit="sdshim-default-c2.service", token="2" * 32)
    for me in (IDENTITY, other):
        store.make(me)
        store.write(Record(me))
    folder = store.folder(other)
    (folder / "task.json").write_bytes((store.folder(IDENTITY) / "task.json").read_bytes())
    found = list(store.load())
    assert Record(IDENTITY) in found
    assert [entry.folder for entry in found if isinstance(entry, Broken)] == [folder]


def test_every_folder_of_a_task_is_for_root_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    store.make(EXEC)
    assert {path.stat().st_mode & 0o777 for path in store.root.rglob("*")} == {0o700}
