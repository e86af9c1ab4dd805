"""`ctr run` end to end: output, exit codes, ids, images, what is left behind."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host import BUSYBOX, LAYERS
from tests.system.client import Ctr, events

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_run_prints_the_output_of_the_container(ctr: Ctr) -> None:
    done = ctr.run("out", "sh", "-c", "echo to stdout; echo to stderr >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "to stdout\n", "to stderr\n")


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$; exit 0", 0), ("exit 255", 255)],
    ids=["0", "7", "a SIGKILL of init to itself is ignored by the kernel", "255"],
)
def test_run_returns_the_exit_code_of_the_container(ctr: Ctr, command: str, status: int) -> None:
    assert ctr.run("code", "sh", "-c", command).returncode == status


@pytest.mark.parametrize(("signal", "status"), [("SIGKILL", 137), ("SIGTERM", 143)])
def test_a_killed_container_has_128_plus_the_signal(ctr: Ctr, signal: str, status: int) -> None:
    # The kernel drops SIGTERM to the init of a pid namespace that has no handler for it (and
    # `sleep` has none), so this container shares the host's.
    argv = ctr.run_argv(
        "victim", "sleep", "1000", options=["--rm", "--with-ns", "pid:/proc/1/ns/pid"]
    )
    with events(ctr.host) as seen:
        process = ctr.host.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen.until("victim", "start")
        ctr.call("task", "kill", "-s", signal, "victim")
        assert process.wait(20) == status


def test_a_detached_container_is_listed_with_its_processes_and_can_be_killed(ctr: Ctr) -> None:
    ctr.start("bg", "sh", "-c", "sleep 1000 & sleep 1000 & wait")
    try:
        assert ctr.status("bg") == "RUNNING"
        listed = ctr.call("task", "ls").stdout
        pid = next(line.split()[1] for line in listed.splitlines() if line.startswith("bg"))
        ctr.host.run(
            [
                "timeout",
                "5",
                "sh",
                "-c",
                f"until [ $(ps -o pid= --ppid {pid} | wc -l) = 2 ]; do :; done",
            ]
        )
        pids = ctr.call("task", "ps", "bg").stdout.split()
        assert pid in pids
        assert len([word for word in pids if word.isdigit()]) == 3
        with events(ctr.host) as seen:
            ctr.call("task", "kill", "-s", "SIGKILL", "bg")
            seen.until("bg", "exit")
        assert ctr.status("bg") == "STOPPED"
        assert ctr.delete("bg") == 137
        assert ctr.status("bg") == ""
    finally:
        ctr.remove("bg")


def test_a_container_that_was_never_started_can_be_deleted(ctr: Ctr) -> None:
    # ctr has no `create without start`; a start that fails leaves exactly that state.
    done = ctr.run("neverran", "/does/not/exist", options=["-d"])
    assert done.returncode != 0
    assert "/does/not/exist" in done.stderr
    ctr.remove("neverran")


def test_the_events_of_a_life_come_once_and_in_order(ctr: Ctr) -> None:
    with events(ctr.host) as seen:
        assert ctr.run("life", "sh", "-c", "exit 3").returncode == 3
        seen.until("life", "delete")
    assert seen.of("life") == ["create", "start", "exit", "delete"]
    (exit_event,) = seen.bodies("exit", "life")
    assert exit_event["exit_status"] == 3
    assert exit_event["id"] == "life"


def test_the_same_id_fifty_times_in_a_row(ctr: Ctr) -> None:
    for round_ in range(50):
        assert ctr.run("again", "sh", "-c", f"exit {round_}").returncode == round_


def test_a_hundred_containers_one_after_another(ctr: Ctr) -> None:
    for number in range(100):
        done = ctr.run(f"one-of-{number}", "echo", str(number))
        assert done.stdout == f"{number}\n", done.stderr


def test_twenty_containers_at_once(ctr: Ctr) -> None:
    running = [
        ctr.host.popen(
            ctr.run_argv(f"all-{n}", "sh", "-c", f"echo {n}; exit {n}", options=["--rm"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(20)
    ]
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == (f"{number}\n", number), err


def test_the_same_id_in_two_namespaces_at_once(ctr: Ctr, host: Host) -> None:
    other = Ctr(host, "other-ns")
    host.import_images("other-ns")
    try:
        ctr.start("twin", "sleep", "1000")
        other.start("twin", "sleep", "1000")
        units = host.run(["systemctl", "list-units", "--plain", "--no-legend", "sdshim-*.service"])
        names = {line.split()[0] for line in units.stdout.splitlines()}
        assert {"sdshim-default-twin.service", "sdshim-other:ns-twin.service"} <= names
        ctr.remove("twin")
        assert other.status("twin") == "RUNNING"
    finally:
        ctr.remove("twin")
        other.remove("twin")


def test_an_image_of_eight_layers(ctr: Ctr) -> None:
    done = ctr.run("layers", "sh", "-c", "cat /proc/mounts | head -1", image=LAYERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("overlay / overlay")


def test_a_read_only_rootfs_cannot_be_written(ctr: Ctr) -> None:
    done = ctr.run("ro", "touch", "/x", options=["--rm", "--read-only"])
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


def test_a_rootfs_of_the_clients_own_needs_no_mount(ctr: Ctr, host: Host) -> None:
    host.run(["sh", "-c", "mkdir -p /tmp/root/bin && cp /bin/busybox /tmp/root/bin/sh"])
    try:
        argv = ctr.argv(
            "run", "--rm", "--runtime", ctr.runtime, *ctr.limits, "--rootfs", "/tmp/root", "own",
            "/bin/sh", "-c", "echo mine",
        )  # fmt: skip
        assert host.run(argv).stdout == "mine\n"
    finally:
        host.run(["rm", "-rf", "/tmp/root"])


def test_stdin_reaches_the_container(ctr: Ctr) -> None:
    # (No `cat`: `ctr run` never calls CloseIO, with the stock shim it does not end either.)
    done = ctr.run("stdin", "sh", "-c", "read a; read b; echo $b $a", input="one\ntwo\n")
    assert (done.returncode, done.stdout) == (0, "two one\n")


def test_run_with_stdin_from_dev_null_does_not_hang(ctr: Ctr) -> None:
    assert ctr.run("null", "echo", "done").stdout == "done\n"


def test_a_megabyte_of_output_arrives_whole(ctr: Ctr) -> None:
    done = ctr.run("much", "sh", "-c", "yes 0123456789abcde | head -c 1048576")
    assert len(done.stdout) == 1048576


def test_the_limits_of_containerd_are_those_of_the_container(ctr: Ctr, host: Host) -> None:
    wanted = host.run(
        ["sh", "-c", "grep 'open files' /proc/$(systemctl show -P MainPID containerd)/limits"]
    ).stdout.split()
    done = ctr.run("limits", "grep", "open files", "/proc/self/limits")
    # ctr's spec names RLIMIT_NOFILE itself; what it does not name is containerd's.
    assert done.returncode == 0
    procs = host.run(
        ["sh", "-c", "grep 'Max processes' /proc/$(systemctl show -P MainPID containerd)/limits"]
    ).stdout.split()
    inside = ctr.run("limits", "grep", "Max processes", "/proc/self/limits").stdout.split()
    assert inside == procs
    assert wanted


def test_a_container_that_ends_at_once_has_start_before_exit_and_its_code(ctr: Ctr) -> None:
    rounds = 300
    with events(ctr.host) as seen:
        for number in range(rounds):
            assert ctr.run(f"brief-{number}", "/bin/sh", "-c", "exit 7").returncode == 7
        seen.until(f"brief-{rounds - 1}", "delete")
    for number in range(rounds):
        assert seen.of(f"brief-{number}") == ["create", "start", "exit", "delete"]
        (body,) = seen.bodies("exit", f"brief-{number}")
        assert body["exit_status"] == 7


@pytest.mark.parametrize("id_", ["A" + "z" * 75, "a.b_c-d.0"], ids=["76 bytes", "every character"])
def test_every_legal_id_makes_a_container(ctr: Ctr, id_: str) -> None:
    done = ctr.run(id_, "echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr


def test_the_image_is_the_one_asked_for(ctr: Ctr) -> None:
    assert BUSYBOX in ctr.call("image", "ls").stdout
