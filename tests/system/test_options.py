"""Options of a task on a real host: crun, BinaryName, TOML files, unit properties, their faults."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import options_pb2, runc_pb2, runtimeoptions_pb2, task_types_pb2
from tests.system.client import Ctr, events
from tests.system.taskclient import Bundle, Rig, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

UNKNOWN, INVALID, NOT_FOUND = 2, 3, 5
SIGKILL = 9
TOML = "/tmp/sdshim-options.toml"


def bare(host: Host) -> list[str]:
    """For ctr with crun: on cgroup v2 crun loads a BPF program for the devices, which the machines
    that tests run on do not permit (with the stock shim neither)."""
    return ["--privileged"] if host.cgroup == "v2" else []


def wish(message: Any, prefix: str = "") -> dict[str, str | bytes]:
    """A message as the options of a Create."""
    url = prefix + message.DESCRIPTOR.full_name
    return {"type_url": url, "value": message.SerializeToString()}


CRUN = {
    "runc options": wish(runc_pb2.Options(binary_name="crun")),
    "runc options, prefixed": wish(runc_pb2.Options(binary_name="crun"), "type.googleapis.com/"),
    "our options": wish(options_pb2.Options(oci_runtime="crun")),
    "TOML": wish(runtimeoptions_pb2.Options(type_url="x", config_body=b"BinaryName = 'crun'")),
    "a path": wish(runc_pb2.Options(binary_name="/usr/bin/crun", root="/run/containerd/runc")),
}


@pytest.fixture
def file(host: Host) -> Iterator[Callable[[str], Path]]:
    """Write the file TOML inside the host; its path from here."""
    path = host.path(TOML)

    def write(text: str) -> Path:
        path.write_text(text)
        path.chmod(0o644)
        return path

    yield write
    path.unlink(missing_ok=True)


def make(rig: Rig, id_: str, options: dict[str, Any], *command: str, spec: Any = None) -> Bundle:
    """A task with options that waits for Start."""
    bundle = rig.bundle(id_, *command, spec=spec)
    rig.call("Create", id=id_, bundle=bundle.path, options=options)
    return bundle


def show(host: Host, task: str, *names: str) -> dict[str, str]:
    wanted = [f"--property={name}" for name in names]
    shown = host.run(["systemctl", "show", f"sdshim-default-{task}.service", *wanted]).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def used(host: Host, task: str) -> str:
    """The OCI runtime and its root as the unit's ExecStart has them."""
    line = show(host, task, "ExecStart")["ExecStart"].partition(" -- ")[2]
    return " ".join(line.split()[:3])


def logged(host: Host, text: str) -> list[str]:
    """Lines of the daemon's log that have the text."""
    argv = ["journalctl", "-u", "sdshim.service", "-o", "cat", "--no-pager"]
    return [line for line in host.run(argv, check=False).stdout.splitlines() if text in line]


# --- crun


@pytest.mark.parametrize("options", CRUN.values(), ids=CRUN)
def test_a_whole_life_with_crun(rig: Rig, host: Host, options: dict[str, Any]) -> None:
    bundle = rig.bundle("life", "sh", "-c", "cat; echo err >&2; exit 7")
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    rig.call("Create", id="life", bundle=bundle.path, options=options, **streams)
    assert used(host, "life") == "/usr/bin/crun --root /run/containerd/runc/default"
    state = host.path("/run/containerd/runc/default/life")
    assert (state / "exec.fifo").exists()
    assert rig.call("State", id="life").status == task_types_pb2.CREATED
    rig.call("Start", id="life")
    assert not (state / "exec.fifo").exists()
    client = os.open(bundle.outside / "stdin", os.O_WRONLY)
    os.write(client, b"hello\n")
    os.close(client)
    rig.call("CloseIO", id="life", stdin=True)
    assert bundle.read("stdout") == b"hello\n"
    assert bundle.read("stderr") == b"err\n"
    assert rig.call("Wait", id="life").exit_status == 7
    assert rig.call("Delete", id="life").exit_status == 7
    assert not state.exists()
    assert not rig.unit_exists("life")
    rig.events.until("life", "delete")
    assert rig.events.of("life") == ["create", "start", "exit", "delete"]


def test_crun_create_and_delete_without_start(rig: Rig, host: Host) -> None:
    make(rig, "idle", CRUN["our options"], "sleep", "1000")
    assert rig.call("Delete", id="idle").exit_status == 137
    assert not host.path("/run/containerd/runc/default/idle").exists()


def test_kill_and_kill_all_with_crun(rig: Rig) -> None:
    for everyone in (False, True):
        make(rig, "victim", CRUN["our options"], "sh", "-c", "sleep 1000 & wait")
        rig.call("Start", id="victim")
        rig.call("Kill", id="victim", signal=SIGKILL, all=everyone)
        assert rig.call("Wait", id="victim").exit_status == 137
        rig.call("Delete", id="victim")
        rig.give_up(rig._bundles[-1])


@pytest.mark.parametrize("spoiled", [False, True], ids=["as it is", "its state removed before"])
def test_what_crun_left_is_removed_by_the_launchers_delete(
    rig: Rig, host: Host, spoiled: bool
) -> None:
    bundle = make(rig, "given-up", CRUN["our options"], "sleep", "1000")
    rig.call("Start", id="given-up")
    if spoiled:
        host.run(["rm", "-r", "/run/containerd/runc/default/given-up"])
    assert rig.give_up(bundle).exit_status == 137
    assert not host.path("/run/containerd/runc/default/given-up").exists()
    assert not rig.unit_exists("given-up")


def test_the_state_of_crun_gone_behind_our_back(rig: Rig, host: Host) -> None:
    make(rig, "robbed", CRUN["our options"], "sh", "-c", "exit 7")
    rig.call("Start", id="robbed")
    rig.call("Wait", id="robbed")
    host.run(["sh", "-c", "rm -r /run/containerd/runc/default/robbed/*"])
    assert rig.call("Delete", id="robbed").exit_status == 7
    assert not host.path("/run/containerd/runc/default/robbed").exists()


def test_cruns_own_words_for_a_command_that_is_not_there(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("nothing", "/no/such/command")
    options = CRUN["our options"]
    code, text = rig.refused("Create", id="nothing", bundle=bundle.path, options=options)
    assert code == UNKNOWN
    assert text.startswith("OCI runtime create failed: ")
    assert "/no/such/command" in text
    assert not host.path("/run/containerd/runc/default/nothing").exists()


def test_the_daemon_restarted_while_crun_containers_live(rig: Rig, host: Host) -> None:
    make(rig, "waits", CRUN["our options"], "sh", "-c", "exit 3")
    make(rig, "runs", CRUN["TOML"], "sleep", "1000")
    rig.call("Start", id="runs")
    host.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "sdshim.service"])
    rig.call("Start", id="waits")
    assert rig.call("Wait", id="waits").exit_status == 3
    rig.call("Kill", id="runs", signal=SIGKILL)
    assert rig.call("Wait", id="runs").exit_status == 137
    for id_ in ("waits", "runs"):
        rig.call("Delete", id=id_)
        assert not host.path(f"/run/containerd/runc/default/{id_}").exists()


# --- runc's options


def test_another_root_of_the_runtimes_state(rig: Rig, host: Host) -> None:
    make(rig, "moved", wish(runc_pb2.Options(root="/run/elsewhere")), "true")
    assert used(host, "moved").endswith("--root /run/elsewhere/default")
    state = host.path("/run/elsewhere/default/moved")
    assert state.exists()
    rig.call("Delete", id="moved")
    assert not state.exists()
    host.run(["rmdir", "/run/elsewhere/default", "/run/elsewhere"])


def test_flags_reach_the_runtime(rig: Rig, host: Host) -> None:
    options = runc_pb2.Options(no_pivot_root=True, no_new_keyring=True, systemd_cgroup=True)
    make(rig, "flags", wish(options), "true")
    line = show(host, "flags", "ExecStart")["ExecStart"]
    assert "--no-pivot" in line
    assert "--no-new-keyring" in line
    assert "--systemd-cgroup" not in line


def test_what_one_daemon_cannot_do_is_one_line_of_its_log(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("wishes", "true")
    rig.launcher(bundle, "start", SCHED_CORE="1")
    options = wish(runc_pb2.Options(shim_cgroup="/shims"))
    rig.call("Create", id="wishes", bundle=bundle.path, options=options)
    (line,) = logged(host, "default/wishes: shim_cgroup")
    assert "SCHED_CORE" in line
    assert not host.path("/sys/fs/cgroup/shims").exists()


def test_a_container_in_a_user_namespace_can_open_its_streams_again(rig: Rig, host: Host) -> None:
    spec = spec_of("sh", "-c", "echo once >/dev/stdout && echo twice >/proc/self/fd/2")
    spec["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"] |= {"uidMappings": ids, "gidMappings": ids}
    # A made /proc and links below /dev, as every real spec has them.
    results = {}
    for name, owner in (("mapped", 100000), ("roots", 0)):
        bundle = rig.bundle(name, spec=spec)
        streams = {stream: bundle.fifo(stream) for stream in ("stdout", "stderr")}
        options = wish(runc_pb2.Options(io_uid=owner, io_gid=owner))
        rig.call("Create", id=name, bundle=bundle.path, options=options, **streams)
        for stream in streams:
            facts = (bundle.outside / stream).stat()
            inside = host.run(["stat", "-c", "%u %g", streams[stream]]).stdout.split()
            assert inside == [str(owner), str(owner)]
            assert facts.st_mode & 0o777 == 0o700
        rig.call("Start", id=name)
        results[name] = (rig.call("Wait", id=name).exit_status, bundle.read("stdout"))
        said = bundle.read("stderr")
        if owner:
            assert said == b"twice\n"
    assert results["mapped"] == (0, b"once\n")
    assert results["roots"][0] != 0  # what the options are for


# --- unit properties

LIMITS = {
    "CPUWeight": "200",
    "IOWeight": "50",
    "MemoryMax": "512M",
    "MemoryHigh": "384M",
    "TasksMax": "77",
    "CPUQuota": "150%",
}
OTHERS = {
    "Description": "50% of $HOME is %n",
    "TimeoutStopSec": "1min 5s",
    "RuntimeMaxSec": "1h",
    "KillSignal": "SIGINT",
    "IOAccounting": "yes",
}
SHOWN = {
    "CPUWeight": "200",
    "IOWeight": "50",
    "MemoryMax": str(512 << 20),
    "MemoryHigh": str(384 << 20),
    "TasksMax": "77",
    "CPUQuotaPerSecUSec": "1.500000s",
    "Description": "50% of $HOME is %n",
    "TimeoutStopUSec": "1min 5s",
    "RuntimeMaxUSec": "1h",
    "KillSignal": "2",
    "IOAccounting": "yes",
}


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_unit_properties_are_the_units(rig: Rig, host: Host, runtime: str) -> None:
    options = options_pb2.Options(oci_runtime=runtime, unit_properties={**LIMITS, **OTHERS})
    make(rig, "tuned", wish(options), "sh", "-c", "exit 7")
    assert show(host, "tuned", *SHOWN) == SHOWN
    host.run(["systemctl", "daemon-reload"])
    assert show(host, "tuned", *SHOWN) == SHOWN
    rig.call("Start", id="tuned")
    assert rig.call("Wait", id="tuned").exit_status == 7
    assert rig.call("Delete", id="tuned").exit_status == 7


def test_percentages_are_systemds_to_compute(rig: Rig, host: Host) -> None:
    properties = {"MemoryMax": "50%", "TasksMax": "10%"}
    make(rig, "shares", wish(options_pb2.Options(unit_properties=properties)), "true")
    shown = show(host, "shares", "MemoryMax", "TasksMax")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < int(shown["MemoryMax"]) <= total // 2 + 4096
    assert int(shown["TasksMax"]) > 0


def test_a_memory_limit_that_the_runtime_would_not_survive(rig: Rig, host: Host) -> None:
    """It binds the container, and `runc create` has ended before it comes."""
    # (16M: on v1 the kernel refuses a limit below what runc's waiting init already uses.)
    properties = {"MemoryMax": "16M", "TasksMax": "6", "CPUQuota": "20%"}
    make(rig, "tight", wish(options_pb2.Options(unit_properties=properties)), "sleep", "1000")
    rig.call("Start", id="tight")
    assert show(host, "tight", "MemoryMax", "TasksMax") == {
        "MemoryMax": str(16 << 20),
        "TasksMax": "6",
    }
    if host.cgroup == "v1":
        group = show(host, "tight", "ControlGroup")["ControlGroup"]
        read = host.run(["cat", f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"]).stdout
        assert int(read) == 16 << 20
    rig.call("Kill", id="tight", signal=SIGKILL)
    assert rig.call("Wait", id="tight").exit_status == 137
    rig.call("Delete", id="tight")


def test_runtime_max_ends_the_container_like_systemctl_stop(rig: Rig) -> None:
    properties = {"RuntimeMaxSec": "1s", "TimeoutStopSec": "1s"}
    options = wish(options_pb2.Options(unit_properties=properties))
    make(rig, "brief", options, "sh", "-c", "trap 'exit 5' TERM; sleep 1000 & wait")
    rig.call("Start", id="brief")
    assert rig.call("Wait", id="brief").exit_status == 5


def test_unit_properties_outlive_the_daemon_that_set_them(rig: Rig, host: Host) -> None:
    make(rig, "kept", wish(options_pb2.Options(unit_properties=LIMITS)), "sleep", "1000")
    host.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "sdshim.service"])
    rig.call("Start", id="kept")
    names = {name: SHOWN[name] for name in ("CPUWeight", "MemoryMax", "TasksMax")}
    assert show(host, "kept", *names) == names
    (record,) = host.path("/run/sdshim/t/default/kept").glob("*/task.json")
    found = json.loads(record.read_text())["identity"]["runtime"]["unit_properties"]
    assert found == LIMITS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (options_pb2.Options(unit_properties={"ExecStart": "/bin/sh"}), ["'ExecStart'"]),
        (options_pb2.Options(unit_properties={"MemoryMax": "x"}), ["MemoryMax='x'"]),
        (options_pb2.Options(log="file"), ["log 'file' is not one of stdio, journal, both, null"]),
        (runtimeoptions_pb2.Options(config_body=b"a=1\nb=2"), ["unknown keys 'a', 'b'"]),
        (runtimeoptions_pb2.Options(config_path="/etc/nothing.toml"), ["No such file"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value)[:30].strip(),
)
def test_a_fault_is_an_invalid_argument_before_anything_is_made(
    rig: Rig, host: Host, options: Any, words: list[str]
) -> None:
    bundle = rig.bundle("faulty", "true")
    code, text = rig.refused("Create", id="faulty", bundle=bundle.path, options=wish(options))
    assert code == INVALID
    assert text.startswith(f"options of type {options.DESCRIPTOR.full_name}")
    for word in words:
        assert word in text
    assert not rig.unit_exists("faulty")
    assert not list(host.path("/run/sdshim/t").glob("default/faulty"))


# --- ctr


def test_ctr_run_with_a_file_of_options(ctr: Ctr, host: Host, file: Callable[[str], Path]) -> None:
    file("oci_runtime = 'crun'\n[unit_properties]\nCPUWeight = 300\nTimeoutStopSec = '7s'\n")
    options = ["-d", *bare(host), "--runtime-config-path", TOML]
    ctr.run("filed", "sleep", "1000", options=options, check=True)
    try:
        assert used(host, "filed").startswith("/usr/bin/crun ")
        shown = show(host, "filed", "CPUWeight", "TimeoutStopUSec")
        assert shown == {"CPUWeight": "300", "TimeoutStopUSec": "7s"}
        with events(host) as seen:
            ctr.call("task", "kill", "-s", "SIGKILL", "filed")
            seen.until("filed", "exit")
        assert ctr.delete("filed") == 137
    finally:
        ctr.remove("filed")


def test_ctr_run_in_the_foreground_with_crun(ctr: Ctr, file: Callable[[str], Path]) -> None:
    file("BinaryName = 'crun'\n")
    command = ("sh", "-c", "echo out; echo err >&2; exit 7")
    options = ["--rm", *bare(ctr.host), "--runtime-config-path", TOML]
    done = ctr.run("short", *command, options=options)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_the_names_of_unknown_keys_reach_the_user_of_ctr(
    ctr: Ctr, file: Callable[[str], Path]
) -> None:
    file("Colour = 'red'\nBinaryName = 'crun'\nShape = 'round'\n")
    done = ctr.run("wrong", "true", options=["--rm", "--runtime-config-path", TOML])
    assert done.returncode != 0
    assert "unknown keys 'Colour', 'Shape'" in done.stderr
    ctr.remove("wrong")


def test_a_file_that_others_may_write_is_not_read(ctr: Ctr, file: Callable[[str], Path]) -> None:
    file("BinaryName = 'crun'\n").chmod(0o666)
    done = ctr.run("open", "true", options=["--rm", "--runtime-config-path", TOML])
    assert "may be written by others than root" in done.stderr
    ctr.remove("open")


def test_ctr_no_pivot(ctr: Ctr, host: Host) -> None:
    ctr.run("flat", "sleep", "1000", options=["-d", "--no-pivot"], check=True)
    try:
        assert "--no-pivot" in show(host, "flat", "ExecStart")["ExecStart"]
    finally:
        ctr.remove("flat")
