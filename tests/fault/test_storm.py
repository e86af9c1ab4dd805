"""The short form of `make fault`: each of its scenarios a few times. A seed repeats one:
SDSHIM_FAULT_SEED."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.fault import storm
from tests.fault.field import SOCKET, Field
from tests.fault.strikes import SCENARIOS, Scenario
from tests.tools.containerd import Containerd

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(120)]

SHORT = 15
"""One strike where the long form has so many; at least one."""


NEWER = pytest.mark.roots("trixie", "forky")


def _cases() -> list[Any]:
    return [
        pytest.param(scenario, id=scenario.name, marks=[NEWER] if scenario.systemd else [])
        for scenario in SCENARIOS
    ]


@pytest.mark.parametrize("scenario", _cases())
def test_nothing_is_lost_by(host: Host, scenario: Scenario) -> None:
    seed = int(os.environ.get("SDSHIM_FAULT_SEED", "1"))
    with Containerd(str(host.path(SOCKET))) as client:
        field = Field(host, client)
        storm.run(field, scenario, max(1, scenario.count // SHORT), seed)
    tally = field.tally
    print(f"fault: {tally.line()}")
    assert tally.good, f"seed {seed}:\n" + "\n".join(tally.texts[:40]) + host.log_tail(300)
