"""The count of OOM kills, and when it is looked at: cgroups as folders with recorded files."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import ResourceExhausted
from sdshim.core.exitrecord import blamed
from sdshim.core.lifecycle import Life, Phase, Seen, step
from sdshim.core.model import ExitStatus, Identity
from sdshim.daemon import oom as teller
from sdshim.host import oom
from sdshim.host.store import OOM, Store
from tests.unit.test_launcher_kit import LAUNCHER
from tests.unit.ttrpc_kit import aio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CGROUP = "/u.service/container"
ME = Identity("default", "box", "0" * 32, "/b", "u.service", "s.slice", CGROUP, True, "")

# As Linux 6.12 and 6.1 write them.
V2_TEXT = "low 0\nhigh 0\nmax 1432\noom 3\noom_kill {}\noom_group_kill 0\nsock_throttled 0\n"
V1_TEXT = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


class V1:
    """A hybrid v1 root with the container's cgroup, and the kernel's side of its eventfd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "memory" / CGROUP.lstrip("/")
        self.folder.mkdir(parents=True)
        self.control = self.folder / "cgroup.event_control"
        self.control.touch()
        self.count(0)

    def count(self, kills: int, below: str = "") -> None:
        folder = self.folder / below
        folder.mkdir(exist_ok=True)
        (folder / "memory.oom_control").write_text(V1_TEXT.format(kills))

    def wake(self) -> None:
        os.eventfd_write(int(self.control.read_text().split()[0]), 1)

    def remove(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()


@pytest.fixture
def v1(tmp_path: Path) -> V1:
    return V1(tmp_path)


@dataclass
class Looks:
    """Counts looks; answers what the count in the cgroup says."""

    cgroup: V1
    known: int = 0
    times: int = 0
    on_look: Callable[[int], None] = lambda _: None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self) -> bool | None:
        self.times += 1
        self.on_look(self.times)
        found = oom.kills(CGROUP, self.cgroup.root)
        grown = found is not None and found > self.known
        self.known = found or self.known
        self.changed.set()
        return None if found is None else grown

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


# --- the counters


def test_v2_counts_what_the_kernel_has_killed_not_how_often_memory_was_short(
    tmp_path: Path,
) -> None:
    (tmp_path / "cgroup.controllers").touch()
    folder = tmp_path / CGROUP.lstrip("/")
    folder.mkdir(parents=True)
    assert oom.kills(CGROUP, tmp_path) is None
    (folder / "memory.events").write_text(V2_TEXT.format(0))
    assert oom.kills(CGROUP, tmp_path) == 0
    (folder / "memory.events").write_text(V2_TEXT.format(12))
    assert oom.kills(CGROUP, tmp_path) == 12


def test_v1_counts_in_the_cgroups_below_too(v1: V1) -> None:
    v1.count(2)
    assert oom.kills(CGROUP, v1.root) == 2
    v1.count(3, below="inner")
    assert oom.kills(CGROUP, v1.root) == 5


def test_nothing_is_counted_in_a_cgroup_that_is_gone(v1: V1) -> None:
    v1.remove()
    assert oom.kills(CGROUP, v1.root) is None
    with pytest.raises(FileNotFoundError):
        oom.Watch(CGROUP, lambda: None, v1.root)


def test_files_without_the_counter_count_nothing() -> None:
    assert oom.kills_in("") == 0
    assert oom.kills_in("oom_kill_disable 1\nunder_oom 1\n") == 0


# --- the watch


@aio
async def test_the_kernel_is_given_an_eventfd_and_the_file_it_is_about(v1: V1) -> None:
    watch = oom.Watch(CGROUP, Looks(v1), v1.root)
    event, control = map(int, v1.control.read_text().split())
    assert event != control
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event)
    watch.close()
    watch.close()
    with pytest.raises(OSError):
        os.fstat(event)


@aio
async def test_a_wake_up_ahead_of_the_kill_is_looked_at_until_the_count_has_grown(v1: V1) -> None:
    looks = Looks(v1)
    looks.on_look = lambda times: v1.count(1) if times == 2 else None
    watch = oom.Watch(CGROUP, looks, v1.root)
    v1.wake()
    await looks.until(lambda: looks.known == 1)
    assert looks.times == 2
    v1.count(2)
    v1.wake()
    await looks.until(lambda: looks.known == 2)
    assert looks.times == 3
    watch.close()


@aio
async def test_a_wake_up_without_a_kill_costs_a_few_looks(
    v1: V1, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom, "LOOK_AGAIN_S", (0.0, 0.0))
    looks = Looks(v1)
    watch = oom.Watch(CGROUP, looks, v1.root)
    v1.wake()
    v1.wake()
    await looks.until(lambda: looks.times == 3)
    v1.wake()
    await looks.until(lambda: looks.times == 6)
    watch.close()


@aio
async def test_the_watch_ends_with_the_cgroup(v1: V1) -> None:
    looks = Looks(v1)
    watch = oom.Watch(CGROUP, looks, v1.root)
    event = os.dup(int(v1.control.read_text().split()[0]))
    v1.remove()
    os.eventfd_write(event, 1)  # the kernel does at the removal
    await looks.until(lambda: looks.times == 1)
    os.eventfd_write(event, 1)
    await asyncio.sleep(0)
    assert looks.times == 1
    watch.close()
    os.close(event)


@aio
async def test_a_watch_can_be_closed_by_whoever_is_told(v1: V1) -> None:
    looks = Looks(v1)
    watch = oom.Watch(CGROUP, looks, v1.root)
    looks.on_look = lambda _: watch.close()
    v1.wake()
    await looks.until(lambda: looks.times == 1)
    watch.close()


# --- what is told


class Box:
    """A task as the teller sees it: its record, its state folder, its cgroup."""

    def __init__(self, v1: V1) -> None:
        self.node: Any = SimpleNamespace(store=Store(v1.root / "t"), keeper=self)
        self.node.store.make(ME)
        self.identity = ME
        self.record: Any = SimpleNamespace(life=Life(Phase.RUNNING, 7))
        self.told: list[int] = []
        self.said: list[str] = []
        self.full = False
        self.task: Any = self
        self.pid = 7

    @property
    def phase(self) -> Phase:
        return Phase(self.record.life.phase)

    def see(self, seen: Seen, *, ooms: int) -> None:
        if self.full:
            raise ResourceExhausted("no room")
        self.record.life, effects = step(self.record.life, seen, ooms=ooms)
        if effects:
            self.told.append(ooms)

    def notify_for(self, pid: int, state: str) -> None:
        assert pid == 7
        self.said.append(state)


@pytest.fixture
def box(v1: V1, monkeypatch: pytest.MonkeyPatch) -> Box:
    counted = oom.kills
    monkeypatch.setattr("sdshim.host.oom.kills", lambda cgroup: counted(cgroup, v1.root))
    return Box(v1)


def _look(box: Box) -> bool | None:
    return teller.look(box.node, box.task)


def test_each_growth_is_told_once(v1: V1, box: Box) -> None:
    assert _look(box) is False
    v1.count(2)
    assert _look(box) is True
    assert _look(box) is False
    v1.count(3)
    assert _look(box) is True
    assert box.told == [2, 3]


def test_what_an_earlier_daemon_has_told_is_not_told_again(v1: V1, box: Box) -> None:
    v1.count(2)
    box.record.life = replace(box.record.life, ooms=2)
    assert _look(box) is False
    assert box.told == []


def test_a_count_that_went_with_an_inner_cgroup_does_not_hide_the_next_kill(
    v1: V1, box: Box
) -> None:
    v1.count(2, below="inner")
    assert _look(box) is True
    (v1.folder / "inner" / "memory.oom_control").unlink()
    assert _look(box) is False
    v1.count(1)
    assert _look(box) is True
    assert box.told == [2, 1]


def test_the_hooks_copy_is_looked_at_when_the_cgroup_is_gone(v1: V1, box: Box) -> None:
    v1.remove()
    assert _look(box) is None
    (box.node.store.folder(ME) / OOM).write_text(V1_TEXT.format(1))
    assert _look(box) is True
    assert _look(box) is None
    assert box.told == [1]


def test_a_full_disk_leaves_it_for_the_next_look(v1: V1, box: Box) -> None:
    v1.count(1)
    box.full = True
    assert _look(box) is False
    box.full = False
    assert _look(box) is True
    assert box.told == [1]


def test_after_the_exit_nothing_is_told(v1: V1, box: Box) -> None:
    box.record.life = Life(Phase.EXITED, 7, ExitStatus(0, 1))
    v1.count(1)
    assert _look(box) is None
    assert box.told == []


@pytest.mark.parametrize(
    ("status", "kills", "reason"),
    [(137, 1, "oom-kill"), (137, 0, "signal"), (1, 1, "signal"), (143, 2, "signal")],
)
def test_the_oom_killer_is_blamed_for_a_sigkill_only(status: int, kills: int, reason: str) -> None:
    assert blamed(ExitStatus(status, 1, "signal"), kills).reason == reason


def test_an_exec_is_not_blamed_on_kills_before_its_time(v1: V1, box: Box) -> None:
    v1.count(3)
    end = ExitStatus(137, 1, "signal")
    assert teller.judged(box.node, box.task, end, since=3).reason == "signal"
    v1.count(4)
    assert teller.judged(box.node, box.task, end, since=3).reason == "oom-kill"


def test_an_end_that_a_client_wished_is_not_the_oom_killers(v1: V1, box: Box) -> None:
    v1.count(2)
    _look(box)
    end = ExitStatus(137, 1, "signal")
    assert teller.judged(box.node, box.task, end).reason == "oom-kill"
    teller.excuse(box.node, box.task)
    assert teller.judged(box.node, box.task, end).reason == "signal"
    v1.count(3)  # the kernel was quicker than the client
    assert teller.judged(box.node, box.task, end).reason == "oom-kill"


def test_the_hook_has_the_words_of_the_daemon(v1: V1, box: Box) -> None:
    box.record.life = replace(box.record.life, ooms=3)
    teller.show(box.node, box.task)
    assert box.said == [f"STATUS={teller.status_text(3)}"]
    hook = (LAUNCHER / "exit-hook").read_text()
    assert teller.status_text(3).replace("3", "$kills") in hook
