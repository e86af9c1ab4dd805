"""systemd's Manager: what we ask it to do, and the futures its signals resolve.

Owns: the Manager's match rules (JobRemoved, UnitRemoved, Reloading, and the owner of systemd's bus
name), the jobs we queued, the waits for a unit's removal, and the set of units we hold a reference
on (a reference lives as long as our connection). What changes nothing is in `questions`.

Outages. A call that was not delivered is sent again for a while (PID 1 has no bus name during a
daemon-reexec and until it has found a restarted dbus-daemon). A call whose answer was lost is sent
again only when twice is the same as once; `kill` is not, and raises `Uncertain`. A start is looked
up by name, then decided. After each new owner of the name or each new connection one task
resynchronizes: Subscribe, references again (connection only), then every pending job and removal is
asked for, because its signal may have passed unheard.

systemd says UnitRemoved of every unit during a reload, so after Reloading(true) the word is checked
by a question (answered when the reload is over) instead of believed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdshim.core.errors import ShimError
from sdshim.core.names import unit_path
from sdshim.systemd import signals
from sdshim.systemd.errors import (
    DBUS,
    SYSTEMD,
    BusError,
    Destructive,
    NoSuchJob,
    NoSuchUnit,
    Uncertain,
    UnitExists,
)
from sdshim.systemd.questions import (
    MANAGER,
    NOT_FOUND,
    PATH,
    PAUSE_FIRST,
    PROPERTIES,
    ExitFacts,
    MainExit,
    UnitInfo,
    integer,
    items,
)
from sdshim.systemd.references import References
from sdshim.systemd.wire import Signal, descriptors, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.unitspec import Property
    from sdshim.systemd.bus import Bus

log = logging.getLogger(__name__)

RESYNC_PAUSE = 1.0
DESTRUCTIVE_TRIES = 7
REMOVED_S = 0.01
"""What passes between the answer to UnrefUnit and UnitRemoved, at most as a rule."""
LOST_TRIES = 4
"""daemon-reexec takes answers along, and may come several times in a row."""

__all__ = ["ExitFacts", "Job", "MainExit", "Manager", "UnitInfo"]

Whom = Literal["main", "control", "all"]
Mode = Literal["fail", "replace", "replace-irreversibly"]


@dataclass(frozen=True, slots=True)
class Job:
    """A queued job; `result` is systemd's word for its end.

    done, failed, canceled, timeout, dependency, assert, skipped, … or ``gone``: the end was not
    heard and the unit is not loaded any more (judge by its exit record).
    """

    id: int
    unit: str
    kind: Literal["start", "stop"]
    result: asyncio.Future[str]

    async def wait(self) -> str:
        """The result; a cancelled wait leaves the job's future alone."""
        return await asyncio.shield(self.result)


class Manager(References):
    """systemd, over one `Bus`. `start()` first, `close()` last; the bus is the caller's."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self._jobs: dict[int, Job] = {}
        self._queueing: dict[str, int] = {}
        self._early: dict[str, dict[int, str]] = {}
        self._removals: dict[str, set[asyncio.Future[None]]] = {}
        self._news: set[asyncio.Event] = set()
        self._reconnected = False
        self._resync_wanted = asyncio.Event()
        self._minder: asyncio.Task[None] | None = None
        self.reloading = False

    async def start(self) -> None:
        """Add the match rules and subscribe."""
        for member in ("JobRemoved", "UnitRemoved", "Reloading"):
            rule = f"type='signal',sender='{SYSTEMD}',path='{PATH}',interface='{MANAGER}'"
            await self._bus.add_match(f"{rule},member='{member}'", self._on_signal)
        await self._bus.add_match(
            f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',"
            f"arg0='{SYSTEMD}'",
            self._on_owner,
        )
        self._bus.on_reconnect(self._on_reconnect)
        await self._subscribe()
        self._minder = asyncio.create_task(self._mind(), name="systemd-resync")

    async def close(self) -> None:
        """End the resync task and cancel what still waits."""
        if self._minder is not None:
            self._minder.cancel()
            await asyncio.gather(self._minder, return_exceptions=True)
        for job in self._jobs.values():
            job.result.cancel()
        for waits in self._removals.values():
            for future in waits:
                future.cancel()

    # --- jobs

    async def start_transient(
        self, unit: str, properties: Sequence[Property], mode: Mode = "fail"
    ) -> Job:
        """Create and start a unit. `UnitExists` when the name is taken by something else.

        A lost answer is decided by a look at the unit: it is ours when its Environment has what
        was asked for (the Create's token is in it). A unit that ran and is gone again is started
        again: its Asserts on the exit record make that harmless.
        """
        body: list[object] = [unit, mode, typed(properties), []]
        fds = descriptors(properties)
        pinned = any(name == "AddRef" and value for name, _, value in properties)
        pause, destructive, lost = PAUSE_FIRST, 0, 0
        while True:
            try:
                job = await self._queue(
                    "start", unit, "StartTransientUnit", "ssa(sv)a(sa(sv))", body, fds=fds
                )
                break
            except Destructive:
                destructive += 1  # its slice is just being stopped: a matter of milliseconds
                if pinned:  # the unit was made before its job was refused, and holds its name
                    await self.unref(unit)
                if destructive == DESTRUCTIVE_TRIES:
                    raise
                await asyncio.sleep(pause)
                pause *= 2
            except (Uncertain, UnitExists) as error:
                if isinstance(error, UnitExists) and not lost:
                    raise
                lost += 1
                found = await self._look(unit, properties)
                if found is not None:
                    job = found
                    break
                if isinstance(error, UnitExists) or lost == LOST_TRIES:
                    raise
        if pinned:
            self._refs.add(unit)
            if lost:  # the reference may have gone with a connection, or stand
                self._doubtful_refs.add(unit)
                await self._ref_again(unit)
        return job

    async def stop(self, unit: str, mode: Mode = "replace") -> Job:
        """Queue a stop job; `NoSuchUnit` when it is not loaded.

        On a unit that is deactivating already the job ends when that ends.
        """
        return await self._queue("stop", unit, "StopUnit", "ss", [unit, mode], again=True)

    async def starting(self, unit: str) -> Job | None:
        """The start job of a unit that an earlier process started, ended or not; None when the unit
        is not loaded."""
        job = await self._look(unit, [])
        if job is not None and not job.result.done():
            await self._ask_for_job(job)  # it may have ended before we listened
        return job

    async def _queue(
        self,
        kind: Literal["start", "stop"],
        unit: str,
        member: str,
        signature: str,
        body: list[object],
        *,
        fds: Sequence[int] = (),
        again: bool = False,
    ) -> Job:
        # JobRemoved may arrive before the reply that tells the job's id: keep what is heard of
        # this unit meanwhile
        self._queueing[unit] = self._queueing.get(unit, 0) + 1
        try:
            reply = await self._call(member, signature, *body, fds=fds, again=again)
            return self._job(int(str(reply[0]).rpartition("/")[2]), unit, kind)
        finally:
            self._queueing[unit] -= 1
            if not self._queueing[unit]:
                del self._queueing[unit]
                self._early.pop(unit, None)

    def _job(self, number: int, unit: str, kind: Literal["start", "stop"]) -> Job:
        if (known := self._jobs.get(number)) is not None:  # two stops share a job
            return known
        job = Job(number, unit, kind, asyncio.get_running_loop().create_future())
        early = self._early.get(unit, {}).pop(number, None)
        if early is None:
            self._jobs[number] = job
        else:
            job.result.set_result(early)
        return job

    async def _look(self, unit: str, properties: Sequence[Property]) -> Job | None:
        """After a start whose answer was lost: its job if it happened, None if it did not."""
        if await self.load_state(unit) == NOT_FOUND:
            return None
        asked = [value for name, _, value in properties if name == "Environment"]
        # drop-ins may have added to it
        if asked and not set(map(str, items(asked[0]))) <= set(await self.environment(unit)):
            raise UnitExists(f"{SYSTEMD}.UnitExists", "the name is taken by another unit", unit)
        queued = items(await self.get_unit_property(unit, "Unit", "Job"))
        if number := integer(queued[0]):
            return self._job(number, unit, "start")
        job = Job(0, unit, "start", asyncio.get_running_loop().create_future())
        job.result.set_result(await self._outcome(job))
        return job

    async def _outcome(self, job: Job) -> str:
        """What became of a job that has left the queue unheard, read from its unit."""
        names = ("ActiveState", "ActiveEnterTimestamp", "AssertResult", "LoadState")
        got = (self.get_unit_property(job.unit, "Unit", name) for name in names)
        state, was_active, asserted, load_state = await asyncio.gather(*got)
        if job.kind == "stop":
            over = load_state == NOT_FOUND or state in ("inactive", "failed")
            return "done" if over else "canceled"
        if load_state == NOT_FOUND:
            return "gone"
        if was_active:  # fresh units begin with no such time
            return "done"
        if not asserted:
            return "assert"
        if state == "inactive":
            result = await self.get_unit_property(job.unit, "Service", "Result")
            return "done" if result == "success" else "failed"
        return "failed" if state == "failed" else "canceled"

    # --- units

    async def kill(self, unit: str, whom: Whom, signal: int) -> None:
        """Send a signal; `Uncertain` when the answer was lost (it may have been sent)."""
        await self._call("KillUnit", "ssi", unit, whom, signal, again=False)

    async def reset_failed(self, unit: str) -> None:
        """Forget a unit's failure, so that it can be collected; fine when it is gone."""
        try:
            await self._call("ResetFailedUnit", "s", unit)
        except NoSuchUnit:
            log.debug("%s was collected before its reset", unit)

    async def set_properties(
        self, unit: str, properties: Sequence[Property], runtime: bool = True
    ) -> None:
        """SetUnitProperties; runtime ones are gone at the next boot."""
        await self._call("SetUnitProperties", "sba(sv)", unit, runtime, typed(properties))

    async def freeze(self, unit: str) -> None:
        """Freeze the unit's cgroup; answered when it is frozen."""
        await self._call("FreezeUnit", "s", unit)

    async def thaw(self, unit: str) -> None:
        """Undo `freeze`; answered when it runs."""
        await self._call("ThawUnit", "s", unit)

    # --- stop

    async def when_stopping(self, unit: str) -> None:
        """Return when the unit is being stopped, whoever asked for it: at once when it is now. It
        costs a match rule of its own while it waits, and a signal for each job of the unit."""
        news = asyncio.Event()

        def heard(signal: Signal) -> None:
            match signals.decode(signal.member, signal.body):
                case signals.JobNew(_, queued) if queued == unit:
                    news.set()

        rule = f"type='signal',sender='{SYSTEMD}',path='{PATH}',interface='{MANAGER}'"
        rule += f",member='JobNew',arg2='{unit}'"
        await self._bus.add_match(rule, heard)
        self._news.add(news)
        try:
            while not await self.is_stopping(unit):
                await news.wait()
                news.clear()
        finally:
            self._news.discard(news)
            await self._bus.remove_match(rule, heard)

    # --- main process

    async def when_main(self, unit: str) -> int:
        """The unit's main process, as soon as it has one: at once when it has one now, never when
        none comes. It costs a match rule of its own while it waits, and some large signals."""
        news = asyncio.Event()

        def heard(_: Signal) -> None:
            news.set()

        rule = f"type='signal',sender='{SYSTEMD}',path='{unit_path(unit)}'"
        rule += f",interface='{PROPERTIES}',member='PropertiesChanged',arg0='{SYSTEMD}.Service'"
        await self._bus.add_match(rule, heard)
        self._news.add(news)
        try:
            while not (pid := await self.main_pid(unit)):
                await news.wait()
                news.clear()
            return pid
        finally:
            self._news.discard(news)
            await self._bus.remove_match(rule, heard)

    # --- removal

    def removal(self, unit: str) -> asyncio.Future[None]:
        """A future for the removal of a unit known to be loaded now: take it before `unref`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._removals.setdefault(unit, set()).add(future)
        future.add_done_callback(lambda done: self._forget_removal(unit, done))
        return future

    async def when_removed(self, unit: str) -> None:
        """Return when systemd has no such unit in memory: at once when it has none now."""
        future = self.removal(unit)
        try:
            if await self.is_gone(unit):
                return
            await self._look_again(unit)
            await future
        finally:
            future.cancel()

    async def collect(self, unit: str) -> None:
        """Forget the unit's failure, let go of it, and return when systemd has no such unit in
        memory. That is said by a signal, mostly at once; who has not heard it asks."""
        future = self.removal(unit)
        try:
            await asyncio.gather(self.reset_failed(unit), self.unref(unit))
            await asyncio.wait([future], timeout=REMOVED_S)
            if not future.done():
                await self.when_removed(unit)
        finally:
            future.cancel()

    def _forget_removal(self, unit: str, future: asyncio.Future[None]) -> None:
        waits = self._removals.get(unit, set())
        waits.discard(future)
        if not waits:
            self._removals.pop(unit, None)

    def _removed(self, unit: str) -> None:
        for future in list(self._removals.get(unit, ())):
            if not future.done():
                future.set_result(None)

    # --- signals and resynchronization

    def _on_signal(self, signal: Signal) -> None:
        match signals.decode(signal.member, signal.body):
            case signals.JobRemoved(number, unit, result):
                job = self._jobs.pop(number, None)
                if job is not None:
                    _resolve(job, result)
                elif unit in self._queueing:
                    self._early.setdefault(unit, {})[number] = result
            case signals.UnitRemoved(unit) if unit in self._removals:
                if self.reloading:
                    self._resync_wanted.set()
                else:
                    self._removed(unit)
            case signals.Reloading(active):
                self.reloading = active

    def _on_owner(self, signal: Signal) -> None:
        if signal.body[2]:  # PID 1 has its name (again)
            self._resync_wanted.set()

    async def _on_reconnect(self) -> None:
        self._reconnected, self.reloading = True, False
        self._resync_wanted.set()

    async def _mind(self) -> None:
        while True:
            await self._resync_wanted.wait()
            self._resync_wanted.clear()
            try:
                await self._resync()
            except ShimError as error:
                log.warning("systemd could not be asked for what was missed: %s", error)
                await asyncio.sleep(RESYNC_PAUSE)
                self._resync_wanted.set()

    async def _resync(self) -> None:
        await self._subscribe()
        if self._reconnected:
            self._reconnected = False
            # One that was made or taken again on this connection already is counted twice now.
            self._doubtful_refs = set(self._refs)
            await asyncio.gather(*(self._ref_again(unit) for unit in list(self._refs)))
        await asyncio.gather(*(self._ask_for_job(job) for job in list(self._jobs.values())))
        await asyncio.gather(*(self._ask_for_removal(unit) for unit in list(self._removals)))
        for news in self._news:
            news.set()

    async def _subscribe(self) -> None:
        try:
            await self._call("Subscribe")
        except BusError as error:
            if error.name != f"{SYSTEMD}.AlreadySubscribed":
                raise

    async def _ask_for_job(self, job: Job) -> None:
        try:
            await self._call("GetJob", "u", job.id)
        except NoSuchJob:
            result = await self._outcome(job)
            self._jobs.pop(job.id, None)
            _resolve(job, result)

    async def _ask_for_removal(self, unit: str) -> None:
        if await self.is_gone(unit):
            self._removed(unit)
        else:
            await self._look_again(unit)

    async def _look_again(self, unit: str) -> None:
        if unit not in self._refs and await self.look_again(unit):
            self._removed(unit)


def _resolve(job: Job, result: str) -> None:
    if not job.result.done():
        job.result.set_result(result)
