"""A host with dockerd, and its client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.client import RUNTIME
from tests.system.conftest import booted
from tests.system.docker import dockerd
from tests.system.docker.dockerd import STOCK, Docker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host with dockerd."""
    with booted(request.param) as made:
        dockerd.install(made)
        yield made


@pytest.fixture
def docker(host: Host) -> Iterator[Docker]:
    """Docker with our runtime; no container of a test is left."""
    client = Docker(host)
    yield client
    client.clear()


@pytest.fixture(params=[RUNTIME, STOCK], ids=["sdshim", "stock"])
def either(host: Host, request: pytest.FixtureRequest) -> Iterator[Docker]:
    """Docker with our runtime, and with the stock one."""
    client = Docker(host, request.param)
    yield client
    client.clear()
