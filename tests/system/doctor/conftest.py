"""What every test of `sdshim doctor` has beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.doctor.kit import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.client import Ctr


@pytest.fixture
def web(ctr: Ctr) -> Iterator[str]:
    """A running container, which no repair may touch."""
    ctr.start("web", "sleep", "1000")
    pid = show(ctr.host, "sdshim-default-web.service", "MainPID")
    yield "web"
    assert show(ctr.host, "sdshim-default-web.service", "MainPID") == pid
    ctr.remove("web")
