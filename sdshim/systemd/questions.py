"""Questions to systemd: typed reads that change nothing, and the one way a call goes out.

Holds nothing but the bus. Properties are read one by one: unmarshalling GetAll of a service costs
ten times as much. `_call` is where patience lives: see `manager` for what is sent again and why.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdshim.core.errors import Internal
from sdshim.core.names import unit_path
from sdshim.systemd.errors import DBUS, SYSTEMD, BusError, NoSuchUnit, NotDelivered, Uncertain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.systemd.bus import Bus

log = logging.getLogger(__name__)

PATH = "/org/freedesktop/systemd1"
MANAGER = f"{SYSTEMD}.Manager"
PROPERTIES = f"{DBUS}.Properties"
PATIENCE = 20.0
PAUSE_FIRST = 0.02
PAUSE_MAX = 0.2

NOT_FOUND = "not-found"
"""The one LoadState of a unit that is not there: every other has its true exit facts."""

Interface = Literal["Unit", "Service"]


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """One line of `systemctl list-units`."""

    name: str
    description: str
    load_state: str
    active_state: str
    sub_state: str
    job_id: int


@dataclass(frozen=True, slots=True)
class MainExit:
    """How a main process ended: `code` 1 exited, 2 killed, 3 dumped; `time_us` since the epoch."""

    code: int
    status: int
    pid: int
    time_us: int


@dataclass(frozen=True, slots=True)
class ExitFacts:
    """What systemd knows of a loaded unit's main process and end; code 0: it has not ended."""

    code: int
    status: int
    pid: int
    time_us: int
    result: str
    invocation_id: str
    active_state: str


class Questions:
    """Everything that can be read of systemd and its units."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list_units(self, pattern: str) -> list[UnitInfo]:
        """Loaded units whose name matches the shell pattern."""
        reply = await self._call("ListUnitsByPatterns", "asas", [], [pattern])
        found = []
        for row in items(reply[0]):
            name, text, load, active, sub, _follows, _path, job, _kind, _job_path = items(row)
            words = (str(name), str(text), str(load), str(active), str(sub))
            found.append(UnitInfo(*words, integer(job)))
        return found

    async def version(self) -> int:
        """systemd's major version."""
        reply = await self._get(PATH, MANAGER, "Version")
        number = re.search(r"\d+", str(reply))
        if number is None:
            raise Internal(f"systemd calls its version {reply!r}")
        return int(number[0])

    async def get_unit_property(self, unit: str, interface: Interface, name: str) -> object:
        """One property. A unit that is not loaded answers with defaults: look at LoadState."""
        return await self._get(unit_path(unit), f"{SYSTEMD}.{interface}", name)

    async def load_state(self, unit: str) -> str:
        """``loaded``, ``not-found``, ``masked`` … or ``bad-setting``: a reload could not read its
        file or a drop-in again, what ran goes on."""
        return str(await self.get_unit_property(unit, "Unit", "LoadState"))

    async def main_pid(self, unit: str) -> int:
        """The main process, 0 while there is none (any more)."""
        return integer(await self.get_unit_property(unit, "Service", "MainPID"))

    async def environment(self, unit: str) -> list[str]:
        """The unit's own ``Environment=`` entries."""
        return [str(e) for e in items(await self.get_unit_property(unit, "Service", "Environment"))]

    async def control_group(self, unit: str) -> str:
        """Path of the unit's cgroup from the hierarchy's root, empty while it has none."""
        return str(await self.get_unit_property(unit, "Service", "ControlGroup"))

    async def main_exit(self, unit: str) -> MainExit | None:
        """How the main process ended, None while systemd does not know (or the unit is gone).

        Four properties, asked for at once and answered in this order. The code comes first: what
        is asked for after it belongs to the same end. (A traced process has ended for a pidfd
        before it has for its parent, systemd, which may learn of it between two answers.) The time
        comes last: it proves that the unit was there for all.
        """
        names = ("ExecMainCode", "ExecMainStatus", "ExecMainPID", "ExecMainExitTimestamp")
        got = (self.get_unit_property(unit, "Service", name) for name in names)
        code, status, pid, time = map(integer, await asyncio.gather(*got))
        return MainExit(code, status, pid, time) if code and time else None

    async def main_exit_time(self, unit: str) -> int:
        """When the main process ended (µs since 1970); 0 while systemd does not know."""
        return integer(await self.get_unit_property(unit, "Service", "ExecMainExitTimestamp"))

    async def exit_facts(self, unit: str) -> ExitFacts | None:
        """All that is known of the unit's end; None when systemd does not have it (any more).

        LoadState is asked for last: systemd answers in order, so a unit that is there then was
        there for every answer before.
        """
        service = ("ExecMainCode", "ExecMainStatus", "ExecMainPID", "ExecMainExitTimestamp")
        answers = await asyncio.gather(
            *(self.get_unit_property(unit, "Service", name) for name in service),
            self.get_unit_property(unit, "Service", "Result"),
            self.get_unit_property(unit, "Unit", "InvocationID"),
            self.get_unit_property(unit, "Unit", "ActiveState"),
            self.get_unit_property(unit, "Unit", "LoadState"),
        )
        code, status, pid, time = map(integer, answers[:4])
        result, invocation, active, load_state = answers[4:]
        if load_state == NOT_FOUND:
            return None
        identity = invocation.hex() if isinstance(invocation, bytes) else ""
        return ExitFacts(code, status, pid, time, str(result), identity, str(active))

    async def is_stopping(self, unit: str) -> bool:
        """Whether the unit is going down, has gone down, or a job that stops it is queued."""
        # In this order: a job that has begun meanwhile is still there.
        state = await self.get_unit_property(unit, "Unit", "ActiveState")
        if state in ("deactivating", "inactive", "failed"):
            return True
        number, path = items(await self.get_unit_property(unit, "Unit", "Job"))
        if not number:
            return False
        try:
            kind = await self._get(str(path), f"{SYSTEMD}.Job", "JobType")
        except BusError:  # it was none that takes time
            return False
        return kind in ("stop", "restart", "try-restart")

    async def is_gone(self, unit: str) -> bool:
        """Whether systemd has no unit of this name in memory."""
        try:
            await self._call("GetUnit", "s", unit)  # unlike Get, this loads nothing
        except NoSuchUnit:
            return True
        return False

    # --- calls

    async def _get(self, path: str, interface: str, name: str) -> object:
        reply = await self._call("Get", "ss", interface, name, path=path, interface=PROPERTIES)
        return reply[0]

    async def _call(
        self,
        member: str,
        signature: str = "",
        *body: object,
        path: str = PATH,
        interface: str = MANAGER,
        fds: Sequence[int] = (),
        again: bool = True,
    ) -> list[object]:
        """Call systemd; sent again while it is not delivered, and, with `again`, after a lost
        answer (not after a timeout: PID 1 has it and is slow)."""
        loop = asyncio.get_running_loop()
        patience, pause = loop.time() + PATIENCE, PAUSE_FIRST
        while True:
            try:
                call = self._bus.call
                answer = await call(SYSTEMD, path, interface, member, signature, body, fds=fds)
                self._bus.crash(f"{member}.answered")
                return answer
            except (NotDelivered, Uncertain) as error:
                lost = isinstance(error, Uncertain)
                if lost and (not again or error.name == f"{DBUS}.Error.Timeout"):
                    raise
                if loop.time() > patience:
                    raise
                log.debug("%s, sent again in %.0f ms", error, pause * 1000)
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX)


def items(value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise Internal(f"systemd answered {value!r} where a list was expected")
    return value


def integer(value: object) -> int:
    if not isinstance(value, int):
        raise Internal(f"systemd answered {value!r} where a number was expected")
    return value
