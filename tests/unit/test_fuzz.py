"""The fuzz targets, for seconds and from a fixed seed; what longer runs have found, again.

The long form is `make fuzz`; docs/security.md has its results.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import ShimError
from tests.fuzz.__main__ import NAMES
from tests.fuzz.engine import FOUND, cases, changed, run_seeded, try_shapes
from tests.fuzz.kit import Fault, HurriedLoop, Target, bounded, no_surprise
from tests.fuzz.world import world

if TYPE_CHECKING:
    from collections.abc import Iterator

EXECUTIONS = {"frames": 60, "requests": 40, "options": 100, "spec": 60, "state": 50, "bus": 50}
"""Of seeds changed at random, and as many shapes."""


@pytest.fixture(autouse=True, scope="module")
def _closed() -> Iterator[None]:
    yield
    for name in ("frames", "requests", "bus"):  # the others share the world of requests
        _target(name).close()


def _target(name: str) -> Target:
    found: Target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_was_found_once_is_not_found_again(name: str) -> None:
    target = _target(name)
    for path in cases(target):
        bounded(target, path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_bytes_changed_at_random_cost_no_surprise(name: str) -> None:
    target = _target(name)
    for data in run_seeded(target, EXECUTIONS[name]):
        bounded(target, data)


@pytest.mark.parametrize("name", NAMES)
def test_nearly_right_input_costs_no_surprise(name: str) -> None:
    target = _target(name)
    try_shapes(target, EXECUTIONS[name], lambda data: bounded(target, data))


def test_a_message_of_many_small_fields_is_read_in_one_pass() -> None:
    bounded(_target("frames"), b"\0" + b"\x2a\x05\x0a\x01k\x12\x00" * 150_000)


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_is_the_same_each_time(name: str) -> None:
    target = _target(name)
    assert list(run_seeded(target, 20)) == list(run_seeded(target, 20))
    runs: tuple[list[bytes], list[bytes]] = ([], [])
    for run in runs:
        try_shapes(target, 5, run.append)
    assert runs[0] == runs[1]


def test_every_folder_of_found_cases_has_its_target() -> None:
    assert {path.name for path in FOUND.iterdir() if path.is_dir()} <= set(NAMES)


# That the oracle sees what it is there for:


def test_an_input_that_eats_memory_is_a_fault() -> None:
    del (bytearray(b"x") * (500 << 20))[:]  # whatever the process has had before
    held: list[bytearray] = []
    eater = Target("x", lambda _data: held.append(bytearray(b"x") * (400 << 20)), lambda: None, ())  # type: ignore[arg-type, return-value]
    with pytest.raises(Fault, match="MiB of memory"):
        bounded(eater, b"")


def test_an_exception_that_is_only_logged_is_a_fault() -> None:
    import logging

    log = logging.getLogger("sdshim.anything")
    with pytest.raises(Fault, match="KeyError"), no_surprise():
        try:
            raise KeyError("x")
        except KeyError:
            log.exception("went wrong")
    with no_surprise():
        try:
            raise ShimError("refused")
        except ShimError:
            log.exception("as documented")


def test_a_wait_without_end_is_a_fault() -> None:
    import asyncio

    with (
        contextlib.closing(HurriedLoop()) as loop,
        pytest.raises(Fault, match="no end within 60 s"),
    ):
        loop.do(asyncio.Event().wait(), 60.0)


def test_a_write_out_of_the_folder_is_refused_and_a_fault(tmp_path: Path) -> None:
    place = world()
    place.reset()
    elsewhere = Path("/var/tmp/sdshim-fuzz-escape")
    for attempt in (
        lambda: elsewhere.write_text("x"),
        lambda: elsewhere.mkdir(),
        lambda: (place.root / "run" / ".." / ".." / "escape").touch(),
        lambda: os.kill(os.getpid(), 0),
    ):
        with (
            pytest.raises(Fault, match="out of its folder"),
            place.watched(b""),
            pytest.raises(PermissionError),
        ):
            attempt()
        assert not elsewhere.exists()
    with place.watched(b"named: /var/tmp/sdshim-fuzz-escape"):
        with pytest.raises(PermissionError):
            elsewhere.write_text("x")
        (place.root / "inside").write_text("x")


def test_changes_keep_within_bounds() -> None:
    import random

    chance = random.Random(0)
    assert all(len(changed(b"abc", chance)) < 120 for _ in range(200))
