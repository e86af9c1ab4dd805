"""Two containerds on one node use the same daemon: each gets the events of its own tasks only."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host import BUSYBOX
from tests.system.client import Ctr, events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = pytest.mark.system

HOME = "/tmp/containerd2"
ADDRESS = f"{HOME}/containerd.sock"
UNIT = "containerd2.service"


@pytest.fixture
def second(host: Host) -> Iterator[Ctr]:
    """ctr for a containerd of its own root, state and address, in the namespace `default`."""
    config = host.path("/etc/containerd/config.toml").read_text()
    host.path(HOME).mkdir(mode=0o700)
    version, _, rest = config.partition("\n")
    made = f'{version}\nroot = "{HOME}/root"\nstate = "{HOME}/state"\n{rest}\n'
    made += f'[grpc]\naddress = "{ADDRESS}"\n'
    host.path(f"{HOME}/config.toml").write_text(made)
    _start_second(host)
    try:
        host.run(["ctr", "-a", ADDRESS, "image", "import", "/run/host/images.tar"])
        yield Ctr(host, address=ADDRESS)
    finally:
        host.run(["systemctl", "stop", UNIT], check=False)
        host.run(["rm", "-rf", HOME])


def _start_second(host: Host) -> None:
    command = ["/usr/bin/containerd", "--config", f"{HOME}/config.toml"]
    properties = ["--property=Type=notify", "--property=KillMode=process", "--quiet"]
    host.run(["systemd-run", "--collect", f"--unit={UNIT}", *properties, *command])


def _pid(ctr: Ctr, task: str) -> str:
    lines = ctr.call("task", "ls").stdout.splitlines()
    return next(line.split()[1] for line in lines if line.startswith(task))


@pytest.fixture
def images(host: Host) -> None:
    """The archive of the images lies in the host."""
    host.import_images()


LIFE = ["create", "start", "exit", "delete"]


def test_each_gets_the_events_of_its_own_tasks(images: None, second: Ctr, ctr: Ctr) -> None:
    host = ctr.host
    with events(host) as ours, events(host, ADDRESS) as theirs:
        for number in range(3):
            assert ctr.run(f"first-{number}", "sh", "-c", "exit 3").returncode == 3
            assert second.run(f"second-{number}", "sh", "-c", "exit 4").returncode == 4
        ours.until("first-2", "delete")
        theirs.until("second-2", "delete")
    for number in range(3):
        assert ours.of(f"first-{number}") == LIFE
        assert theirs.of(f"second-{number}") == LIFE
        assert not theirs.of(f"first-{number}")
        assert not ours.of(f"second-{number}")


def test_containers_of_both_run_at_once_in_one_namespace(
    images: None, second: Ctr, ctr: Ctr
) -> None:
    running = [
        client.host.popen(
            client.run_argv(f"{name}-{n}", "sh", "-c", f"echo {name}{n}", options=["--rm"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
        for name, client in (("here", ctr), ("there", second))
    ]
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=30)
        name = ("here", "there")[number % 2]
        assert (process.returncode, out) == (0, f"{name}{number // 2}\n"), err


def test_a_namespace_of_its_own_is_served_as_well(images: None, second: Ctr, ctr: Ctr) -> None:
    host = ctr.host
    other = Ctr(host, "other2", address=ADDRESS)
    host.run([*other.argv("image", "import"), "/run/host/images.tar"])
    assert BUSYBOX in other.call("image", "ls").stdout
    with events(host) as ours, events(host, ADDRESS) as theirs:
        ctr.start("twin", "sleep", "1000")
        other.start("twin", "sleep", "1000")
        try:
            other.call("task", "kill", "-s", "SIGKILL", "twin")
            theirs.read(
                lambda: "exit" in theirs.of("twin", "other2"), 10, "exit of the second's twin"
            )
            assert other.delete("twin") == 137
            assert ctr.status("twin") == "RUNNING"
            ours.until("twin", "start")
            assert ours.of("twin") == ["create", "start"]
            assert not ours.of("twin", "other2")
            assert not theirs.of("twin")
        finally:
            other.remove("twin")
            ctr.remove("twin")


def test_what_ends_while_its_containerd_is_away_is_told_to_it_later(
    images: None, second: Ctr, ctr: Ctr
) -> None:
    host = ctr.host
    second.start("waits", "sh", "-c", "until [ -e /go ]; do sleep 0.01; done; exit 6")
    try:
        pid = _pid(second, "waits")
        host.run(["systemctl", "kill", "--signal=STOP", UNIT])
        try:
            host.run(["touch", f"/proc/{pid}/root/go"])
            # The first containerd is not held up by one that does not answer.
            with events(host) as ours:
                assert ctr.run("meanwhile", "sh", "-c", "exit 2").returncode == 2
                ours.until("meanwhile", "delete")
            assert ours.of("meanwhile") == LIFE
        finally:
            host.run(["systemctl", "kill", "--signal=CONT", UNIT])
        second.await_status("waits", "STOPPED")
        assert second.delete("waits") == 6
    finally:
        second.remove("waits")


def test_events_keep_to_their_containerd_when_it_is_killed_and_so_is_the_daemon(
    images: None, second: Ctr, ctr: Ctr
) -> None:
    host = ctr.host
    second.start("theirs", "sh", "-c", "until [ -e /go ]; do sleep 0.01; done; exit 6")
    ctr.start("ours", "sh", "-c", "until [ -e /go ]; do sleep 0.01; done; exit 5")
    daemon = ["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "sdshim.service"]
    try:
        pid = _pid(second, "theirs")
        with events(host) as seen:
            host.run(["systemctl", "kill", "--signal=KILL", UNIT])
            host.run(["touch", f"/proc/{pid}/root/go"])
            host.run(daemon)
            host.run(["touch", f"/proc/{_pid(ctr, 'ours')}/root/go"])
            seen.until("ours", "exit")
            host.run(daemon)
            assert ctr.run("next", "sh", "-c", "exit 2").returncode == 2
            seen.until("next", "delete")
            assert ctr.delete("ours") == 5
            seen.until("ours", "delete")
            _start_second(host)
            second.await_status("theirs", "STOPPED")
            with events(host, ADDRESS) as others:
                assert second.delete("theirs") == 6
                others.until("theirs", "delete")
                assert second.run("last", "sh", "-c", "exit 4").returncode == 4
                others.until("last", "delete")
        assert seen.of("ours") == ["exit", "delete"]
        assert seen.of("next") == others.of("last") == LIFE
        assert not seen.of("theirs") + seen.of("last")
        assert not others.of("ours") + others.of("next")
    finally:
        second.remove("theirs")
        ctr.remove("ours")
