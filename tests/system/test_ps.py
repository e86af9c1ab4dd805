"""`sdshim ps` and `sdshim inspect`: what systemd and the disk know, also without the daemon."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.taskclient import eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

UNIT = "sdshim-default-web.service"
SECRET = "hunter2"


@pytest.fixture
def web(ctr: Ctr) -> Iterator[str]:
    """A running container with a secret in its environment."""
    ctr.run("web", "sleep", "1000", options=["-d", "--env", f"PASSWORD={SECRET}"], check=True)
    yield "web"
    ctr.remove("web")


def run_exec(ctr: Ctr, exec_id: str) -> None:
    """An exec in `web`. ctr never removes the FIFOs of a detached one; /tmp is the host's own."""
    streams = ["--fifo-dir", "/tmp/execs"]
    ctr.call("task", "exec", "-d", "--exec-id", exec_id, *streams, "web", "sleep", "500")


@contextmanager
def no_daemon(host: Host) -> Iterator[None]:
    """The daemon is stopped, and nothing starts it."""
    host.run(["systemctl", "stop", "sdshim.socket", "sdshim.service"])
    try:
        yield
        state = host.run(["systemctl", "is-active", "sdshim.service"], check=False).stdout
        assert state == "inactive\n"
    finally:
        host.run(["systemctl", "start", "sdshim.socket", "sdshim.service"])


def ps(host: Host, *options: str) -> dict[str, Any]:
    """The rows of `sdshim ps`, by `namespace/id` or `namespace/id:exec`."""
    listed = json.loads(host.run(["sdshim", "ps", "--json", *options]).stdout)
    return {f"{r['namespace']}/{r['id']}" + f":{r['exec_id'] or ''}".rstrip(":"): r for r in listed}


def inspect(host: Host, *words: str) -> Any:
    return json.loads(host.run(["sdshim", "inspect", "--json", *words]).stdout)


def refused(host: Host, *words: str) -> str:
    done = host.run(["sdshim", *words], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def show(host: Host, *names: str) -> dict[str, str]:
    found = host.run(["systemctl", "show", UNIT, *(f"--property={n}" for n in names)]).stdout
    return dict(line.split("=", 1) for line in found.splitlines())


def test_a_running_container_is_listed_as_systemd_knows_it(ctr: Ctr, host: Host, web: str) -> None:
    row = ps(host)["default/web"]
    told = show(host, "MainPID", "Slice", "MemoryCurrent", "CPUUsageNSec")
    assert row["unit"] == UNIT
    assert row["slice"] == told["Slice"]
    assert str(row["pid"]) == told["MainPID"]
    assert (row["state"], row["exit"]) == ("running", None)
    assert (row["memory_bytes"] is not None) == told["MemoryCurrent"].isdigit()
    assert (row["cpu_ns"] is not None) == told["CPUUsageNSec"].isdigit()
    assert row["since"].startswith("20")


def test_the_table_has_a_line_for_each_container(host: Host, web: str) -> None:
    title, line = host.run(["sdshim", "ps"]).stdout.splitlines()
    names = "NAMESPACE ID UNIT SLICE PID STATE SINCE MEMORY CPU EXIT"
    assert title.split() == names.split()
    assert line.split()[:4] == ["default", "web", UNIT, "sdshim-default.slice"]


def test_an_exit_is_listed_until_the_task_is_deleted(ctr: Ctr, host: Host) -> None:
    ctr.start("done", "sh", "-c", "exit 7")
    ctr.await_status("done", "STOPPED")
    row = ps(host)["default/done"]
    assert row["state"] == "exited"
    assert row["exit"]["status"] == 7
    assert row["exit"]["reason"] == "exit-code"
    assert row["exit"]["time"] == row["since"]
    ctr.remove("done")
    assert ps(host) == {}


def test_execs_are_listed_when_asked_for(ctr: Ctr, host: Host, web: str) -> None:
    run_exec(ctr, "e1")
    assert list(ps(host)) == ["default/web"]
    rows = ps(host, "--execs")
    assert list(rows) == ["default/web", "default/web:e1"]
    child = rows["default/web:e1"]
    assert (child["state"], child["unit"]) == ("running", "sdshim-default-web:e1.service")
    assert host.path(f"/proc/{child['pid']}/comm").read_text() == "sleep\n"
    assert "└ e1" in host.run(["sdshim", "ps", "-e"]).stdout
    found = inspect(host, "web:e1")
    assert found["task_token"] == inspect(host, "web")["token"]
    assert inspect(host, "web")["execs"] == ["e1"]


def test_a_paused_container_is_listed_as_paused(ctr: Ctr, host: Host, web: str) -> None:
    ctr.call("task", "pause", web)
    assert ps(host)["default/web"]["state"] == "paused"
    ctr.call("task", "resume", web)
    assert ps(host)["default/web"]["state"] == "running"


def test_the_same_id_in_two_namespaces_must_be_named_with_one(host: Host, rig: Rig) -> None:
    for namespace in ("default", "my-ns"):
        bundle = rig.bundle("web", "sleep", "1000", namespace=namespace)
        rig.call("Create", namespace=namespace, id="web", bundle=bundle.path)
    said = refused(host, "inspect", "web")
    assert "'web' is ambiguous: default/web, my-ns/web" in said
    assert inspect(host, "web", "-n", "my-ns")["unit"] == "sdshim-my:ns-web.service"
    assert inspect(host, "my-ns/web")["state"] == "created"
    assert inspect(host, UNIT)["namespace"] == "default"
    assert list(ps(host, "-n", "my-ns")) == ["my-ns/web"]
    assert host.run(["sdshim", "ps", "-q"]).stdout.split() == ["default/web", "my-ns/web"]
    assert "no container, exec or unit 'other'" in refused(host, "inspect", "other")


def test_all_works_while_the_daemon_is_stopped_and_changes_nothing(host: Host, rig: Rig) -> None:
    rig.running("web")
    rig.stopped("done")
    rig.running("ends")
    before = ps(host)
    with no_daemon(host):
        host.run(["systemctl", "kill", "-s", "KILL", "sdshim-default-ends.service"])
        eventually(lambda: ps(host)["default/ends"]["state"] == "exited", "its exit is listed")
        disk = host.run(["sh", "-c", "find /run/sdshim -printf '%p %T@ %C@\\n' | sort"]).stdout
        rows = ps(host)
        assert {k: (v["state"], v["pid"]) for k, v in rows.items() if k != "default/ends"} == {
            k: (v["state"], v["pid"]) for k, v in before.items() if k != "default/ends"
        }
        assert rows["default/ends"]["exit"]["status"] == 137
        assert rows["default/done"]["exit"]["status"] == 7
        assert inspect(host, "web")["phase"] == "running"
        assert inspect(host, "ends")["exit_hook"]["status"] == "KILL"
        after = host.run(["sh", "-c", "find /run/sdshim -printf '%p %T@ %C@\\n' | sort"]).stdout
        assert after == disk


def test_inspect_tells_all_but_values_of_the_environment(ctr: Ctr, host: Host, web: str) -> None:
    run_exec(ctr, "e1")
    host.run(["systemctl", "set-property", "--runtime", UNIT, "MemoryMax=64M", "TasksMax=50"])
    found = inspect(host, web)
    told = show(host, "ControlGroup", "InvocationID", "FragmentPath")
    assert found["cgroup"]["path"] == told["ControlGroup"] + "/container"
    assert found["cgroup"]["owner"] == "sdshim"
    assert found["systemd"]["InvocationID"] == told["InvocationID"]
    assert found["limits"] == {"MemoryMax": 64 << 20, "TasksMax": 50}
    assert found["runtime"] == {"binary": "runc", "root": "/run/containerd/runc/default"}
    assert found["streams"]["stdout"].startswith("/run/containerd/fifo/")
    assert found["bundle"].endswith("/default/web")
    assert [p["name"] for p in found["processes"]] == ["sleep", "sleep"]
    assert host.path(f"{found['state_dir']}/task.json").exists()
    assert found["state_dir"].endswith(found["token"])
    for words in (["web"], ["web", "--json"], ["web:e1"], ["web:e1", "--json"]):
        assert SECRET not in host.run(["sdshim", "inspect", *words]).stdout


def test_a_logger_is_no_container_but_its_containers_helper(ctr: Ctr, host: Host) -> None:
    host.path("/tmp/ps-logger").write_text("#!/bin/sh\nexec 5>&-\nexec cat <&3 >/dev/null\n")
    host.path("/tmp/ps-logger").chmod(0o755)
    options = ["-d", "--log-uri", "binary:///tmp/ps-logger"]
    ctr.run("web", "sleep", "1000", options=options, check=True)
    try:
        assert list(ps(host, "--execs")) == ["default/web"]
        assert inspect(host, "web")["helpers"] == ["sdshim-default-web::log.service"]
        assert host.run(["sdshim", "doctor"]).stdout == ""
    finally:
        ctr.remove("web")
        host.path("/tmp/ps-logger").unlink()


def test_events_that_nobody_takes_are_told(host: Host, rig: Rig) -> None:
    rig.running("web")
    eventually(lambda: inspect(host, "web")["pending_events"] == [], "containerd has them all")
    rig.do(rig.events.stop())
    rig.call("Kill", id="web", signal=9)
    rig.call("Wait", id="web")
    assert [e["topic"] for e in inspect(host, "web")["pending_events"]] == ["/tasks/exit"]


def test_a_unit_without_state_and_state_that_cannot_be_read_are_listed(
    host: Host, rig: Rig
) -> None:
    web = rig.running("web")
    path = host.path(f"{inspect(host, 'web')['state_dir']}/task.json")
    kept = path.read_bytes()
    path.write_text("{")
    try:
        row = ps(host)["default/web"]
        assert row["state"] == "broken"
        assert str(row["pid"]) == show(host, "MainPID")["MainPID"]
        assert "cannot be read" in inspect(host, "web")["error"]
    finally:
        path.write_bytes(kept)
    host.run(["systemd-run", "--unit=sdshim-default-odd.service", "sleep", "1000"])
    try:
        assert ps(host)["default/odd"]["state"] == "stray"
    finally:
        host.run(["systemctl", "stop", "sdshim-default-odd.service"])
    assert web.outside.exists()


def test_it_needs_root_and_says_so(host: Host, web: str) -> None:
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = host.run([*unprivileged, "sdshim", "ps"], check=False)
    assert done.returncode == 1
    assert "cannot read /run/sdshim (hint: run it as root)" in done.stderr


def test_a_narrow_terminal_gets_whole_lines(host: Host, web: str) -> None:
    kept = ["NAMESPACE", "ID", "PID", "STATE", "SINCE", "EXIT"]
    assert on_terminal(host, 45) == kept
    assert len(on_terminal(host, 200)) == 10
    assert len(on_terminal(host, 45, "--wide")) == 10


def on_terminal(host: Host, columns: int, *options: str) -> list[str]:
    """The titles of `sdshim ps` on a terminal of that width."""
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = host.popen(["sdshim", "ps", *options], stdout=slave)
        assert process.wait(20) == 0
        lines = os.read(master, 65536).decode().split("\r\n")
    finally:
        os.close(slave)
        os.close(master)
    assert options or all(len(line) <= columns for line in lines)
    return lines[0].split()


def test_the_shell_completes_ids_and_units(host: Host, rig: Rig) -> None:
    rig.bundle("spec", spec=spec_of("sleep", "1"))
    rig.running("web")
    rig.running("werft")
    assert offered(host, "sdshim inspect we") == {"web", "werft"}
    assert offered(host, "sdshim inspect sdshim-default-wer") == {"sdshim-default-werft.service"}
    assert offered(host, "sdshim ps -n ") == {"default"}
    zsh = host.path("/usr/local/share/zsh/site-functions/_sdshim").read_text()
    assert zsh.startswith("#compdef sdshim\n")


def offered(host: Host, line: str) -> set[str]:
    script = "/usr/local/share/bash-completion/completions/sdshim"
    code = f". {script}; _sdshim; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    env = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_WORDBREAKS": " \t\n=:"}
    return set(host.run(["bash", "-c", code], env=env).stdout.split())
