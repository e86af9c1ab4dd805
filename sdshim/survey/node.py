"""The processes of this node: state folders and units, joined."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdshim.core import listing, names
from sdshim.core.errors import PermissionDenied, ShimError
from sdshim.core.listing import UnitFacts
from sdshim.host import inventory
from sdshim.systemd.bus import Bus
from sdshim.systemd.questions import Questions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from sdshim.core.config import Config
    from sdshim.core.listing import Entry, Row

Kind = Literal["Unit", "Service"]

FOR_A_ROW: tuple[tuple[Kind, str], ...] = (
    ("Unit", "ActiveEnterTimestamp"),
    ("Unit", "StateChangeTimestamp"),
    ("Unit", "FreezerState"),
    ("Service", "Slice"),
    ("Service", "MainPID"),
    ("Service", "MemoryCurrent"),
    ("Service", "CPUUsageNSec"),
)


@asynccontextmanager
async def systemd() -> AsyncIterator[Questions]:
    """A connection to the bus for questions. Raises NotDelivered when there is no bus."""
    bus = Bus()
    await bus.connect()
    try:
        yield Questions(bus)
    finally:
        await bus.close()


async def rows(config: Config) -> list[tuple[Row, Entry | None]]:
    """Every container and exec, with its state folder; and units of ours without one.

    Raises NotDelivered when systemd cannot be asked, PermissionDenied when the state cannot be
    read. Units are read first: a container that is being made has its folder before its unit.
    """
    async with systemd() as questions:
        found = await units(questions, FOR_A_ROW)
    return listing.join(entries(config), found)


def entries(config: Config) -> list[Entry]:
    """The state folders. Raises PermissionDenied."""
    try:
        return inventory.entries(Path(config.run_dir) / "t")
    except PermissionError as error:
        raise PermissionDenied(f"cannot read {config.run_dir}", hint="run it as root") from error


async def units(
    questions: Questions, properties: Iterable[tuple[Kind, str]] = ()
) -> list[UnitFacts]:
    """The loaded services of ours, with some of their properties."""
    listed = await questions.list_units(f"{names.PREFIX}*{names.SUFFIX}")
    loaded = [u for u in listed if u.load_state != "not-found" and listing.process_of(u.name)]
    wanted = tuple(properties)
    told = await asyncio.gather(*(ask(questions, u.name, wanted) for u in loaded))
    return [
        UnitFacts(u.name, u.description, u.active_state, u.sub_state, properties)
        for u, properties in zip(loaded, told, strict=True)
    ]


async def helpers(questions: Questions) -> list[UnitFacts]:
    """The loaded units of ours that serve a task."""
    listed = await questions.list_units(f"{names.PREFIX}*:*")
    return [
        UnitFacts(u.name, u.description, u.active_state, u.sub_state)
        for u in listed
        if u.load_state != "not-found" and names.helper_of(u.name)
    ]


async def ask(
    questions: Questions, unit: str, properties: Iterable[tuple[Kind, str]]
) -> dict[str, object]:
    """Some properties of a unit; what this systemd does not know is left out."""
    wanted = tuple(properties)
    values = await asyncio.gather(
        *(questions.get_unit_property(unit, kind, name) for kind, name in wanted),
        return_exceptions=True,
    )
    found = {}
    for (_, name), value in zip(wanted, values, strict=True):
        if isinstance(value, BaseException):
            if not isinstance(value, ShimError):
                raise value
            continue
        found[name] = value
    return found
