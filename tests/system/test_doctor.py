"""`sdshim doctor`: silent on a healthy host; each fault, made for real, is named; `--fix` removes
what is nobody's and touches nothing that lives."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import pack
from tests.host import BUSYBOX
from tests.system.taskclient import HOME, eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Bundle, Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

STATE = "/run/sdshim/t/default"
BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/default"
UNITS = "/etc/systemd/system"
LEFT = "sdshim-default-left.service"
FINE, WARNINGS, FAULTS, CANNOT_TELL = range(4)


class Told:
    """What doctor found."""

    def __init__(self, document: dict[str, Any], status: int) -> None:
        assert document["exit_status"] == status
        self.status = status
        self.findings: list[dict[str, Any]] = document["findings"]
        self.repairs: list[dict[str, Any]] = document["repairs"]

    @property
    def checks(self) -> set[str]:
        return {finding["check"] for finding in self.findings}

    def of(self, check: str) -> dict[str, Any]:
        """The one finding of a check."""
        found = [finding for finding in self.findings if finding["check"] == check]
        assert len(found) == 1, self.findings
        return found[0]


def doctor(host: Host, *options: str, env: dict[str, str] | None = None) -> Told:
    done = host.run(["sdshim", "doctor", "--json", *options], check=False, timeout=60, env=env)
    assert done.stderr == ""
    return Told(json.loads(done.stdout), done.returncode)


def is_fine(host: Host) -> None:
    done = host.run(["sdshim", "doctor"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (FINE, "", "")


@pytest.fixture
def web(ctr: Ctr) -> Iterator[str]:
    """A running container, which no repair may touch."""
    ctr.start("web", "sleep", "1000")
    pid = _show(ctr.host, "sdshim-default-web.service", "MainPID")
    yield "web"
    assert _show(ctr.host, "sdshim-default-web.service", "MainPID") == pid
    ctr.remove("web")


def _has_failed(host: Host, unit: str) -> bool:
    return _show(host, unit, "ActiveState") == "failed"


def _show(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "-P", name, unit]).stdout.strip()


@contextmanager
def config(host: Host, **values: str) -> Iterator[str]:
    """A configuration file for one run of doctor."""
    path = "/tmp/doctor.toml"
    text = "".join(f'{key} = "{value}"\n' for key, value in values.items())
    host.path(path).write_text(text)
    yield path
    host.path(path).unlink()


@contextmanager
def drop_in(host: Host, unit: str, text: str) -> Iterator[str]:
    folder = f"{UNITS}/{unit}.d"
    host.path(folder).mkdir(exist_ok=True)
    path = host.path(f"{folder}/doctor.conf")
    path.write_text(text)
    try:
        yield f"{folder}/doctor.conf"
    finally:
        path.unlink()
        host.run(["systemctl", "daemon-reload"])


@contextmanager
def made(path: Path) -> Iterator[Path]:
    """A folder that is nobody's, taken away if doctor leaves it."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        os.system(f"rm -rf '{path}'")


def known_to_real(rig: Rig, id_: str, spec: Any = None, **fields: Any) -> Bundle:
    """A container whose events go to the host's containerd, which has no such task."""
    bundle = rig.bundle(id_, "sleep", "1000", spec=spec)
    note = bundle.outside / "sdshim.start"
    real = "/run/containerd/containerd.sock.ttrpc"
    note.write_text(note.read_text().replace(f"{HOME}/events.sock", real))
    rig.call("Create", id=id_, bundle=bundle.path, **fields)
    return bundle


# --- a healthy host


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


# --- daemon, bus, containerd


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
        return int(_show(host, "sdshim.service", "NFileDescriptorStore"))

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


# --- remains


def test_a_task_that_containerd_does_not_have_is_removed_once_it_is_stopped(
    host: Host, rig: Rig, web: str
) -> None:
    known_to_real(rig, "lone")
    rig.call("Start", id="lone")
    told = doctor(host, "--fix")
    assert (told.status, told.repairs) == (FAULTS, [])
    assert told.of("tasks")["advice"].startswith("systemctl stop sdshim-default-lone.service,")
    host.run(["systemctl", "kill", "-s", "KILL", "sdshim-default-lone.service"])
    rig.call("Wait", id="lone")
    assert doctor(host).of("tasks")["level"] == "warning"
    told = doctor(host, "--fix")
    assert [r["subject"] for r in told.repairs] == ["default/lone"]
    assert (told.status, told.findings) == (FINE, [])
    assert not rig.unit_exists("lone")
    assert not host.path(f"{STATE}/lone").exists()


def test_a_task_of_which_sdshim_has_no_state_is_forgotten_as_advised(
    ctr: Ctr, host: Host, web: str
) -> None:
    ctr.start("gone", "sleep", "1000")
    unit = "sdshim-default-gone.service"
    host.run(["systemctl", "kill", "-s", "STOP", "sdshim.service"])
    host.run(["rm", "-r", f"{STATE}/gone"])
    host.run(["systemctl", "kill", "-s", "KILL", "sdshim.service"])
    eventually(lambda: "daemon" not in doctor(host).checks, "the next daemon serves")
    told = doctor(host, "--fix")
    assert (told.status, told.repairs) == (FAULTS, [])
    assert told.of("tasks")["text"] == (
        "containerd has the task default/gone, of which sdshim has no state"
    )
    assert told.of("units")["text"] == f"{unit} runs, and sdshim has no state of it"
    assert _show(host, unit, "ActiveState") == "active"
    host.run(["systemctl", "stop", unit])
    steps, _, _ = told.of("tasks")["advice"].partition(", which looks again")
    host.run(["sh", "-ec", steps])
    eventually(lambda: "containerd" not in doctor(host).checks, "containerd is back")
    told = doctor(host, "--fix")
    assert "/run/containerd/runc/default/gone" in [r["subject"] for r in told.repairs]
    assert (told.status, told.findings) == (FINE, [])
    host.run(["sh", "-ec", "touch -d '-2 min' /run/containerd/fifo/*/gone-*"])
    assert {r["check"] for r in doctor(host, "--fix").repairs} == {"fifos"}
    ctr.call("container", "rm", "gone")


def test_state_that_is_nobodys_is_removed(host: Host, web: str) -> None:
    half, broken = f"{STATE}/half/aa", f"{STATE}/broken/bb"
    with made(host.path(half)), made(host.path(broken)) as folder:
        (folder / "task.json").write_text("{")
        told = doctor(host)
        assert {f["subject"]: f["level"] for f in told.findings} == {
            half: "warning",
            broken: "fault",
        }
        told = doctor(host, "--fix")
        assert {r["subject"] for r in told.repairs} == {half, broken}
        assert told.status == FINE
        assert not folder.parent.exists()


def test_state_of_a_living_container_that_cannot_be_read_is_kept(host: Host, web: str) -> None:
    record = next(host.path(f"{STATE}/web").glob("*/task.json"))
    kept = record.read_bytes()
    record.write_text("{")
    told = doctor(host, "--fix")
    assert (told.status, told.repairs) == (FAULTS, [])
    assert "cannot be read" in told.of("state")["text"]
    assert record.read_text() == "{"
    record.write_bytes(kept)
    is_fine(host)


def test_state_of_the_oci_runtime_is_removed_when_nothing_lives_in_it(
    ctr: Ctr, host: Host, web: str
) -> None:
    ctr.start("left", "sleep", "1000")
    root = "/run/containerd/runc/default"
    host.run(["cp", "-a", f"{root}/left", "/tmp/left"])
    ctr.remove("left")
    host.run(["mv", "/tmp/left", f"{root}/left"])
    found = doctor(host).of("runtime-state")
    assert (found["level"], found["subject"]) == ("warning", f"{root}/left")
    told = doctor(host, "--fix")
    assert [r["error"] for r in told.repairs] == [None]
    assert told.status == FINE
    assert not host.path(f"{root}/left").exists()


def test_a_rootfs_that_is_still_mounted_is_unmounted(host: Host, web: str) -> None:
    host.run(["systemd-run", f"--unit={LEFT}", "--setenv=SDSHIM_TOKEN=aa", "false"])
    eventually(partial(_has_failed, host, LEFT), "it has failed")
    with made(host.path(f"{BUNDLES}/left")) as bundle:
        (bundle / "sdshim.token").write_text("aa")
        (bundle / "rootfs").mkdir()
        host.run(["mount", "-t", "tmpfs", "tmpfs", f"{BUNDLES}/left/rootfs"])
        assert doctor(host).of("mounts")["level"] == "warning"
        told = doctor(host, "--fix")
        assert [r["subject"] for r in told.repairs] == [f"{BUNDLES}/left/rootfs", LEFT]
        assert told.status == FINE
    assert host.run(["mountpoint", f"{BUNDLES}/web/rootfs"]).returncode == 0


def test_a_unit_without_state_is_reset_when_it_has_ended_and_left_alone_while_it_runs(
    host: Host, web: str
) -> None:
    helper = "sdshim-default-left::checkpoint.service"
    for unit in (LEFT, helper):
        host.run(["systemd-run", f"--unit={unit}", "--setenv=SDSHIM_TOKEN=aa", "sleep", "1000"])
    told = doctor(host, "--fix")
    assert (told.status, told.repairs) == (FAULTS, [])
    assert [f["advice"] for f in told.findings] == [
        f"systemctl stop '{LEFT}'",
        f"systemctl stop '{helper}'",
    ]
    for unit in (LEFT, helper):
        assert _show(host, unit, "ActiveState") == "active"
        host.run(["systemctl", "kill", "-s", "KILL", unit])
        eventually(partial(_has_failed, host, unit), "it has failed")
    assert {f["level"] for f in doctor(host).findings} == {"warning"}
    told = doctor(host, "--fix")
    assert ([r["subject"] for r in told.repairs], told.status) == ([LEFT, helper], FINE)
    assert _show(host, LEFT, "LoadState") == "not-found"


def test_a_cgroup_without_unit_is_removed_when_it_is_empty(host: Host, web: str) -> None:
    tree = "/sys/fs/cgroup/freezer" if host.cgroup == "v1" else "/sys/fs/cgroup"
    below = f"/sdshim.slice/sdshim-default.slice/{LEFT}"
    host.run(["mkdir", "-p", f"{tree}{below}/container"])
    script = 'echo $$ >"$0/container/cgroup.procs" && exec sleep 1000'
    inside = host.popen(["sh", "-c", script, f"{tree}{below}"])
    procs = host.path(f"{tree}{below}/container/cgroup.procs")
    eventually(lambda: procs.read_text() != "", "a process is in it")
    told = doctor(host, "--fix")
    assert (told.status, told.repairs) == (FAULTS, [])
    assert told.of("cgroups")["advice"].startswith("kill ")
    host.send_signal(inside, 9)
    inside.wait()
    eventually(lambda: procs.read_text() == "", "it is empty")
    told = doctor(host, "--fix")
    assert ([r["subject"] for r in told.repairs], told.status) == ([below], FINE)
    assert not host.path(f"{tree}{below}").exists()


def test_files_that_are_nobodys_are_removed(host: Host, web: str) -> None:
    host.run(["mkdir", "-p", "-m", "700", "/run/sdshim/c", "/run/containerd/fifo/7"])
    host.run(["touch", "/run/sdshim/c/aa"])
    fifos = [f"/run/containerd/fifo/7/x-{name}" for name in ("stdin", "stdout")]
    host.run(["mkfifo", *fifos])
    assert doctor(host).checks == {"files"}  # a FIFO just made may be waiting for its container
    host.run(["touch", "-d", "-2 min", *fifos])
    holder = host.popen(["sh", "-c", f"exec 3<>{fifos[0]}; echo; exec sleep 1000"], stdout=PIPE)
    assert holder.stdout is not None and holder.stdout.read(1)
    told = doctor(host, "--fix")
    host.send_signal(holder, 9)
    holder.communicate()
    assert {r["subject"] for r in told.repairs} == {"/run/sdshim/c/aa", fifos[1]}
    assert told.status == FINE
    host.run(["touch", "-d", "-2 min", fifos[0]])
    assert doctor(host, "--fix").status == FINE
    assert not host.path("/run/containerd/fifo/7").exists()


# --- versions, host, containers, drop-ins


def test_a_runtime_that_is_too_old_or_missing_is_a_fault(host: Host) -> None:
    with config(host, runtime="/usr/bin/no-such-runc") as path:
        found = doctor(host, "--config", path).of("versions")
    assert "/usr/bin/no-such-runc, which the configuration names" in found["text"]
    host.run(["mkdir", "/tmp/old"])
    host.path("/tmp/old/runc").write_text("#!/bin/sh\necho runc version 1.0.3\n")
    host.path("/tmp/old/runc").chmod(0o755)
    env = {"PATH": "/tmp/old:/usr/local/bin:/usr/bin:/bin"}
    found = doctor(host, env=env).of("versions")
    assert found["text"] == "runc is version 1.0.3; sdshim needs 1.1 or newer"
    host.run(["rm", "-r", "/tmp/old"])


def test_a_criu_that_options_name_must_be_there(host: Host, rig: Rig) -> None:
    options = pack(runc_pb2.Options(criu_path="/opt/criu"))
    known_to_real(rig, "box", options=options)
    found = doctor(host).of("criu")
    assert "/opt/criu, which default/box names" in found["text"]


def test_a_cgroup_tree_of_neither_kind_is_a_fault(host: Host) -> None:
    script = "mount -t tmpfs tmpfs /sys/fs/cgroup && exec sdshim doctor --json"
    done = host.run(["unshare", "-m", "sh", "-c", script], check=False)
    assert Told(json.loads(done.stdout), FAULTS).of("cgroup-mode")


def test_a_cgroup_of_somebody_else_is_told(host: Host, rig: Rig) -> None:
    spec = spec_of("sleep", "1000")
    spec["linux"]["cgroupsPath"] = "/elsewhere/box"
    known_to_real(rig, "box", spec)
    found = doctor(host).of("foreign-cgroups")
    assert "default/box runs in a cgroup of somebody else (/elsewhere/box)" in found["text"]
    shown = json.loads(host.run(["sdshim", "inspect", "box", "--json"]).stdout)["cgroup"]
    assert (shown["path"], shown["owner"]) == ("/elsewhere/box", "somebody else")
    pid = rig.call("State", id="box").pid
    assert ":/elsewhere/box\n" in host.run(["cat", f"/proc/{pid}/cgroup"]).stdout


@pytest.mark.parametrize(("source", "told"), [("/run", True), ("/run/lock", False)])
def test_a_container_that_is_given_the_hosts_run_is_told(
    host: Host, rig: Rig, source: str, told: bool
) -> None:
    host.run(["mkdir", "-p", "/run/lock"])
    spec = spec_of("sleep", "1000")
    mount = {"destination": "/mnt", "type": "bind", "source": source, "options": ["rbind"]}
    spec["mounts"].append(mount)
    known_to_real(rig, "box", spec)
    assert ("host-run" in doctor(host).checks) == told


def test_drop_ins_that_the_daemon_or_containers_cannot_have_are_named(host: Host, web: str) -> None:
    with drop_in(host, "sdshim-.service", "[Service]\nPrivateDevices=yes\nUser=root\n") as path:
        found = doctor(host).of("drop-ins")
        assert found["text"].startswith(f"{path} sets PrivateDevices=, which takes from")
        assert found["level"] == "fault"
    with drop_in(host, "sdshim.service", "[Service]\nProtectSystem=full\n") as path:
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "restart", "sdshim.service"])
        found_all = [f["subject"] for f in doctor(host).findings]
        assert found_all == [f"{path}:ProtectSystem", "sdshim.service"]
    host.run(["systemctl", "restart", "sdshim.service"])
    is_fine(host)


def test_without_root_it_cannot_tell(host: Host, web: str) -> None:
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = host.run([*unprivileged, "sdshim", "doctor"], check=False)
    assert done.returncode == CANNOT_TELL
    assert "run it as root" in done.stdout
