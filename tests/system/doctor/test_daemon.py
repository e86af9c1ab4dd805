"""`sdshim doctor` on the daemon, its bus, its fd store, its files and its containerd; silent on a
healthy host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.host import BUSYBOX
from tests.system.doctor.kit import (
    CANNOT_TELL,
    FAULTS,
    STATE,
    WARNINGS,
    config,
    doctor,
    drop_in,
    is_fine,
    show,
)
from tests.system.taskclient import HOME, eventually

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def test_a_healthy_host_is_told_nothing_and_0(ctr: Ctr, host: Host, web: str) -> None:
    ctr.start("done", "sh", "-c", "exit 7")
    ctr.await_status("done", "STOPPED")
    ctr.call("task", "pause", web)
    is_fine(host)
    ctr.call("task", "resume", web)
    ctr.remove("done")
    is_fine(host)
    said = host.run(["sdshim", "doctor", "--verbose"]).stdout
    assert f"systemd: {host.systemd_version}\n" in said
    assert "\npassed: bus, daemon, containerd," in said


def test_containers_that_come_and_go_are_no_fault(ctr: Ctr, host: Host) -> None:
    script = 'for n in 1 2 3 4 5 6 7 8; do "$@" live-$n true || exit 1; done'
    argv = ctr.run_argv("", options=["--rm"])[:-2]
    loop = host.popen(["sh", "-c", script, "sh", *argv, BUSYBOX])
    while loop.poll() is None:
        is_fine(host)
    assert loop.returncode == 0


def test_without_the_bus_nothing_else_is_made_up(host: Host, web: str) -> None:
    told = doctor(host, env={"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"})
    assert (told.status, told.checks) == (FAULTS, {"bus"})
    assert "systemctl status dbus" in told.of("bus")["advice"]


def test_a_daemon_that_hangs_is_a_fault(host: Host, web: str) -> None:
    host.run(["systemctl", "kill", "-s", "STOP", "sdshim.service"])
    try:
        told = doctor(host)
    finally:
        host.run(["systemctl", "kill", "-s", "CONT", "sdshim.service"])
    assert told.status == FAULTS
    assert "does not answer" in told.of("daemon")["text"]
    assert "systemctl restart sdshim.service" in told.of("daemon")["advice"]


def test_a_daemon_that_is_stopped_while_tasks_wait_is_a_fault(host: Host, rig: Rig) -> None:
    rig.running("box")
    host.run(["systemctl", "stop", "sdshim.socket", "sdshim.service"])
    try:
        told = doctor(host)
    finally:
        host.run(["systemctl", "start", "sdshim.socket", "sdshim.service"])
    texts = [f["text"] for f in told.findings if f["check"] == "daemon"]
    assert texts == [
        "sdshim.socket is inactive: no container can be started",
        "sdshim.service is inactive; calls for 1 tasks wait",
    ]


def test_a_daemon_older_than_its_files_is_a_warning(host: Host, web: str) -> None:
    link = "/usr/local/lib/sdshim/sdshim"
    before = host.run(["stat", "-c", "%y", link]).stdout.strip()
    host.run(["touch", "-h", "-d", "1 hour", link])
    told = doctor(host)
    host.run(["touch", "-h", "-d", before, link])
    assert told.status == WARNINGS
    assert "started before the sdshim that is installed now" in told.of("daemon")["text"]
    host.run(["touch", "/usr/local/lib/systemd/system/sdshim.service"])
    assert doctor(host).of("daemon")["advice"] == "systemctl daemon-reload"
    host.run(["systemctl", "daemon-reload"])
    is_fine(host)


def test_a_containerd_that_cannot_be_asked_is_cannot_tell(host: Host) -> None:
    with config(host, containerd_address="/nonexistent.sock.ttrpc") as path:
        told = doctor(host, "--config", path)
    assert (told.status, told.checks) == (CANNOT_TELL, {"containerd"})


def test_a_full_fd_store_is_told(host: Host, web: str, rig: Rig) -> None:
    """Of so many that a fifth of it is room for a container."""

    def in_store() -> int:
        return int(show(host, "sdshim.service", "NFileDescriptorStore"))

    wanted = in_store() + 40
    lines = [rig.connect_main() for _ in range(40)]
    eventually(lambda: in_store() == wanted, "the connections are kept")
    used = in_store()
    for most, level in ((used, "fault"), (used * 5 // 4, "warning")):
        text = f"[Service]\nFileDescriptorStoreMax={most}\n"
        with drop_in(host, "sdshim.service", text):
            host.run(["systemctl", "daemon-reload"])
            found = doctor(host).of("fd-store")
        assert found["level"] == level
        assert f"{used} of {most} descriptors" in found["text"]
    for line in lines:
        line.close()


def test_events_that_wait_for_long_are_told(host: Host, rig: Rig) -> None:
    bundle = rig.running("box")
    rig.do(rig.events.stop())
    rig.call("Kill", id="box", signal=9)
    rig.call("Wait", id="box")
    record = next(host.path(f"{STATE}/box").glob("*/task.json"))
    document = json.loads(record.read_text())
    for event in document["events"]:
        event["time_ns"] -= 20 * 10**9
    record.write_text(json.dumps(document))
    found = doctor(host).of("outbox")
    assert found["level"] == "warning"
    assert f"events wait for {HOME}/events.sock, the oldest from 2" in found["text"]
    assert bundle.outside.exists()


def test_a_full_disk_is_told(host: Host) -> None:
    host.run(["mkdir", "/tmp/small"])
    host.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=700", "tmpfs", "/tmp/small"])
    try:
        host.run(["sh", "-c", "head -c 950000 /dev/zero >/tmp/small/full"])
        with config(host, run_dir="/tmp/small") as path:
            found = doctor(host, "--config", path).of("disk")
    finally:
        host.run(["umount", "/tmp/small"])
        host.run(["rmdir", "/tmp/small"])
    assert (found["level"], found["subject"]) == ("warning", "space")


def test_open_permissions_are_closed(host: Host, web: str) -> None:
    host.run(["chmod", "755", "/run/sdshim/s"])
    host.run(["chmod", "666", "/run/sdshim/s/default"])
    host.run(["chmod", "g+w", "/usr/local/bin/sdshim"])
    told = doctor(host, "--fix")
    assert [r["subject"] for r in told.repairs] == ["/run/sdshim/s", "/run/sdshim/s/default"]
    assert told.status == FAULTS
    assert told.of("permissions")["subject"] == "/usr/local/bin/sdshim"
    host.run(["chmod", "g-w", "/usr/local/bin/sdshim"])
    is_fine(host)
    assert host.path("/run/sdshim/s").stat().st_mode & 0o777 == 0o700
