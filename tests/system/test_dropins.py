"""Drop-ins change classes of containers: the examples of docs/dropins.md, each tried."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.system import limits
from tests.system import test_journal as journal
from tests.system.client import Ctr
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

UNITS = "/etc/systemd/system"
BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/default"
FAULTS = 2
EVERY, SPACE = "sdshim-.service", "sdshim-team:a-.service"
"""The drop-in folders of all containers, and of those of the containerd namespace team-a."""


@contextmanager
def dropped_in(host: Host, unit: str, *lines: str) -> Iterator[None]:
    """A drop-in with these lines of [Service], read by systemd."""
    folder = host.path(f"{UNITS}/{unit}.d")
    folder.mkdir(exist_ok=True)
    path = folder / f"{'every' if unit == EVERY else 'team'}.conf"
    path.write_text("\n".join(["[Service]", *lines, ""]))
    try:
        host.run(["systemctl", "daemon-reload"])
        yield
    finally:
        path.unlink()
        folder.rmdir()
        host.run(["systemctl", "daemon-reload"])


@contextmanager
def started(ctr: Ctr, id_: str, *command: str) -> Iterator[None]:
    ctr.start(id_, *(command or ("sleep", "1000")))
    try:
        yield
    finally:
        ctr.remove(id_)


def _shown(host: Host, id_: str, *names: str, namespace: str = "default") -> list[str]:
    unit = f"sdshim-{namespace}-{id_}.service"
    argv = ["systemctl", "show", unit, *(f"--property={name}" for name in names)]
    found = dict(line.split("=", 1) for line in host.run(argv).stdout.splitlines())
    return [found[name] for name in names]


def test_a_drop_in_for_all_sets_weight_memory_tasks_and_log_rate(ctr: Ctr, host: Host) -> None:
    lines = ["CPUWeight=50", "MemoryMax=200M", "TasksMax=500"]
    rate = ["LogRateLimitIntervalSec=10s", "LogRateLimitBurst=1000"]
    wanted = {
        "CPUWeight": "50",
        "MemoryMax": str(200 * limits.MIB),
        "TasksMax": "500",
        "LogRateLimitIntervalUSec": "10s",
        "LogRateLimitBurst": "1000",
    }
    with dropped_in(host, EVERY, *lines, *rate), started(ctr, "box"):
        assert dict(zip(wanted, _shown(host, "box", *wanted), strict=True)) == wanted
        (paths,) = _shown(host, "box", "DropInPaths")
        assert f"{UNITS}/{EVERY}.d/every.conf" in paths
        assert (
            f"{UNITS}/{EVERY}.d/every.conf"
            in host.run(["systemctl", "cat", "sdshim-default-box.service"]).stdout
        )


def test_a_drop_in_limits_the_lines_of_a_container_in_the_journal(rig: Rig, host: Host) -> None:
    """Also fields of the drop-in's are on them."""
    begun = journal.since(host)
    rate = ["LogRateLimitIntervalSec=1h", "LogRateLimitBurst=100"]
    more = ["LogExtraFields=TEAM=blue", "SyslogLevelPrefix=no"]
    with dropped_in(host, EVERY, *rate, *more):
        for id_ in ("loud", "calm"):
            count = 1000 if id_ == "loud" else 10
            rig.running(id_, "sh", "-c", f"seq {count}; echo '<2>end' >&2")
            rig.call("Wait", id=id_)
            rig.call("Delete", id=id_)
    found = journal.entries(host, begun, "-u", "sdshim-default-loud.service")
    told = [entry for entry in found if "N_DROPPED" in entry]
    assert len(found) - len(told) == 100
    assert sum(int(entry["N_DROPPED"]) for entry in told) == 901
    assert str(told[0]["MESSAGE"]).endswith(" messages from sdshim-default-loud.service")
    calm = journal.entries(host, begun, "-u", "sdshim-default-calm.service", "TEAM=blue")
    assert sorted(str(entry["MESSAGE"]) for entry in calm) == sorted(
        ["<2>end", *(str(n + 1) for n in range(10))]
    )


@pytest.mark.controllers
def test_the_limits_of_a_drop_in_bind_the_container(ctr: Ctr, host: Host) -> None:
    script = "sleep 1 || exit; for n in $(seq 20); do sleep 1000 & done; echo all; sleep 1000"
    with dropped_in(host, EVERY, "CPUWeight=50", "MemoryMax=200M", "TasksMax=16"):
        with started(ctr, "box"):
            assert limits.bound(host, "box", "memory", of="unit") == 200 * limits.MIB
            assert limits.bound(host, "box", "pids", of="unit") == 16
            weight = limits.cpu_weight(host, "box", of="unit")
            assert weight == ("512" if host.cgroup == "v1" else "50")
        forked = ctr.run("many", "sh", "-c", script)
        assert "fork" in forked.stderr
        assert "all" not in forked.stdout


def test_a_drop_in_of_a_namespace_is_for_its_containers_alone_and_wins(
    ctr: Ctr, host: Host
) -> None:
    team = Ctr(host, namespace="team-a")
    host.import_images("team-a")
    with (
        dropped_in(host, EVERY, "TasksMax=500", "CPUWeight=50"),
        dropped_in(host, SPACE, "TasksMax=77"),
        started(ctr, "box"),
        started(team, "box"),
    ):
        assert _shown(host, "box", "TasksMax", "CPUWeight") == ["500", "50"]
        assert _shown(host, "box", "TasksMax", "CPUWeight", namespace="team:a") == ["77", "50"]


def test_a_drop_in_reaches_what_runs_already(ctr: Ctr, host: Host) -> None:
    with started(ctr, "box"):
        with dropped_in(host, EVERY, "CPUWeight=50"):
            assert _shown(host, "box", "CPUWeight") == ["50"]
            assert ctr.status("box") == "RUNNING"
        assert _shown(host, "box", "CPUWeight") == ["[not set]"]
    eventually(lambda: not ctr.status("box"), "it has gone")


def test_without_a_mount_namespace_is_what_doctor_wants_and_with_one_no_container_starts(
    ctr: Ctr, host: Host
) -> None:
    with dropped_in(host, EVERY, "PrivateTmp=yes"):
        named = host.run(["sdshim", "doctor"], check=False)
        assert named.returncode == FAULTS
        assert f"{UNITS}/{EVERY}.d/every.conf sets PrivateTmp=" in named.stdout
        refused = ctr.run("box", "true")
        assert refused.returncode != 0
        assert "create failed" in refused.stderr
    # What runc has made in the folder where nothing was mounted; containerd does not remove it.
    host.run(["rm", "-rf", f"{BUNDLES}/box"])
    ctr.remove("box")
    assert ctr.run("box", "sh", "-c", "exit 3").returncode == 3
