"""Daemon and pump are killed while containers write: lines may come twice, none is lost."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fault.strikes import kill_daemon
from tests.system.conftest import rig
from tests.system.journal import entries, since, wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]
pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(120)]

SEED = int(os.environ.get("SDSHIM_FAULT_SEED", "1"))
LINES = int(os.environ.get("SDSHIM_FAULT_LINES", "3000"))
PUMP_CGROUP = "system.slice/sdshim.pump.service"


def kill_pump(host: Host) -> bool:
    """SIGKILL to the pump, if it is up."""
    try:
        for pid in (host.cgroup_path / PUMP_CGROUP / "cgroup.procs").read_text().split():
            if b"pump.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), 9)
                return True
    except (OSError, ProcessLookupError):
        pass
    return False


def kill_both(host: Host) -> bool:
    """Both at the same time."""
    return kill_pump(host) and kill_daemon(host)


BOTH = pytest.param(kill_both, marks=pytest.mark.roots("self"))


@pytest.mark.parametrize("strike", [kill_daemon, kill_pump, BOTH])
def test_no_line_is_lost_when_they_are_killed_during_output(
    rig: Rig, host: Host, strike: Callable[[Host], bool]
) -> None:
    begun = since(host)
    moments = random.Random(SEED)
    line = "echo $n; [ $((n % 300)) != 0 ] || sleep 0.1"
    script = f"for n in $(seq {LINES}); do {line}; done; printf tail"
    bundle = rig.bundle("torn", "sh", "-c", script)
    rig.call("Create", id="torn", bundle=bundle.path, options=wish(log="journal"))
    end = rig.begin("Wait", id="torn")
    rig.call("Start", id="torn")
    kills = 0
    while kills < 3 and not end.done():
        time.sleep(moments.uniform(0.05, 0.25))
        kills += strike(host)
    assert end.result(60).exit_status == 0
    rig.call("Delete", id="torn")
    found = [str(entry["MESSAGE"]) for entry in entries(host, begun, "CONTAINER_ID=torn")]
    first = list(dict.fromkeys(found))
    print(f"fault: {strike.__name__} kills={kills} repeated={len(found) - len(first)}")
    assert kills
    assert first == [*map(str, range(1, LINES + 1)), "tail"], host.log_tail(60)


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
@pytest.mark.parametrize("strike", [kill_daemon, kill_both])
def test_no_last_line_is_lost_when_they_are_killed_at_the_exit(
    rig: Rig, host: Host, strike: Callable[[Host], bool]
) -> None:
    begun = since(host)
    moments = random.Random(SEED)
    for number in range(2):
        name = f"torn{number}"
        bundle = rig.bundle(name, "sh", "-c", "seq 500; printf tail")
        rig.call("Create", id=name, bundle=bundle.path, options=wish(log="journal"))
        end = rig.begin("Wait", id=name)
        rig.call("Start", id=name)
        time.sleep(moments.uniform(0, 0.03))
        strike(host)
        assert end.result(20).exit_status == 0
        rig.call("Delete", id=name)
        found = [str(entry["MESSAGE"]) for entry in entries(host, begun, f"CONTAINER_ID={name}")]
        assert list(dict.fromkeys(found)) == [*map(str, range(1, 501)), "tail"]
