"""The unit is the container: its processes, its stop, its status; what has ended stays ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.system.client import Ctr, events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

UNIT = "sdshim-default-box.service"


@pytest.fixture
def box(ctr: Ctr) -> Iterator[str]:
    """A running container with a child process; its unit's name."""
    ctr.start("box", "sh", "-c", "sleep 1000 & exec sleep 2000")
    yield UNIT
    ctr.remove("box")


def _show(host: Host, *names: str) -> dict[str, str]:
    found = host.run(["systemctl", "show", UNIT, *(f"--property={n}" for n in names)]).stdout
    return dict(line.split("=", 1) for line in found.splitlines())


def test_the_processes_of_the_container_are_in_its_unit(host: Host, box: str) -> None:
    status = host.run(["systemctl", "status", box], check=False).stdout
    assert "sleep 1000" in status
    assert "sleep 2000" in status
    group = _show(host, "ControlGroup")["ControlGroup"]
    assert group == f"/sdshim.slice/sdshim-default.slice/{box}"


def test_the_unit_follows_the_init_process(ctr: Ctr, host: Host, box: str) -> None:
    facts = _show(host, "MainPID", "ActiveState", "SubState", "Slice", "Delegate", "Type")
    listed = next(x for x in ctr.call("task", "ls").stdout.splitlines() if x.startswith("box"))
    assert facts["MainPID"] == listed.split()[1]
    assert (facts["ActiveState"], facts["SubState"]) == ("active", "running")
    assert facts["Slice"] == "sdshim-default.slice"
    assert facts["Delegate"] == "yes"


def test_the_unit_accounts_what_the_container_uses(host: Host, box: str) -> None:
    facts = _show(host, "CPUUsageNSec", "MemoryCurrent", "TasksCurrent")
    wanted = facts if host.controllers else ["CPUUsageNSec"]
    assert all(facts[name].isdigit() and int(facts[name]) > 0 for name in wanted), facts


def test_systemctl_stop_gives_containerd_a_proper_exit(ctr: Ctr, host: Host, box: str) -> None:
    with events(host) as seen:
        host.run(["systemctl", "stop", "--no-block", box])
        # `sleep` as PID 1 has no handler for SIGTERM: the kernel drops it, SIGKILL ends the wait.
        host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", box])
        seen.until("box", "exit")
    (body,) = seen.bodies("exit", "box")
    assert body["exit_status"] == 137
    assert ctr.status("box") == "STOPPED"


def test_a_stranger_kill_of_init_is_an_exit_like_any_other(ctr: Ctr, host: Host, box: str) -> None:
    pid = _show(host, "MainPID")["MainPID"]
    with events(host) as seen:
        host.run(["kill", "-9", pid])
        seen.until("box", "exit")
    assert seen.bodies("exit", "box")[0]["exit_status"] == 137


def test_what_has_ended_is_never_started_again(ctr: Ctr, host: Host, box: str) -> None:
    with events(host) as seen:
        ctr.call("task", "kill", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    for verb in ("start", "restart"):
        refused = host.run(["systemctl", verb, box], check=False)
        assert refused.returncode != 0
        assert "ssert" in refused.stderr
    assert ctr.status("box") == "STOPPED"
    assert ctr.delete("box") == 137


def test_the_exit_hook_leaves_a_record_while_the_task_is_not_deleted(
    ctr: Ctr, host: Host, box: str
) -> None:
    invocation = _show(host, "InvocationID")["InvocationID"]
    with events(host) as seen:
        ctr.call("task", "kill", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    host.run(["systemctl", "stop", box])
    (record,) = host.path("/run/sdshim/t/default/box").glob("*/exit")
    words = record.read_text().split()
    assert words[0] == invocation
    assert words[2:] == ["signal", "killed", "KILL"]


def test_the_token_of_the_create_is_in_unit_bundle_and_state(host: Host, box: str) -> None:
    bundle = host.path("/run/containerd/io.containerd.runtime.v2.task/default/box")
    token = (bundle / "sdshim.token").read_text()
    assert f"SDSHIM_TOKEN={token}" in _show(host, "Environment")["Environment"]
    assert host.path(f"/run/sdshim/t/default/box/{token}/task.json").exists()
    spec = json.loads((bundle / "config.json").read_text())
    assert spec["linux"]["cgroupsPath"].endswith(f"/{box}/container")


def test_nothing_of_the_units_environment_reaches_the_container(ctr: Ctr) -> None:
    inside = ctr.run("envs", "env").stdout
    for name in ("SDSHIM", "NOTIFY_SOCKET", "INVOCATION_ID", "LIBMOUNT"):
        assert name not in inside


def test_the_unit_file_is_readable_with_systemctl_cat(host: Host, box: str) -> None:
    text = host.run(["systemctl", "cat", box]).stdout
    assert "Description=Container default/box" in text
    assert "ExecStartPre=" in text
    assert "ExecStopPost=" in text


def test_a_daemon_reload_takes_nothing_from_the_unit(ctr: Ctr, host: Host, box: str) -> None:
    host.run(["systemctl", "daemon-reload"])
    facts = _show(host, "MainPID", "ActiveState", "ExecStopPost", "ExecStart")
    assert facts["ActiveState"] == "active"
    assert "exit-hook" in facts["ExecStopPost"]
    with events(host) as seen:
        ctr.call("task", "kill", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    host.run(["systemctl", "stop", box])
    (record,) = host.path("/run/sdshim/t/default/box").glob("*/exit")
    assert record.read_text().split()[2:] == ["signal", "killed", "KILL"]
    assert ctr.delete("box") == 137


def test_state_and_sockets_are_for_root_only(host: Host, box: str) -> None:
    for path in ("/run/sdshim", "/run/sdshim/t", "/run/sdshim/s", "/run/sdshim/s/default"):
        assert host.path(path).stat().st_mode & 0o077 == 0, path
