"""References on units: held once, taken again on a new connection, let go of for good."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.systemd import errors
from tests.unit.test_systemd_fake import SYSTEMD, FakeBus, FakeError, Silence
from tests.unit.test_systemd_manager import JOB, PROPERTIES, UNIT, fails, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sdshim.systemd.manager import Manager


async def until(condition: Callable[[], bool]) -> None:
    """Nothing tells when."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_what_was_let_go_of_between_two_outages_is_not_held_by_the_second(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        await manager.ref(UNIT)

        def taken(unit: str) -> Any:
            fake.held[unit] += 1
            raise Silence

        fake.answers["RefUnit"] = taken
        fake.cut()
        await until(lambda: fake.members().count("RefUnit") == 2)
        await manager.unref(UNIT)
        del fake.answers["RefUnit"]
        fake.calls.clear()
        fake.cut()  # the reference is asked for once more, nobody knows whether it was taken
        await until(lambda: "UnrefUnit" in fake.members())
        assert fake.members().index("RefUnit") < fake.members().index("UnrefUnit")

    run(tmp_path, body)


def test_references_are_counted_once_and_made_again(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        for _ in range(2):
            await manager.ref(UNIT)
        fake.answers["StartTransientUnit"] = lambda *_: ("o", [f"{JOB}5"])
        await manager.start_transient("b.service", PROPERTIES)
        await manager.ref("b.service")
        assert [c for c in fake.calls if c[0] == "RefUnit"] == [("RefUnit", [UNIT])]

        def gone(unit: str) -> Any:
            if unit == "b.service":
                raise FakeError(f"{SYSTEMD}.NoSuchUnit", "gone")
            return fake._do_RefUnit(unit)

        fake.answers["RefUnit"] = gone
        fake.answers["GetJob"] = fails()
        fake.calls.clear()
        fake.cut()
        await manager._call("Nop")
        while fake.members().count("RefUnit") < 2 or manager._refs != {UNIT}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert fake.members().index("Subscribe") < fake.members().index("RefUnit")
        # what was taken again may have been taken on this connection before
        await manager.unref(UNIT)
        assert fake.members().count("UnrefUnit") == 2
        fake.answers["UnrefUnit"] = fails(f"{SYSTEMD}.NoSuchUnit")
        await manager.unref(UNIT)
        fake.answers["RefUnit"] = fails(f"{SYSTEMD}.NoSuchUnit")
        with pytest.raises(errors.NoSuchUnit):
            await manager.ref("c.service")
        assert manager._refs == set()

    run(tmp_path, body)
