"""References on units: what keeps an ended unit in systemd's memory until it has told how it ended.

Owns: the units that we hold, and those that we may hold more than once. systemd counts references
per connection. It drops them with the bus, and then looks no more whether a unit can be collected:
not for a reference that goes that way, and not for one that was given up on it a moment before.
So a unit that is to go, and does not, is referenced and let go of once more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sdshim.systemd.errors import SYSTEMD, BusError, NoSuchUnit, NotDelivered, Uncertain
from sdshim.systemd.questions import Questions

if TYPE_CHECKING:
    from sdshim.systemd.bus import Bus

log = logging.getLogger(__name__)


class References(Questions):
    """The references of one `Bus`."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self._refs: set[str] = set()
        self._doubtful_refs: set[str] = set()

    @property
    def losses(self) -> int:
        """How often all references were dropped, with the bus. A unit that is held again since then
        may be another one of that name."""
        return self._bus.losses

    async def disown(self, unit: str) -> None:
        """Let go of a unit if we hold it: it is not the one that was meant."""
        if unit in self._refs:
            await self.unref(unit)

    async def ref(self, unit: str) -> None:
        """Hold the unit in systemd's memory until `unref` or the end of our connection; once
        however often it is asked for. `NoSuchUnit` when it is not there."""
        if unit in self._refs:
            return
        await self._add_ref(unit)
        self._refs.add(unit)

    async def _add_ref(self, unit: str) -> None:
        try:
            await self._call("RefUnit", "s", unit, again=False)
        except Uncertain:
            self._doubtful_refs.add(unit)  # systemd counts: there may be two of ours now
            await self._call("RefUnit", "s", unit)

    async def unref(self, unit: str) -> None:
        """Let go of the unit; fine when it is gone or was not held."""
        self._refs.discard(unit)
        try:
            while not await self._let_go(unit):
                self._doubtful_refs.add(unit)
                await self._call("RefUnit", "s", unit)
        except NoSuchUnit:
            log.debug("%s was gone before its unref", unit)
        self._doubtful_refs.discard(unit)

    async def _let_go(self, unit: str) -> bool:
        """Give up a reference, or all where their number is not sure; False when none was held."""
        held = False
        try:
            while not held or unit in self._doubtful_refs:
                await self._call("UnrefUnit", "s", unit)
                held = True
        except BusError as error:
            if error.name != f"{SYSTEMD}.NotReferenced":
                raise
        return held

    async def look_again(self, unit: str) -> bool:
        """Make systemd look whether a unit that we do not hold can be collected; True when it has
        been."""
        self._doubtful_refs.add(unit)
        try:
            await self._call("RefUnit", "s", unit)
        except NoSuchUnit:
            self._doubtful_refs.discard(unit)
            return True
        except (Uncertain, NotDelivered):
            raise
        except BusError as error:  # bad-setting: it cannot be held
            log.warning("%s: %s", unit, error)
            return False
        await self.unref(unit)
        return False

    async def _ref_again(self, unit: str) -> None:
        try:
            await self._add_ref(unit)
            if unit not in self._refs:  # let go of meanwhile, perhaps on an earlier connection
                await self.unref(unit)
        except NoSuchUnit:
            self._refs.discard(unit)
        except (Uncertain, NotDelivered):
            raise
        except BusError as error:  # bad-setting: it lives, but cannot be held
            log.warning("not held any more: %s", error)
