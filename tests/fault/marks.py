"""Where a fault test runs: each costs time, so most run on the one host that shows them."""

from __future__ import annotations

import pytest


def fault_on(root: str, cgroup: str) -> list[pytest.MarkDecorator]:
    """The marks of a module whose tests break one host (`ROOT/CGROUP` of --hosts)."""
    mark = pytest.mark
    return [mark.system, mark.fault, mark.timeout(60), mark.roots(root), mark.cgroup(cgroup)]
