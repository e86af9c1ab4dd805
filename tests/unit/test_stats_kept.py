"""Which counters Stats answers with: kept at the exit, still there, or what the exit hook left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import NotFound
from sdshim.core.model import Identity
from sdshim.daemon import stats
from sdshim.host.stats import Reader
from sdshim.host.store import OOM, Store
from sdshim.pb import metrics_v1_pb2, metrics_v2_pb2
from sdshim.pb import task_v2_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

ME = Identity("default", "box", "0" * 32, "/b", "u.service", "s.slice", "/u/container", True, "")


class Box:
    """A task with its state folder and its cgroup, as far as Stats sees them."""

    def __init__(self, folder: Path, flavour: str) -> None:
        root = folder / "cgroup"
        self.cgroup = root / ("" if flavour == "v2" else "memory") / "u" / "container"
        self.cgroup.mkdir(parents=True)
        self.oom = {"v2": "memory.events", "v1": "memory.oom_control"}[flavour]
        self.kind = {"v2": metrics_v2_pb2, "v1": metrics_v1_pb2}[flavour].Metrics
        if flavour == "v2":
            (root / "cgroup.controllers").touch()
        self.reader = Reader(root)
        self.node: Any = SimpleNamespace(store=Store(folder / "t"))
        self.task: Any = SimpleNamespace(identity=ME)
        self.state = self.node.store.make(ME)

    def count(self, kills: int) -> None:
        (self.cgroup / self.oom).write_text(f"oom_kill {kills}\n")
        (self.cgroup / "memory.stat").write_text("unevictable 4096\n")

    def remove(self) -> None:
        for file in self.cgroup.iterdir():
            file.unlink()
        self.cgroup.rmdir()

    def stats(self) -> Any:
        answer = pb.StatsResponse.FromString(stats.stats(self.node, self.task)).stats
        return self.kind.FromString(answer.value)

    def kills(self) -> int:
        message = self.stats()
        return int(getattr(message, self.oom.replace(".", "_")).oom_kill)


@pytest.fixture(params=["v1", "v2"])
def box(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    made = Box(tmp_path, request.param)
    monkeypatch.setattr("sdshim.host.stats.reader", lambda: made.reader)
    return made


def test_the_cgroup_is_read_while_it_is_there(box: Box) -> None:
    box.count(1)
    assert box.kills() == 1
    box.count(2)
    assert box.kills() == 2


def test_without_anything_there_is_no_cgroup(box: Box) -> None:
    box.remove()
    with pytest.raises(NotFound, match=r"^cgroup does not exist: not found$"):
        box.stats()


def test_what_was_kept_is_the_last_word(box: Box) -> None:
    box.count(1)
    stats.keep(box.node, box.task)
    box.count(2)
    assert box.kills() == 1
    box.remove()
    assert box.kills() == 1
    assert box.stats().memory.unevictable == 4096


def test_an_earlier_daemons_counters_stay(box: Box) -> None:
    box.count(1)
    stats.keep(box.node, box.task)
    (box.cgroup / "memory.stat").unlink()  # v1: some controllers' cgroups go before others
    stats.keep(box.node, box.task)
    assert box.stats().memory.unevictable == 4096


def test_the_exit_of_an_exec_is_not_the_containers(box: Box) -> None:
    box.count(1)
    box.task.identity = replace(ME, exec_id="x1", task_token="1" * 32)
    stats.keep(box.node, box.task)
    assert not list(box.state.rglob(stats.KEPT))


def test_nothing_is_kept_of_a_cgroup_that_is_gone(box: Box) -> None:
    box.remove()
    stats.keep(box.node, box.task)
    assert not (box.state / stats.KEPT).exists()


def test_a_full_disk_does_not_stop_an_exit(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.count(1)
    box.state.rmdir()
    box.state.touch()
    stats.keep(box.node, box.task)
    assert "no statistics of" in caplog.text


@pytest.mark.parametrize("garbage", ["", "{", "[1]", "7"])
def test_unreadable_counters_are_none(box: Box, garbage: str) -> None:
    box.count(3)
    (box.state / stats.KEPT).write_text(garbage)
    assert box.kills() == 3


def test_the_exit_hooks_count_stands_when_the_daemon_was_late(box: Box) -> None:
    box.remove()
    (box.state / OOM).write_text("low 0\noom_kill_disable 0\noom_kill 5\n")
    assert box.kills() == 5


def test_the_exit_hooks_count_fills_what_was_gone(box: Box) -> None:
    box.count(1)
    (box.cgroup / box.oom).unlink()
    stats.keep(box.node, box.task)
    (box.state / OOM).write_text("oom_kill 5\n")
    assert box.kills() == 5
    assert box.stats().memory.unevictable == 4096


def test_what_the_exit_hook_has_copied_stands_in_for_the_cgroup(box: Box) -> None:
    box.remove()
    lines = f"memory.stat:unevictable 4096\n{box.oom}:low 0\n{box.oom}:oom_kill 2\nother:1\nmemory"
    (box.state / stats.COPIED).write_text(lines)
    assert box.kills() == 2
    assert box.stats().memory.unevictable == 4096


def test_what_the_daemon_has_read_wins_over_the_hooks_copy(box: Box) -> None:
    (box.state / stats.COPIED).write_text(f"memory.stat:unevictable 1\n{box.oom}:oom_kill 2\n")
    (box.cgroup / "memory.stat").write_text("unevictable 4096\n")
    stats.keep(box.node, box.task)
    box.remove()
    assert box.stats().memory.unevictable == 4096
    assert box.kills() == 2
