"""The daemon is killed while containers come and go: neither they nor containerd notice.

Three `ctr run` at a time, ten rounds, two to four SIGKILLs a round at random moments of Create,
run, exit and Delete. A seed reproduces the moments: SDSHIM_FAULT_SEED.
"""

from __future__ import annotations

import os
import random
import selectors
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import kill_daemon, restart_daemon
from tests.system.client import Ctr, events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.host import Host
    from tests.system.client import Events

    Strike = Callable[[Host], bool]

pytestmark = [pytest.mark.system, pytest.mark.fault]

ROUNDS = int(os.environ.get("SDSHIM_FAULT_ROUNDS", "10"))
AT_A_TIME = 3
LAUNCHER = "/usr/local/bin/containerd-shim-systemd-v1"
CALLS = "/run/launcher-calls"


@pytest.fixture
def launcher_calls(host: Host) -> Iterator[Path]:
    """Every call of the launcher, one line each."""
    real = f"{LAUNCHER}.real"
    wrapper = f'#!/bin/sh\necho "$*" >>{CALLS}\nexec {real} "$@"\n'
    host.run(["mv", LAUNCHER, real])
    host.run(["sh", "-c", 'cat >"$0"; chmod 755 "$0"', LAUNCHER], input=wrapper)
    yield host.path(CALLS)
    host.run(["mv", real, LAUNCHER])
    host.run(["rm", "-f", CALLS])


@dataclass(slots=True)
class Run:
    """One `ctr run` under way."""

    task: str
    code: int
    process: subprocess.Popen[bytes]
    output: bytes = b""


@dataclass(slots=True)
class Tally:
    """What went wrong, and how often it was tried."""

    kills: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Drill:
    """What is run, and what is done to the daemon meanwhile."""

    ctr: Ctr
    argv: Callable[[str, str], list[str]]
    """The command for an id and a line of sh."""
    strike: Strike = kill_daemon
    seed: int = field(default_factory=lambda: int(os.environ.get("SDSHIM_FAULT_SEED", "1")))
    random: random.Random = field(init=False)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def rounds(self, count: int) -> list[str]:
        """Run them all, or until something hangs."""
        done = []
        for number in range(count):
            done += _round(number, self)
            if any(fault.startswith("hung") for fault in self.tally.faults):
                break
        return done

    def verdict(self, count: int, what: int) -> None:
        """Fail with every fault."""
        tally = self.tally
        print(f"fault: kills={tally.kills} processes={what} faults={len(tally.faults)}")
        text = "\n".join(tally.faults)
        assert not tally.faults, f"seed {self.seed}:\n{text}{self.ctr.host.log_tail(200)}"
        assert tally.kills >= count


def _round(number: int, drill: Drill) -> list[str]:
    """Three containers (or execs) and a few strikes; returns their ids."""
    ctr, random_, tally = drill.ctr, drill.random, drill.tally
    runs = []
    for slot in range(AT_A_TIME):
        task, code = f"kill-{number}-{slot}", random_.randrange(0, 120)
        nap = random_.choice(["", "sleep 0.05;", "sleep 0.2;"])
        argv = drill.argv(task, f"echo one; {nap} echo two >&2; exit {code}")
        process = ctr.host.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        runs.append(Run(task, code, process))
    moments = sorted(random_.uniform(0, 0.5) for _ in range(random_.randint(2, 4)))
    begun = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for run in runs:
            assert run.process.stdout is not None
            selector.register(run.process.stdout, selectors.EVENT_READ, run)
        while selector.get_map():
            now = time.monotonic() - begun
            if moments and now >= moments[0]:
                moments.pop(0)
                tally.kills += drill.strike(ctr.host)
                continue
            if now > 30:
                tally.faults.append(f"hung: {[k.data.task for k in selector.get_map().values()]}")
                break
            for key, _ in selector.select(moments[0] - now if moments else 30 - now):
                data = key.fileobj.read1(4096)  # type: ignore[union-attr]
                key.data.output += data
                if not data:
                    selector.unregister(key.fileobj)
    for run in runs:
        _judge(ctr, run, tally)
    return [run.task for run in runs]


def _judge(ctr: Ctr, run: Run, tally: Tally) -> None:
    if run.process.poll() is None:
        try:
            run.process.wait(5)
        except subprocess.TimeoutExpired:
            ctr.host.send_signal(run.process, 9)
            run.process.kill()
            run.process.wait()
    assert run.process.stdout is not None
    run.process.stdout.close()
    lines = sorted(run.output.split())
    if run.process.returncode != run.code or lines != [b"one", b"two"]:
        tally.faults.append(
            f"{run.task}: exit {run.process.returncode}, not {run.code}; output {run.output!r}"
        )


def _check_events(seen: Events, tasks: list[str], tally: Tally) -> None:
    for task in tasks:
        try:
            seen.until(task, "delete", timeout=10)
        except AssertionError as error:
            tally.faults.append(f"{task}: {error}"[:300])
        if seen.of(task) != ["create", "start", "exit", "delete"]:
            tally.faults.append(f"{task}: events {seen.of(task)}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("strike", "rounds"),
    [(kill_daemon, ROUNDS), (restart_daemon, max(1, ROUNDS // 3))],
    ids=["killed", "restarted"],
)
def test_nobody_notices_that_the_daemon_is(
    ctr: Ctr, host: Host, launcher_calls: Path, strike: Strike, rounds: int
) -> None:
    drill = Drill(
        ctr, lambda id_, line: ctr.run_argv(id_, "sh", "-c", line, options=["--rm"]), strike
    )
    tally = drill.tally
    with events(host) as seen:
        tasks = drill.rounds(rounds)
        _check_events(seen, tasks, tally)
    calls = launcher_calls.read_text().splitlines()
    for task in tasks:
        deletes = [c for c in calls if f"-id {task} " in c and c.endswith(" delete")]
        if len(deletes) != 1:
            tally.faults.append(f"{task}: {len(deletes)} calls of delete")
    if tally.faults:
        ctr.remove(*tasks)
    drill.verdict(rounds, len(tasks))


@pytest.mark.timeout(600)
def test_no_exec_notices_that_the_daemon_is_killed(ctr: Ctr, host: Host) -> None:
    ctr.start("anvil", "sleep", "1000")
    exec_ = ("task", "exec", "--exec-id")
    drill = Drill(ctr, lambda id_, line: ctr.argv(*exec_, id_, "anvil", "sh", "-c", line))
    rounds = max(1, ROUNDS // 2)
    try:
        with events(host) as seen:
            ids = drill.rounds(rounds)
            ctr.call("task", "kill", "-s", "SIGKILL", "anvil")
            seen.read(lambda: any(b["id"] == "anvil" for b in seen.bodies("exit", "anvil")), 20, "")
        for id_ in ids:
            told = [
                topic
                for _, topic, body in seen.seen
                if id_ in (body.get("exec_id"), body.get("id")) and topic.startswith("/tasks/")
            ]
            if told != ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]:
                drill.tally.faults.append(f"{id_}: events {told}")
    finally:
        ctr.remove("anvil")
    drill.verdict(rounds, len(ids))


LOGS = "/tmp/logs"
LOGGER = f"""#!/bin/sh
exec 5>&-
cat <&4 >{LOGS}/$CONTAINER_ID.err &
cat <&3 >{LOGS}/$CONTAINER_ID.out
wait
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("uri", [f"file://{LOGS}/ID.out", f"binary://{LOGS}/logger"])
def test_no_logger_notices_that_the_daemon_is_killed(ctr: Ctr, host: Host, uri: str) -> None:
    """The whole output is in the log when `ctr run` has ended."""
    script = f'"$@"; code=$?; cat {LOGS}/$0.*; exit $code'

    def argv(id_: str, line: str) -> list[str]:
        options = ["--rm", "--log-uri", uri.replace("ID", id_)]
        return ["sh", "-c", script, id_, *ctr.run_argv(id_, "sh", "-c", line, options=options)]

    host.run(["mkdir", LOGS])
    host.run(["sh", "-c", f"cat >{LOGS}/logger; chmod 755 {LOGS}/logger"], input=LOGGER)
    drill = Drill(ctr, argv)
    rounds = max(1, ROUNDS // 3)
    try:
        with events(host) as seen:
            tasks = drill.rounds(rounds)
            _check_events(seen, tasks, drill.tally)
        if drill.tally.faults:
            ctr.remove(*tasks)
    finally:
        host.run(["rm", "-r", LOGS])
    drill.verdict(rounds, len(tasks))
