"""systemctl's verbs on a container's unit: what stops, signals, freezes and restarts do to the
container, what containerd hears of them, and what the manager's own verbs must not do."""

from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sdshim.pb import options_pb2, task_types_pb2
from sdshim.pb.wellknown import pack
from tests.system.client import Ctr, events
from tests.system.conftest import booted
from tests.system.taskclient import Rig, eventually, exec_spec, spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host import Host
    from tests.system.taskclient import Bundle

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

PAUSED, RUNNING, STOPPED = (
    task_types_pb2.PAUSED,
    task_types_pb2.RUNNING,
    task_types_pb2.STOPPED,
)
SIGKILL = 9
BOX, UNIT = "box", "sdshim-default-box.service"
FAMILY = """\
trap 'echo init TERM; exit 5' TERM
trap 'echo init USR1' USR1
trap 'echo init INT; exit 6' INT
sh -c 'trap "echo child TERM" TERM; trap "echo child USR1" USR1; trap "echo child INT" INT
       echo up; while :; do sleep 0.01; done' &
while :; do wait; done
"""
"""An init and a child of it, each telling which signals it gets."""
STUBBORN = "trap 'echo asked' TERM; echo up; while :; do sleep 0.01; done"


def _show(host: Host, *names: str, unit: str = UNIT) -> dict[str, str]:
    found = host.run(["systemctl", "show", unit, *(f"--property={n}" for n in names)]).stdout
    return dict(line.split("=", 1) for line in found.splitlines())


def _speaking(
    rig: Rig,
    script: str,
    properties: dict[str, str] | None = None,
    notes: dict[str, str] | None = None,
) -> Bundle:
    """A running container whose script has said `up`, with unit properties and annotations."""
    bundle = rig.bundle(BOX, spec={**spec_of("sh", "-c", script), "annotations": notes or {}})
    options = pack(options_pb2.Options(unit_properties=properties)) if properties else None
    rig.call("Create", id=BOX, bundle=bundle.path, stdout=bundle.fifo("stdout"), options=options)
    rig.call("Start", id=BOX)
    assert bundle.read_line("stdout") == b"up\n"
    return bundle


# --- stop and kill


@pytest.mark.parametrize(
    ("properties", "notes", "told", "status"),
    [
        ({}, {}, b"init TERM\n", 5),
        ({"KillSignal": "SIGINT"}, {}, b"init INT\n", 6),
        ({}, {"io.sdshim.stop-signal": "SIGINT"}, b"init INT\n", 6),
        ({}, {"org.opencontainers.image.stopSignal": "2"}, b"init INT\n", 6),
        ({}, {"org.opencontainers.image.stopSignal": "never heard of"}, b"init TERM\n", 5),
    ],
    ids=["SIGTERM", "KillSignal", "annotation", "image", "unreadable"],
)
def test_only_the_containers_first_process_gets_the_stop_signal(
    rig: Rig,
    host: Host,
    properties: dict[str, str],
    notes: dict[str, str],
    told: bytes,
    status: int,
) -> None:
    bundle = _speaking(rig, FAMILY, properties, notes)
    host.run(["systemctl", "stop", UNIT])
    assert rig.call("Wait", id=BOX).exit_status == status
    assert bundle.read("stdout") == told
    rig.events.until(BOX, "exit")
    assert rig.events.of(BOX) == ["create", "start", "exit"]


@pytest.mark.parametrize("by", ["option", "annotation"])
def test_what_does_not_end_at_the_stop_signal_is_killed_after_its_time(
    rig: Rig, host: Host, by: str
) -> None:
    asked = {"TimeoutStopSec": "500ms"} if by == "option" else None
    notes = {"io.sdshim.stop-timeout": "500ms"} if by == "annotation" else None
    bundle = _speaking(rig, STUBBORN, asked, notes)
    host.run(["systemctl", "stop", UNIT])
    assert rig.call("Wait", id=BOX).exit_status == 137
    assert bundle.read("stdout") == b"asked\n"
    assert _show(host, "Result") == {"Result": "timeout"}
    assert rig.call("Delete", id=BOX).exit_status == 137


def test_systemctl_kill_reaches_the_first_process_or_all_as_asked(rig: Rig, host: Host) -> None:
    bundle = _speaking(rig, FAMILY)
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=USR1", UNIT])
    assert bundle.read_line("stdout") == b"init USR1\n"
    host.run(["systemctl", "kill", "--signal=USR1", UNIT])
    assert {bundle.read_line("stdout") for _ in range(2)} == {b"init USR1\n", b"child USR1\n"}
    assert rig.call("State", id=BOX).status == RUNNING
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=INT", UNIT])
    assert rig.call("Wait", id=BOX).exit_status == 6


# --- freeze and thaw


@pytest.mark.cgroup("v2")  # systemd freezes on cgroup v2 only
def test_a_container_is_paused_from_freeze_to_thaw(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    for _ in range(2):
        host.run(["systemctl", "freeze", UNIT])
        assert rig.call("State", id=BOX).status == PAUSED
        host.run(["systemctl", "thaw", UNIT])
        assert rig.call("State", id=BOX).status == RUNNING


@pytest.mark.cgroup("v1")
def test_freeze_is_refused_on_cgroup_v1_and_changes_nothing(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    refused = host.run(["systemctl", "freeze", UNIT], check=False)
    assert refused.returncode != 0
    assert "not support" in refused.stderr
    assert rig.call("State", id=BOX).status == RUNNING
    rig.call("Pause", id=BOX)  # the API's way works
    assert rig.call("State", id=BOX).status == PAUSED


# --- what has ended stays ended


def test_a_restart_stops_the_container_and_does_not_make_it_again(rig: Rig, host: Host) -> None:
    bundle = _speaking(rig, FAMILY)
    refused = host.run(["systemctl", "restart", UNIT], check=False)
    assert refused.returncode != 0
    assert "ssert" in refused.stderr
    assert rig.call("Wait", id=BOX).exit_status == 5
    assert bundle.read("stdout") == b"init TERM\n"  # and nobody said `up` again
    assert rig.call("Delete", id=BOX).exit_status == 5
    rig.events.until(BOX, "delete")
    assert rig.events.of(BOX) == ["create", "start", "exit", "delete"]


def test_reset_failed_does_nothing_to_a_container_that_lives(rig: Rig, host: Host) -> None:
    rig.running(BOX)
    before = _show(host, "MainPID", "InvocationID", "ActiveState")
    host.run(["systemctl", "reset-failed", UNIT])
    host.run(["systemctl", "reset-failed"])
    assert _show(host, "MainPID", "InvocationID", "ActiveState") == before
    assert rig.call("State", id=BOX).status == RUNNING


@pytest.mark.parametrize("script", ["exit 7", "exit 0"])
def test_reset_failed_takes_nothing_from_a_container_that_has_ended(
    rig: Rig, host: Host, script: str
) -> None:
    rig.stopped(BOX, "sh", "-c", script)
    status = int(script[-1])
    eventually(lambda: _show(host, "ActiveState")["ActiveState"] in ("failed", "inactive"), "ended")
    host.run(["systemctl", "reset-failed"])
    for verb in ("start", "restart", "try-restart", "reload-or-restart"):
        host.run(["systemctl", verb, UNIT], check=False)
        assert _show(host, "MainPID", "ActiveState") == {"MainPID": "0", "ActiveState": "inactive"}
    state = rig.call("State", id=BOX)
    assert (state.status, state.exit_status) == (STOPPED, status)
    assert rig.call("Delete", id=BOX).exit_status == status
    assert not rig.unit_exists(BOX)


RACES = int(os.environ.get("SDSHIM_RACES", "20"))


def _race(rig: Rig, round_: int, delay: float) -> bool:
    """One start of an exec, and SIGKILL to its container so many seconds later: whether the exec
    did run. Whatever wins, the container's unit was started once."""
    id_ = f"race-{round_}"
    bundle = rig.running(id_)
    unit = f"sdshim-default-{id_}.service"
    before = _show(rig.host, "InvocationID", unit=unit)
    rig.call("Exec", id=id_, exec_id="x", spec=exec_spec("true"))
    killer, starter = rig.connect(), rig.connect()
    start = starter.begin("Start", id=id_, exec_id="x")
    time.sleep(delay)  # not to wait for something: it is what is tried
    kill = killer.begin("Kill", id=id_, signal=SIGKILL)
    ran = start.exception(15) is None
    kill.result(15)
    assert rig.call("Wait", id=id_).exit_status == 137
    assert _show(rig.host, "InvocationID", "MainPID", unit=unit) == {**before, "MainPID": "0"}
    state = rig.call("State", id=id_)
    assert (state.status, state.exit_status) == (STOPPED, 137)
    rig.call("Delete", id=id_, exec_id="x")
    assert rig.call("Delete", id=id_).exit_status == 137
    assert not rig.unit_exists(id_)
    killer.close()
    starter.close()
    rig.give_up(bundle)
    return ran


@pytest.mark.timeout(120 + 2 * RACES)
def test_an_exec_that_races_the_exit_never_starts_the_container_again(rig: Rig) -> None:
    """The kill comes with the start, and later and later up to twice what a start takes."""
    rig.running("measure")
    rig.call("Exec", id="measure", exec_id="x", spec=exec_spec("true"))
    begun = time.monotonic()
    rig.call("Start", id="measure", exec_id="x")
    span = 2 * (time.monotonic() - begun)
    ran = sum(_race(rig, number, span * number / RACES) for number in range(RACES))
    print(f"races: {RACES}, execs that did run: {ran}, kills from 0 to {span * 1000:.0f} ms")
    assert 0 < ran < RACES


# --- the manager's own verbs


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec", "restart dbus"])
def test_containers_run_start_and_exit_through_what_the_manager_does(
    rig: Rig, host: Host, verb: str
) -> None:
    rig.running("stays")
    stays = rig.begin("Wait", id="stays")
    daemon, unit = rig.daemon_pid(), "sdshim-default-stays.service"
    before = _show(host, "MainPID", "InvocationID", "ActiveState", unit=unit)
    bundles = [rig.bundle(f"life-{n}", "sh", "-c", f"sleep 0.3; exit {n}") for n in range(6)]

    def live(bundle: Bundle) -> tuple[int, int, int]:
        rig.call("Create", id=bundle.id, bundle=bundle.path)
        rig.call("Start", id=bundle.id)
        end = rig.begin("Wait", id=bundle.id)
        rig.call("Exec", id="stays", exec_id=bundle.id, spec=exec_spec("sh", "-c", "exit 9"))
        rig.call("Start", id="stays", exec_id=bundle.id)
        within = rig.call("Wait", id="stays", exec_id=bundle.id).exit_status
        rig.call("Delete", id="stays", exec_id=bundle.id)
        status = end.result(15).exit_status
        return within, status, rig.call("Delete", id=bundle.id).exit_status

    host.run(["systemctl", "reset-failed", "dbus.service"])  # tests restart it often
    with ThreadPoolExecutor(3) as pool:
        lives = [pool.submit(live, bundle) for bundle in bundles]
        for _ in itertools.takewhile(lambda _: not all(x.done() for x in lives), range(3)):
            host.run(["systemctl", *verb.split()])
        assert [x.result(60) for x in lives] == [(9, n, n) for n in range(6)]
    for bundle in bundles:
        rig.events.until(bundle.id, "delete")
        assert rig.events.of(bundle.id) == ["create", "start", "exit", "delete"]
    assert not stays.done()
    assert rig.daemon_pid() == daemon
    assert _show(host, "MainPID", "InvocationID", "ActiveState", unit=unit) == before
    rig.call("Kill", id="stays", signal=SIGKILL)
    assert stays.result(10).exit_status == 137


# --- order, and what it is called


def test_the_unit_is_ordered_after_the_target_alone_and_that_after_what_must_outlive_it(
    rig: Rig, host: Host
) -> None:
    rig.running(BOX)
    after = set(_show(host, "After")["After"].split())
    assert "sdshim.target" in after
    assert not after & {"containerd.service", "sdshim.service", "docker.service", "kubelet.service"}
    target = set(_show(host, "After", unit="sdshim.target")["After"].split())
    assert target >= {"containerd.service", "sdshim.service", "network.target"}
    assert not target & {"docker.service", "kubelet.service"}


def test_the_description_names_image_pod_and_container(rig: Rig, host: Host) -> None:
    cri = "io.kubernetes.cri"
    names = {"image-name": "busybox:1.36", "sandbox-name": "web-7d9f", "container-name": "httpd"}
    notes = {f"{cri}.{key}": value for key, value in names.items()}
    rig.running(BOX, spec={**spec_of("sleep", "1000"), "annotations": notes})
    assert _show(host, "Description") == {
        "Description": "Container default/box (busybox:1.36, web-7d9f, httpd)"
    }
    assert "busybox:1.36, web-7d9f, httpd" in host.run(["systemctl", "status", UNIT]).stdout


def test_at_shutdown_containers_stop_before_the_daemon_and_containerd(
    host: Host, tmp_path: Path
) -> None:
    """Each one tells the hour of its stop to a file that outlives the host."""
    told = tmp_path / "told"
    name = f"{host.root.name}/{host.cgroup}"
    with booted(name, binds={"/srv/told": str(tmp_path)}) as other:
        for unit in ("containerd", "sdshim"):
            folder = other.path(f"/run/systemd/system/{unit}.service.d")
            folder.mkdir(parents=True, exist_ok=True)
            line = f"ExecStop=/bin/sh -c 'echo {unit} >>/srv/told/told'"
            (folder / "tell.conf").write_text(f"[Service]\n{line}\n")
        other.run(["systemctl", "daemon-reload"])
        script = "trap 'sleep 0.5; echo container >>/told/told; exit 3' TERM; echo up >/told/up;"
        script += " while :; do sleep 0.01; done"
        mount = ["--mount", "type=bind,src=/srv/told,dst=/told,options=rbind:rw"]
        Ctr(other).run("box", "sh", "-c", script, options=["-d", *mount], check=True)
        eventually((tmp_path / "up").exists, "its trap is set")
        with events(other) as seen:
            other.poweroff()
            seen.until("box", "exit")
    (body,) = seen.bodies("exit", "box")
    assert body["exit_status"] == 3
    first, *later = told.read_text().split()
    assert (first, sorted(later)) == ("container", ["containerd", "sdshim"])
