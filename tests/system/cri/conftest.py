"""A host whose containerd has the CRI, with CNI bridge networking; pods that end with a test."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.host import keeper
from tests.system.conftest import booted
from tests.system.cri.pods import Pods, containerd_config, prepare, ready
from tests.tools.cri import Cri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """One host (`--hosts`) for all tests of pods, instead of the other tests' host."""
    limits = keeper.has_controllers(request.param.partition("/")[2])
    config = partial(containerd_config, limits=limits)
    with booted(request.param, containerd_config=config) as made:
        prepare(made)
        yield made


@pytest.fixture
def pods(host: Host) -> Iterator[Pods]:
    """Makes pods; they are gone after the test, their networks too."""
    with Cri(str(host.path("/run/containerd/containerd.sock"))) as client:
        ready(client)
        made = Pods(host, client)
        yield made
        made.remove()
        assert list(host.path("/run").glob("netns/*")) == []


@pytest.fixture
def kubepods(host: Host) -> Iterator[str]:
    """Cgroup of a pod as a kubelet with the systemd driver makes it: a slice. It ends after the
    pods in it: a test asks for it first."""
    name = "kubepods-burstable-podx.slice"
    host.run(["systemctl", "start", name])
    yield f"/kubepods.slice/kubepods-burstable.slice/{name}"
    host.run(["systemctl", "stop", "kubepods.slice"])
