"""`sdshim doctor` on what is left of tasks: it is named, and `--fix` removes what is nobody's and
touches nothing that lives."""

from __future__ import annotations

from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.system.doctor.kit import (
    BUNDLES,
    FAULTS,
    FINE,
    LEFT,
    STATE,
    doctor,
    has_failed,
    is_fine,
    known_to_real,
    made,
    show,
)
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


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
    assert show(host, unit, "ActiveState") == "active"
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
    eventually(partial(has_failed, host, LEFT), "it has failed")
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
        assert show(host, unit, "ActiveState") == "active"
        host.run(["systemctl", "kill", "-s", "KILL", unit])
        eventually(partial(has_failed, host, unit), "it has failed")
    assert {f["level"] for f in doctor(host).findings} == {"warning"}
    told = doctor(host, "--fix")
    assert ([r["subject"] for r in told.repairs], told.status) == ([LEFT, helper], FINE)
    assert show(host, LEFT, "LoadState") == "not-found"


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


@pytest.mark.cgroup("v1")  # where the OCI runtime's cgroups outlive the unit
def test_the_cgroup_of_a_task_that_has_ended_is_no_remain_without_a_daemon(
    host: Host, rig: Rig
) -> None:
    rig.stopped("box", "true")
    host.run(["systemctl", "stop", "sdshim.socket", "sdshim.service"])
    try:
        eventually(
            lambda: show(host, "sdshim-default-box.service", "LoadState") == "not-found",
            "systemd has forgotten the unit",
        )
        told = doctor(host)
    finally:
        host.run(["systemctl", "start", "sdshim.socket", "sdshim.service"])
    assert "cgroups" not in {finding["check"] for finding in told.findings}


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
