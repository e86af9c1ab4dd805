"""`Manager` against a systemd that answers late, twice, wrongly or not at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.errors import Internal
from sdshim.core.names import unit_path
from sdshim.systemd import errors, signals
from sdshim.systemd.manager import DESTRUCTIVE_TRIES, LOST_TRIES, Manager
from tests.unit.test_systemd_fake import SYSTEMD, FakeBus, FakeError, Silence, fake_bus, got

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

UNIT = "sdshim-default-a.service"
JOB = "/org/freedesktop/systemd1/job/"
PROPERTIES = [("Environment", "as", ["TOKEN=1"]), ("AddRef", "b", True)]


def run(folder: Path, body: Callable[[FakeBus, Manager], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fake_bus(folder) as (fake, bus):
            manager = Manager(bus)
            await manager.start()
            fake.calls.clear()
            try:
                await body(fake, manager)
            finally:
                await manager.close()

    asyncio.run(asyncio.wait_for(main(), 15), debug=True)


def job_removed(fake: FakeBus, number: int, result: str, unit: str = UNIT) -> None:
    fake.signal("JobRemoved", "uoss", number, f"{JOB}{number}", unit, result)


def unit_removed(fake: FakeBus, unit: str = UNIT) -> None:
    fake.signal("UnitRemoved", "so", unit, unit_path(unit))


def has_properties(fake: FakeBus, **values: tuple[str, object]) -> None:
    fake.answers["Get"] = lambda _, name: got(*values[name])


def fails(*names: str, then: tuple[str, list[Any]] = ("", [])) -> Callable[..., Any]:
    """Answer with these errors in turn (no name: with silence and a lost connection), then well."""
    left = list(names)

    def answer(*_: object) -> tuple[str, list[Any]]:
        if left:
            raise FakeError(left.pop(0), "text")
        return then

    return answer


NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
UNKNOWN = "org.freedesktop.DBus.Error.ServiceUnknown"


def test_signals_are_decoded() -> None:
    assert signals.decode("JobRemoved", [3, "/j", "u", "done"]) == signals.JobRemoved(
        3, "u", "done"
    )
    assert signals.decode("UnitRemoved", ["u", "/p"]) == signals.UnitRemoved("u")
    assert signals.decode("JobNew", [3, "/j", "u"]) == signals.JobNew(3, "u")
    assert signals.decode("UnitNew", ["u", "/p"]) == signals.UnitNew("u")
    assert signals.decode("Reloading", [True]) == signals.Reloading(True)
    assert signals.decode("StartupFinished", [1, 2]) is None
    for member, body in (("JobRemoved", [3, "/j", "u"]), ("Reloading", []), ("UnitNew", [1, 2])):
        with pytest.raises(Internal, match=member):
            signals.decode(member, body)


def test_the_signal_may_come_before_the_reply(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        def start(*_: object) -> Any:
            job_removed(fake, 5, "failed")
            job_removed(fake, 6, "done", "other.service")
            return "o", [f"{JOB}5"]

        fake.answers["StartTransientUnit"] = start
        job = await manager.start_transient(UNIT, PROPERTIES)
        assert (job.id, job.result.result()) == (5, "failed")
        assert manager._early == {} and manager._jobs == {}

    run(tmp_path, body)


def test_jobs_end_by_their_signal_and_stops_share_one(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["StopUnit"] = lambda *_: ("o", [f"{JOB}7"])
        first, second = await asyncio.gather(manager.stop(UNIT), manager.stop(UNIT))
        assert first is second
        waiting = asyncio.create_task(first.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        job_removed(fake, 8, "done")
        job_removed(fake, 7, "canceled")
        assert await second.wait() == "canceled"
        assert fake.calls[0] == ("StopUnit", [UNIT, "replace"])

    run(tmp_path, body)


def test_a_start_in_the_way_of_a_stop_is_tried_again(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        destructive = f"{SYSTEMD}.TransactionIsDestructive"
        well = ("o", [f"{JOB}5"])
        fake.answers["StartTransientUnit"] = fails(destructive, destructive, then=well)
        assert (await manager.start_transient(UNIT, [])).id == 5
        fake.answers["StartTransientUnit"] = fails(*[destructive] * DESTRUCTIVE_TRIES, then=well)
        with pytest.raises(errors.Destructive):
            await manager.start_transient(UNIT, [])
        fake.answers["StartTransientUnit"] = fails(f"{SYSTEMD}.UnitExists", then=well)
        with pytest.raises(errors.UnitExists):
            await manager.start_transient(UNIT, [])
        assert manager._refs == set()

    run(tmp_path, body)


def test_what_is_not_delivered_is_sent_again(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["KillUnit"] = fails(UNKNOWN, "org.freedesktop.DBus.Error.NameHasNoOwner")
        await manager.kill(UNIT, "main", 9)
        assert fake.members() == ["KillUnit"] * 3
        fake.answers["KillUnit"] = fails(NO_REPLY)
        with pytest.raises(errors.Uncertain):
            await manager.kill(UNIT, "main", 9)
        assert fake.members() == ["KillUnit"] * 4
        fake.answers["ResetFailedUnit"] = fails(NO_REPLY)
        await manager.reset_failed(UNIT)
        assert fake.members().count("ResetFailedUnit") == 2

    run(tmp_path, body)


def test_a_lost_start_that_happened_is_found(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["StartTransientUnit"] = fails(NO_REPLY)
        fake.answers["UnrefUnit"] = fails("", f"{SYSTEMD}.NotReferenced")
        environment = ("as", ["ADDED=by a drop-in", "TOKEN=1"])
        loaded = {"LoadState": ("s", "loaded"), "Environment": environment}
        has_properties(fake, **loaded, Job=("(uo)", [9, f"{JOB}9"]))
        job = await manager.start_transient(UNIT, PROPERTIES)
        assert job.id == 9 and not job.result.done()
        job_removed(fake, 9, "done")
        assert await job.wait() == "done"
        assert fake.members().count("StartTransientUnit") == 1
        # its reference may be there twice now
        assert fake.members().count("RefUnit") == 1 and manager._refs == {UNIT}
        fake.answers["UnrefUnit"] = fails()
        unref = asyncio.create_task(manager.unref(UNIT))
        await asyncio.sleep(0.05)
        fake.answers["UnrefUnit"] = fails(f"{SYSTEMD}.NotReferenced")
        await unref
        assert manager._doubtful_refs == set()

    run(tmp_path, body)


def test_a_lost_start_that_did_not_happen_is_done_again(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["StartTransientUnit"] = fails(NO_REPLY, then=("o", [f"{JOB}5"]))
        has_properties(fake, LoadState=("s", "not-found"))
        assert (await manager.start_transient(UNIT, [])).id == 5
        lost = [NO_REPLY] * LOST_TRIES
        fake.answers["StartTransientUnit"] = fails(*lost[1:], then=("o", [f"{JOB}6"]))
        assert (await manager.start_transient(UNIT, [])).id == 6
        fake.answers["StartTransientUnit"] = fails(*lost)
        with pytest.raises(errors.Uncertain):
            await manager.start_transient(UNIT, [])

    run(tmp_path, body)


def test_a_lost_start_finds_the_unit_of_another(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["StartTransientUnit"] = fails(NO_REPLY)
        has_properties(fake, LoadState=("s", "loaded"), Environment=("as", ["TOKEN=2"]))
        with pytest.raises(errors.UnitExists):
            await manager.start_transient(UNIT, PROPERTIES)

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("kind", "state", "was_active", "asserted", "load", "service", "result"),
    [
        ("start", "active", 1, True, "loaded", "success", "done"),
        ("start", "failed", 1, True, "loaded", "signal", "done"),
        ("start", "failed", 0, True, "loaded", "exit-code", "failed"),
        ("start", "inactive", 0, True, "loaded", "success", "done"),
        ("start", "inactive", 0, False, "loaded", "success", "assert"),
        ("start", "activating", 0, True, "loaded", "success", "canceled"),
        ("start", "inactive", 0, True, "not-found", "success", "gone"),
        ("stop", "inactive", 0, True, "not-found", "success", "done"),
        ("stop", "failed", 1, True, "bad-setting", "signal", "done"),
        ("stop", "active", 1, True, "loaded", "success", "canceled"),
    ],
)
def test_a_job_that_ended_unheard_is_judged_by_its_unit(
    tmp_path: Path,
    kind: str,
    state: str,
    was_active: int,
    asserted: bool,
    load: str,
    service: str,
    result: str,
) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["StartTransientUnit"] = lambda *_: ("o", [f"{JOB}5"])
        fake.answers["StopUnit"] = lambda *_: ("o", [f"{JOB}5"])
        start = manager.start_transient(UNIT, [])
        job = await (start if kind == "start" else manager.stop(UNIT))
        if kind != "start":
            start.close()
        fake.owner(":1.9")
        await asyncio.sleep(0.05)
        assert not job.result.done()  # GetJob knows it
        fake.answers["GetJob"] = fails(*[f"{SYSTEMD}.NoSuchJob"] * 2)
        has_properties(
            fake,
            ActiveState=("s", state),
            ActiveEnterTimestamp=("t", was_active),
            AssertResult=("b", asserted),
            LoadState=("s", load),
            Result=("s", service),
        )
        fake.owner("")
        fake.owner(":1.10")
        assert await job.wait() == result
        assert manager._jobs == {}

    run(tmp_path, body)


def test_removal_is_believed_only_outside_a_reload(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        fake.answers["GetUnit"] = lambda *_: ("o", ["/x"])
        removal = manager.removal(UNIT)
        waiting = asyncio.create_task(manager.when_removed(UNIT))
        fake.signal("Reloading", "b", True)
        unit_removed(fake)
        fake.signal("Reloading", "b", False)
        await asyncio.sleep(0.05)
        assert not removal.done() and not waiting.done()
        unit_removed(fake, "other.service")
        unit_removed(fake)
        await removal
        await waiting
        assert manager._removals == {}
        lost = manager.removal(UNIT)
        fake.answers["GetUnit"] = fails(*[f"{SYSTEMD}.NoSuchUnit"] * 9)
        fake.cut()
        await lost
        await manager.when_removed(UNIT)
        await asyncio.sleep(0)
        assert manager._removals == {}

    run(tmp_path, body)


@pytest.mark.parametrize("heard", [True, False], ids=["signal", "no signal"])
def test_a_collected_unit_is_asked_for_only_when_nothing_is_heard(
    tmp_path: Path, heard: bool
) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        def unref(_: str) -> tuple[str, list[Any]]:
            if heard:
                unit_removed(fake)
            return "", []

        fake.answers["UnrefUnit"] = unref
        fake.answers["GetUnit"] = fails(*[f"{SYSTEMD}.NoSuchUnit"] * 9)
        await manager.collect(UNIT)
        members = fake.members()
        assert members.index("ResetFailedUnit") < members.index("UnrefUnit")
        assert ("GetUnit" in members) == (not heard)
        await asyncio.sleep(0)
        assert manager._removals == {}

    run(tmp_path, body)


def job_new(fake: FakeBus, unit: str = UNIT) -> None:
    fake.signal("JobNew", "uos", 7, f"{JOB}7", unit)


class Asked:
    """Answers Get with `values`; lets the test wait until something was asked for."""

    def __init__(self, fake: FakeBus, **values: tuple[str, object]) -> None:
        self.values = {**IDLE, **values}
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        fake.answers["Get"] = self

    def __call__(self, _: str, name: str) -> tuple[str, list[Any]]:
        self.queue.put_nowait(name)
        return got(*self.values[name])

    async def until(self, name: str) -> None:
        while await self.queue.get() != name:
            pass


IDLE: dict[str, tuple[str, object]] = {
    "ActiveState": ("s", "active"),
    "Job": ("(uo)", [0, "/"]),
    "JobType": ("s", "start"),
}


def test_a_stop_is_heard_of_when_its_job_is_queued(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        asked = Asked(fake)
        rules = list(fake.rules)
        waiting = asyncio.create_task(manager.when_stopping(UNIT))
        await asked.until("Job")
        assert [rule for rule in fake.rules if rule.endswith(f"member='JobNew',arg2='{UNIT}'")]
        asked.values["Job"] = ("(uo)", [7, f"{JOB}7"])
        job_new(fake, "other.service")
        job_new(fake)  # which is a start
        await asked.until("JobType")
        assert not waiting.done()
        asked.values["JobType"] = ("s", "stop")
        job_new(fake)
        await waiting
        assert fake.rules == rules

    run(tmp_path, body)


@pytest.mark.parametrize("state", ["deactivating", "inactive", "failed"])
def test_a_unit_that_goes_down_already_is_being_stopped(tmp_path: Path, state: str) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        has_properties(fake, **{**IDLE, "ActiveState": ("s", state)})
        await manager.when_stopping(UNIT)

    run(tmp_path, body)


def test_a_job_that_is_over_before_it_is_asked_for_stops_nothing(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        def answer(_: str, name: str) -> Any:
            if name == "JobType":
                raise FakeError("org.freedesktop.DBus.Error.UnknownObject", "gone")
            return got(*{**IDLE, "Job": ("(uo)", [7, f"{JOB}7"])}[name])

        fake.answers["Get"] = answer
        assert not await manager.is_stopping(UNIT)

    run(tmp_path, body)


def test_a_stop_that_passed_unheard_is_asked_for_on_a_new_connection(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        asked = Asked(fake)
        waiting = asyncio.create_task(manager.when_stopping(UNIT))
        await asked.until("Job")
        asked.values["ActiveState"] = ("s", "deactivating")
        fake.cut()
        await waiting

    run(tmp_path, body)


def test_who_does_not_wait_for_a_stop_any_more_costs_nothing(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        asked = Asked(fake)
        rules = list(fake.rules)
        waiting = asyncio.create_task(manager.when_stopping(UNIT))
        await asked.until("Job")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert fake.rules == rules

    run(tmp_path, body)


def test_exit_facts_are_those_of_a_unit_that_is_there(tmp_path: Path) -> None:
    values: dict[str, tuple[str, object]] = {
        "ExecMainCode": ("i", 1),
        "ExecMainStatus": ("i", 7),
        "ExecMainPID": ("u", 40),
        "ExecMainExitTimestamp": ("t", 1_000_000),
        "Result": ("s", "exit-code"),
        "InvocationID": ("ay", bytes(range(16))),
        "ActiveState": ("s", "failed"),
        "LoadState": ("s", "loaded"),
    }

    async def body(fake: FakeBus, manager: Manager) -> None:
        has_properties(fake, **values)
        facts = await manager.exit_facts(UNIT)
        assert facts is not None
        assert (facts.code, facts.status, facts.pid, facts.time_us) == (1, 7, 40, 1_000_000)
        assert (facts.result, facts.active_state) == ("exit-code", "failed")
        assert facts.invocation_id == bytes(range(16)).hex()
        asked = [arguments[1] for _, arguments in fake.calls]
        assert asked[-1] == "LoadState" and len(asked) == 8
        has_properties(fake, **{**values, "LoadState": ("s", "not-found")})
        assert await manager.exit_facts(UNIT) is None
        fake.calls.clear()
        end = await manager.main_exit(UNIT)
        assert end is not None and (end.code, end.status, end.pid) == (1, 7, 40)
        asked = [arguments[1] for _, arguments in fake.calls]
        assert (asked[0], asked[-1], len(asked)) == ("ExecMainCode", "ExecMainExitTimestamp", 4)
        has_properties(fake, **{**values, "ExecMainCode": ("i", 0)})  # not yet
        assert await manager.main_exit(UNIT) is None
        has_properties(fake, **{**values, "ExecMainExitTimestamp": ("t", 0)})  # not any more
        assert await manager.main_exit(UNIT) is None
        has_properties(fake, **{**values, "ExecMainCode": ("s", "one")})
        with pytest.raises(Internal):
            await manager.main_exit(UNIT)

    run(tmp_path, body)


def test_lists_and_versions(tmp_path: Path) -> None:
    async def body(fake: FakeBus, manager: Manager) -> None:
        row = [UNIT, "text", "loaded", "active", "running", "", "/u", 4, "start", "/j"]
        fake.answers["ListUnitsByPatterns"] = lambda *_: ("a(ssssssouso)", [[row]])
        (info,) = await manager.list_units("sdshim-*")
        assert (info.name, info.active_state, info.sub_state) == (UNIT, "active", "running")
        assert (info.description, info.load_state, info.job_id) == ("text", "loaded", 4)
        for text, number in (("252.38-1~deb12u1", 252), ("v257.13", 257)):
            has_properties(fake, Version=("s", text))
            assert await manager.version() == number
        await manager.set_properties(UNIT, [("TasksMax", "t", 5)], runtime=False)
        member, arguments = fake.calls[-1]
        assert member == "SetUnitProperties" and arguments[:2] == [UNIT, False]
        await manager.freeze(UNIT)
        await manager.thaw(UNIT)
        assert fake.members()[-2:] == ["FreezeUnit", "ThawUnit"]

    run(tmp_path, body)


def test_close_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with fake_bus(tmp_path) as (fake, bus):
            manager = Manager(bus)
            await manager.start()
            fake.answers["StopUnit"] = lambda *_: ("o", [f"{JOB}7"])
            job = await manager.stop(UNIT)
            removal = manager.removal(UNIT)

            def silent(*_: object) -> Any:
                raise Silence

            fake.answers["GetJob"] = silent
            fake.owner(":1.2")
            await asyncio.sleep(0.01)
            await manager.close()
            assert job.result.cancelled() and removal.cancelled()

    asyncio.run(main(), debug=True)
