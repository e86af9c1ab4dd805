"""What containerd's clients see of sdshim and of the stock shim: each difference has its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compare import differences
from tests.compare.run import run
from tests.compare.scenarios import scenarios

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_every_difference_from_the_stock_shim_is_listed_with_its_reason(host: Host) -> None:
    known = differences.load(differences.FILE.read_text())
    found = run(host, scenarios(host.cgroup))
    verdict = differences.judge(found, known, f"{host.root.name}/{host.cgroup}")
    unexplained = [str(one) for one, entry in verdict.found if entry is None]
    assert not unexplained, "\n".join(unexplained)
    assert not verdict.unseen, "\n".join(map(str, verdict.unseen))
