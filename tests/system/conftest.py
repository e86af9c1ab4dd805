"""The booted host of the session, and the check that each test leaves it clean."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import task_types_pb2
from tests.host import CannotBoot, Host
from tests.system import rootfs
from tests.system.client import Ctr
from tests.system.taskclient import Rig, no_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


LEFT = pytest.StashKey[set[str]]()


@contextmanager
def booted(name: str, **options: Any) -> Iterator[Host]:
    """A host of that name (`ROOT/CGROUP`); a machine that cannot boot one skips, CI fails."""
    root, _, cgroup = name.partition("/")
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Host(root, cgroup, **options))
        except CannotBoot as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no host: {error}")
        yield made


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """One host (`--hosts`) for all its tests."""
    with booted(request.param) as made:
        yield made


@pytest.fixture
def ctr(host: Host) -> Ctr:
    """ctr with our runtime, in the namespace `default`."""
    return Ctr(host)


@pytest.fixture
def configured(host: Host) -> Iterator[Callable[[str], None]]:
    """Gives the daemon a configuration; its own again afterwards."""
    path = host.path("/etc/sdshim/config.toml")
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)

    def configure(text: str) -> None:
        path.write_text(text)
        host.run(["systemctl", "restart", "sdshim.service"])

    yield configure
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(before)
    host.run(["systemctl", "restart", "sdshim.service"])


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No unit, mount, cgroup, process, FIFO or state is left by a test (design 11)."""
    yield
    if "host" not in request.fixturenames:
        return
    host: Host = request.getfixturevalue("host")
    known: set[str] = request.session.stash.setdefault(LEFT, set())
    left = host.leftovers(wait=5, known=known)
    known.update(left)  # one test's fault is not the next one's
    assert not left, "\n".join(left) + "\n" + host.log_tail(60)


@pytest.fixture
def rig(host: Host) -> Iterator[Rig]:
    """A containerd of ours: what the tests' own ttrpc calls are made with."""
    with Rig(host) as made:
        yield made


@pytest.fixture
def nobody_notices(rig: Rig) -> Iterator[None]:
    """A container that runs meanwhile goes on, its Wait stays open, the daemon stays the same and
    is never surprised."""
    bundle = rig.bundle("bystander", "sleep", "1000")
    line = rig.connect()
    line.call("Create", id="bystander", bundle=bundle.path)
    end = line.begin("Wait", id="bystander")
    line.call("Start", id="bystander")
    before = line.call("State", id="bystander")
    daemon = rig.daemon_pid()
    with no_traceback(rig.host):
        yield
    assert rig.daemon_pid() == daemon
    assert line.call("State", id="bystander") == before
    assert before.status == task_types_pb2.RUNNING
    assert not end.done()
    line.call("Kill", id="bystander", signal=9)
    assert end.result(10).exit_status == 137
    line.call("Delete", id="bystander")


@pytest.fixture
def mount_folder(host: Host) -> Iterator[None]:
    """Sources of mounts: nothing is there before, and after a test no loop device is over them."""
    devices = rootfs.loops(host)
    yield
    assert rootfs.loops(host) == devices
    host.run(["rm", "-rf", "--one-file-system", rootfs.WORK])
