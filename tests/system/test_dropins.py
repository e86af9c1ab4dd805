"""Drop-ins change classes of containers: the examples of docs/dropins.md, each tried."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.system import journal, limits, rootfs
from tests.system.client import Ctr
from tests.system.taskclient import ROOTFS, Rig, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

UNITS = "/etc/systemd/system"
SHARED = "/tmp/dropins"
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
    lines = ["CPUWeight=50", "MemoryMax=200M", "TasksMax=500", "IPAccounting=yes"]
    rate = ["LogRateLimitIntervalSec=10s", "LogRateLimitBurst=1000"]
    wanted = {
        "CPUWeight": "50",
        "MemoryMax": str(200 * limits.MIB),
        "TasksMax": "500",
        "IPAccounting": "yes",
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


NAMESPACED = [
    "PrivateTmp=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectControlGroups=yes",
    "InaccessiblePaths=/run/containerd /run/sdshim",
    "PrivateMounts=yes",
]
"""Each gives the unit's processes a mount namespace; together nothing of ours is left in it."""


def test_what_implies_a_mount_namespace_changes_nothing_for_containers(
    ctr: Ctr, host: Host
) -> None:
    """Mounted, run, logged, told and removed in the host's, a restart of the daemon between."""
    host.run(["sh", "-c", f"mkdir {SHARED}; echo from the host >{SHARED}/word"])
    mount = ["--mount", f"type=bind,src={SHARED},dst=/shared,options=rbind:rw"]
    options = [*mount, "--log-uri", f"file://{SHARED}/log"]
    script = "cat /shared/word; until [ -e /shared/go ]; do sleep 0.01; done; exit 3"
    try:
        with dropped_in(host, EVERY, *NAMESPACED):
            assert not host.run(["sdshim", "doctor"]).stdout
            ctr.run("box", "sh", "-c", script, options=["-d", *options], check=True)
            line = ["sh", "-c", "cat /shared/word; exit 4"]
            within = host.run(ctr.argv("task", "exec", "--exec-id", "x", "box", *line), check=False)
            assert (within.returncode, within.stdout) == (4, "from the host\n")
            host.run(["systemctl", "kill", "--signal=KILL", "sdshim.service"])
            host.run(["touch", f"{SHARED}/go"])
            ctr.await_status("box", "STOPPED")
            assert ctr.delete("box") == 3
            assert host.path(f"{SHARED}/log").read_text() == "from the host\n"
        # Nothing is left, above all no mount: the fixture looks.
    finally:
        ctr.remove("box")
        host.run(["rm", "-rf", SHARED])


def test_a_rootfs_that_mount_cannot_make_is_seen_by_the_runtime_too(
    rig: Rig, host: Host, mount_folder: None
) -> None:
    rootfs.sh(host, f"mkdir -p upper work extra && cp -a {ROOTFS}/. extra")
    lower = rootfs.overlay(f"{rootfs.WORK}/extra")
    with dropped_in(host, EVERY, "PrivateTmp=yes", "ProtectSystem=strict"):
        mounts = [lower, rootfs.tmpfs("/dev", "mode=755")]  # one with a target goes by our helper
        printed = rootfs.output(rig, "helped", mounts, "echo seen")
    assert printed == "seen\n"


@pytest.mark.parametrize("line", ["PrivateDevices=yes", "DynamicUser=yes", "PrivateUsers=yes"])
def test_what_takes_too_much_from_the_runtime_is_named_by_doctor(
    ctr: Ctr, host: Host, line: str
) -> None:
    with dropped_in(host, EVERY, line):
        named = host.run(["sdshim", "doctor"], check=False)
        assert named.returncode == FAULTS
        assert f"{UNITS}/{EVERY}.d/every.conf sets {line.partition('=')[0]}=" in named.stdout
        refused = ctr.run("box", "true")
        assert refused.returncode != 0
        assert "failed" in refused.stderr
    ctr.remove("box")
    assert ctr.run("box", "sh", "-c", "exit 3").returncode == 3
