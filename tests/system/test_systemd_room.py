"""The systemd room against a booted host: what `Bus` and `Manager` promise, on the real PID 1.

The room runs outside the host and dials the host's bus socket, so process ids are the host's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.unitspec import EX_LINES_SINCE
from sdshim.systemd.bus import Bus
from sdshim.systemd.errors import BadProperty, NoSuchUnit, Uncertain, UnitExists
from sdshim.systemd.journal import JournalHandler
from sdshim.systemd.manager import Manager
from tests.system.conftest import booted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]

SOCKET = "/run/dbus/system_bus_socket"
COUNTER = itertools.count()


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host of our own, without the daemon: the units of these tests have names of its kind."""
    with booted(request.param, install=False, images=False) as made:
        yield made


@contextlib.asynccontextmanager
async def connected(host: Host) -> AsyncIterator[Manager]:
    bus = Bus(f"unix:path={host.path(SOCKET)}")
    await bus.connect()
    manager = Manager(bus)
    try:
        await manager.start()
        yield manager
    finally:
        await manager.close()
        await bus.close()


def run(host: Host, body: Callable[[Manager], Awaitable[None]]) -> None:
    async def main() -> None:
        async with connected(host) as manager:
            await body(manager)

    asyncio.run(main(), debug=True)


def name() -> str:
    return f"sdshim-test-{next(COUNTER)}.service"


def sh(line: str, **properties: tuple[str, object]) -> list[tuple[str, str, Any]]:
    """Properties of a service that runs a line of sh (without `$`: the Exec…Ex forms that keep it
    do not survive a reload on 252)."""
    argv = ["/bin/sh", "-c", line]
    asked: dict[str, tuple[str, object]] = {
        "ExecStart": ("a(sasb)", [("/bin/sh", argv, False)]),
        "Type": ("s", "exec"),
        "CollectMode": ("s", "inactive"),
        "AddRef": ("b", True),
        **properties,
    }
    return [(key, signature, value) for key, (signature, value) in asked.items()]


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 (looks at another process)
            await asyncio.sleep(0.01)


async def ended(manager: Manager, unit: str) -> None:
    async def over() -> bool:
        facts = await manager.exit_facts(unit)
        return facts is not None and facts.active_state in ("failed", "inactive")

    await until(over)


async def forget(manager: Manager, unit: str) -> None:
    removal = manager.removal(unit)
    await manager.reset_failed(unit)
    await manager.unref(unit)
    await asyncio.wait_for(removal, 5)


def test_a_start_is_done_and_the_unit_is_as_asked(host: Host) -> None:
    async def body(manager: Manager) -> None:
        unit = name()
        environment = ("as", ["TOKEN=a b", "X=1"])
        slice_ = ("s", "sdshim-test.slice")
        job = await manager.start_transient(
            unit, sh("sleep 60", Environment=environment, Slice=slice_)
        )
        assert job.kind == "start" and job.id > 0
        assert await asyncio.wait_for(job.wait(), 5) == "done"
        assert await manager.load_state(unit) == "loaded"
        assert await manager.main_pid(unit) > 1
        assert await manager.environment(unit) == ["TOKEN=a b", "X=1"]
        cgroup = await manager.control_group(unit)
        assert cgroup.endswith(f"/sdshim.slice/sdshim-test.slice/{unit}")
        assert await manager.version() == host.systemd_version
        rows = await manager.list_units("sdshim-test-*.service")
        assert [(row.name, row.active_state) for row in rows] == [(unit, "active")]
        assert await manager.main_exit(unit) is None
        with pytest.raises(UnitExists):
            await manager.start_transient(unit, sh("true"))
        await manager.set_properties(unit, [("CPUWeight", "t", 50)])
        assert await manager.get_unit_property(unit, "Service", "CPUWeight") == 50
        stop = await manager.stop(unit)
        assert await asyncio.wait_for(stop.wait(), 5) == "done"
        await forget(manager, unit)
        with pytest.raises(NoSuchUnit):
            await manager.stop(unit)

    run(host, body)


def test_a_bad_property_and_a_failing_job_are_told_apart(host: Host) -> None:
    async def body(manager: Manager) -> None:
        unit = name()
        for bad in (("Nonsense", "s", "x"), ("TimeoutStopUSec", "s", "x"), ("Type", "s", "x")):
            with pytest.raises(BadProperty, match=unit):
                await manager.start_transient(unit, [*sh("true"), bad])
        with pytest.raises(BadProperty, match="CPUWeight"):
            await manager.start_transient(unit, [("CPUWeight", "t", "fifty")])
        missing = [("ExecStart", "a(sasb)", [("/no/such/file", ["x"], False)])]
        job = await manager.start_transient(
            unit, [*missing, ("Type", "s", "exec"), ("AddRef", "b", True)]
        )
        assert await asyncio.wait_for(job.wait(), 5) == "failed"
        await forget(manager, unit)

    run(host, body)


@pytest.mark.parametrize(
    ("line", "signal", "code", "status", "result"),
    [
        ("exit 7", 0, 1, 7, "exit-code"),
        ("exit 0", 0, 1, 0, "success"),
        ("exec sleep 60", 9, 2, 9, "signal"),
        ("exec sleep 60", 15, 2, 15, "success"),
    ],
)
def test_exit_facts(
    host: Host, line: str, signal: int, code: int, status: int, result: str
) -> None:
    async def body(manager: Manager) -> None:
        unit = name()
        before = time.time_ns() // 1000
        job = await manager.start_transient(unit, sh(line))
        await job.wait()
        if signal:
            await manager.kill(unit, "main", signal)
        await ended(manager, unit)
        facts = await manager.exit_facts(unit)
        assert facts is not None
        assert (facts.code, facts.status, facts.result) == (code, status, result)
        assert facts.pid > 1 and before <= facts.time_us <= time.time_ns() // 1000
        assert len(facts.invocation_id) == 32
        end = await manager.main_exit(unit)
        assert end is not None and (end.code, end.status) == (code, status)
        assert (end.pid, end.time_us) == (facts.pid, facts.time_us)
        await forget(manager, unit)
        assert await manager.exit_facts(unit) is None
        assert await manager.main_exit(unit) is None

    run(host, body)


def test_what_is_not_held_goes_and_what_is_held_stays(host: Host) -> None:
    async def body(manager: Manager) -> None:
        loose, held = name(), name()
        job = await manager.start_transient(loose, sh("exit 0", AddRef=("b", False)))
        await asyncio.gather(job.wait(), asyncio.wait_for(manager.when_removed(loose), 5))
        assert await manager.exit_facts(loose) is None
        with pytest.raises(NoSuchUnit):
            await manager.ref(loose)
        job = await manager.start_transient(held, sh("sleep 0.2", AddRef=("b", False)))
        await manager.ref(held)
        await manager.ref(held)  # counted once
        await ended(manager, held)
        await asyncio.sleep(0.1)
        assert not await manager.is_gone(held)
        removed = asyncio.create_task(manager.when_removed(held))
        await manager.unref(held)
        await asyncio.wait_for(removed, 5)
        await manager.unref(held)
        await manager.reset_failed(held)

    run(host, body)


def test_a_stop_job_on_a_deactivating_unit_ends_when_that_ends(host: Host) -> None:
    async def body(manager: Manager) -> None:
        unit = name()
        hook = ("a(sasb)", [("/bin/sleep", ["sleep", "0.5"], False)])
        job = await manager.start_transient(unit, sh("exec sleep 60", ExecStopPost=hook))
        await job.wait()
        await manager.kill(unit, "main", 9)

        async def deactivating() -> bool:
            state = await manager.get_unit_property(unit, "Unit", "ActiveState")
            return state == "deactivating"

        await until(deactivating)
        first, second = await asyncio.gather(manager.stop(unit), manager.stop(unit))
        assert first is second
        assert not first.result.done()
        assert await asyncio.wait_for(first.wait(), 5) == "done"
        assert await manager.get_unit_property(unit, "Unit", "ActiveState") == "failed"
        assert await (await manager.stop(unit)).wait() == "done"
        await forget(manager, unit)

    run(host, body)


def test_removal_is_not_believed_during_a_reload(host: Host) -> None:
    async def body(manager: Manager) -> None:
        unit = name()
        await (await manager.start_transient(unit, sh("sleep 60"))).wait()
        removal = manager.removal(unit)
        for verb in ("daemon-reload", "daemon-reexec"):
            await asyncio.to_thread(host.run, ["systemctl", verb])
            await manager.version()
            await asyncio.sleep(0.2)
            assert not removal.done()
        await manager.stop(unit)
        await manager.unref(unit)
        await asyncio.wait_for(removal, 5)

    run(host, body)


def test_references_and_jobs_survive_a_restart_of_the_bus(host: Host) -> None:
    async def body(manager: Manager) -> None:
        pinned, slow, gone = name(), name(), name()
        await (await manager.start_transient(pinned, sh("sleep 1"))).wait()
        loose = sh("exec sleep 60", AddRef=("b", False))
        await (await manager.start_transient(gone, loose)).wait()
        removal = manager.removal(gone)
        oneshot = sh("sleep 0.7; exit 3", Type=("s", "oneshot"))
        job = await manager.start_transient(slow, oneshot)
        connections = manager._bus.connections
        # everything happens while nobody listens: the job ends, one unit goes for good
        await asyncio.to_thread(
            host.run,
            ["sh", "-c", f"systemctl restart dbus; systemctl stop {gone}; systemctl restart dbus"],
        )
        assert await manager.version() == host.systemd_version
        assert manager._bus.connections > connections
        await asyncio.wait_for(removal, 5)
        assert await asyncio.wait_for(job.wait(), 5) == "failed"
        await ended(manager, pinned)  # exited 0: loaded only because it was referenced again
        facts = await manager.exit_facts(pinned)
        assert facts is not None and (facts.code, facts.status) == (1, 0)
        await forget(manager, pinned)
        if not await manager.is_gone(slow):
            await forget(manager, slow)

    run(host, body)


@pytest.mark.parametrize("answered", [False, True])
def test_a_bus_that_goes_with_an_unref_leaves_no_unit(host: Host, answered: bool) -> None:
    """systemd drops the reference with the bus, and does not look whether anything is left; nor
    when it has answered the unref on it."""

    async def body(manager: Manager) -> None:
        unit = name()
        await (await manager.start_transient(unit, sh("exit 3"))).wait()
        await ended(manager, unit)
        await manager.reset_failed(unit)
        manager._refs.clear()  # as if it had been let go of
        connections = manager._bus.connections
        await asyncio.to_thread(host.run, ["systemctl", "restart", "dbus"])
        await manager.version()
        assert manager._bus.connections > connections
        if not answered:
            await manager.unref(unit)
        await asyncio.wait_for(manager.when_removed(unit), 5)

    run(host, body)


def test_what_was_referenced_twice_on_one_connection_is_let_go(host: Host) -> None:
    """A start that a new connection carried, or a resync that lasted into it, counts there too."""

    async def body(manager: Manager) -> None:
        unit = name()
        await (await manager.start_transient(unit, sh("exit 0"))).wait()
        await ended(manager, unit)
        await manager._on_reconnect()
        await manager._resync()
        await forget(manager, unit)

    run(host, body)


def test_a_job_that_ended_unheard_is_known(host: Host) -> None:
    async def body(manager: Manager) -> None:
        good, bad = name(), name()
        host.run(["mkfifo", "/run/go"])
        jobs = [
            await manager.start_transient(
                unit, sh(f"read x </run/go; exit {code}", Type=("s", "oneshot"))
            )
            for unit, code in ((good, 0), (bad, 4))
        ]
        # deaf: as if the signals had passed during an outage
        for member in ("JobRemoved", "UnitRemoved"):
            rule = next(rule for rule in manager._bus._rules if member in rule)
            await manager._bus.remove_match(rule, manager._on_signal)
        host.run(["sh", "-c", "exec 3<>/run/go; echo >&3; echo >&3; sleep 0.3; rm /run/go"])
        await ended(manager, good)
        await ended(manager, bad)
        assert not any(job.result.done() for job in jobs)
        await asyncio.to_thread(host.run, ["systemctl", "daemon-reexec"])
        results = await asyncio.wait_for(asyncio.gather(*(job.wait() for job in jobs)), 5)
        assert results == ["done", "failed"]
        for unit in (good, bad):
            await manager.reset_failed(unit)
            await manager.unref(unit)
            await until(lambda unit=unit: manager.is_gone(unit))  # type: ignore[misc]

    run(host, body)


def test_starts_and_jobs_go_on_through_daemon_reexec(host: Host) -> None:
    async def body(manager: Manager) -> None:
        slow = name()
        job = await manager.start_transient(slow, sh("sleep 1.5", Type=("s", "oneshot")))
        stop = asyncio.Event()
        units: list[str] = []

        async def starter() -> None:
            while not stop.is_set():
                unit = name()
                units.append(unit)
                token = ("as", [f"TOKEN={unit}"])
                begun = await manager.start_transient(unit, sh("exit 7", Environment=token))
                assert await asyncio.wait_for(begun.wait(), 20) in ("done", "failed")

        tasks = [asyncio.create_task(starter()) for _ in range(4)]
        for _ in range(3):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(host.run, ["systemctl", "daemon-reexec"])
        stop.set()
        await asyncio.gather(*tasks)
        assert await asyncio.wait_for(job.wait(), 5) == "done"
        await asyncio.wait_for(forget(manager, slow), 5)
        for unit in units:
            await ended(manager, unit)
            end = await manager.main_exit(unit)
            assert end is not None and (end.code, end.status) == (1, 7), unit
            await forget(manager, unit)
        assert manager._jobs == {} and manager._early == {} and manager._removals == {}

    run(host, body)


def test_a_kill_whose_answer_is_lost_is_not_sent_again(host: Host) -> None:
    async def body(manager: Manager) -> None:
        unit = name()
        await (await manager.start_transient(unit, sh("exec sleep 60"))).wait()
        uncertain = 0
        reexec = asyncio.create_task(asyncio.to_thread(host.run, ["systemctl", "daemon-reexec"]))
        while not reexec.done():
            try:
                await manager.kill(unit, "main", 18)
            except Uncertain:
                uncertain += 1
        await reexec
        assert uncertain <= 1
        await manager.kill(unit, "all", 9)
        await ended(manager, unit)
        await forget(manager, unit)

    run(host, body)


WORDS = ["50%", "%n", "a b", '"', "'", "\\", "", "\t", "\n", "é", "\x01", "a\\x20b", "~", "*"]
DOLLARS = ["$HOME", "${HOME}", "$$", "a$b", ";"]


def test_exec_lines_survive_a_reload(host: Host) -> None:
    """What the exit hook is given must be the same after a daemon-reload.

    252 writes Exec…Ex into the unit's file and cannot read it again: the line is gone, and the unit
    broken. It has to be the plain form there, without `$` and without a lone `;`: the form that
    core/unitspec uses.
    """
    form = "ex" if host.systemd_version >= EX_LINES_SINCE else "plain"
    script = host.path("/run/show")
    script.write_text("""#!/bin/sh\nprintf '%s\\0' "$@" >/run/words\n""")
    script.chmod(0o755)
    argv = ["/run/show", *WORDS, *(DOLLARS if form == "ex" else [])]
    expected = "".join(f"{word}\0" for word in argv[1:]).encode()
    plain: tuple[str, object] = ("a(sasb)", [(argv[0], argv, False)])
    extended: tuple[str, object] = ("a(sasas)", [(argv[0], argv, ["no-env-expand"])])
    hook = {"ExecStopPostEx": extended} if form == "ex" else {"ExecStopPost": plain}

    async def body(manager: Manager) -> None:
        unit = name()
        await (await manager.start_transient(unit, sh("exec sleep 60", **hook))).wait()
        await asyncio.to_thread(host.run, ["systemctl", "daemon-reload"])
        assert await manager.load_state(unit) == "loaded"
        await (await manager.stop(unit)).wait()
        assert host.path("/run/words").read_bytes() == expected
        await forget(manager, unit)

    run(host, body)


def test_forty_starts_at_once(host: Host) -> None:
    async def body(manager: Manager) -> None:
        units = [name() for _ in range(40)]
        slices = [("s", f"sdshim-p{n % 4}.slice") for n in range(40)]

        async def life(unit: str, slice_: tuple[str, str], code: int) -> None:
            job = await manager.start_transient(unit, sh(f"exit {code}", Slice=slice_))
            await job.wait()
            await ended(manager, unit)
            end = await manager.main_exit(unit)
            assert end is not None and (end.code, end.status) == (1, code)
            await forget(manager, unit)

        lives = (life(*args) for args in zip(units, slices, itertools.count(1), strict=False))
        await asyncio.wait_for(asyncio.gather(*lives), 30)
        assert manager._jobs == {} and manager._refs == set()

    run(host, body)


def test_log_lines_arrive_with_their_fields(host: Host) -> None:
    handler = JournalHandler(path=str(host.path("/run/systemd/journal/socket")))
    log = logging.Logger("sdshim.test")
    log.addHandler(handler)
    identity = name()
    fields = {"container_id": identity, "duration_ms": 2.5, "trace_id": "a\nb"}
    log.warning("over\nin two lines", extra={"fields": fields})
    handler.close()
    host.run(["journalctl", "--sync"])
    line = host.run(["journalctl", "-o", "json", f"CONTAINER_ID={identity}"]).stdout
    entry = json.loads(line)
    assert entry["MESSAGE"] == "over\nin two lines" and entry["PRIORITY"] == "4"
    assert entry["DURATION_MS"] == "2.500" and entry["TRACE_ID"] == "a\nb"
    assert entry["SYSLOG_IDENTIFIER"] == "sdshim" and entry["_TRANSPORT"] == "journal"
