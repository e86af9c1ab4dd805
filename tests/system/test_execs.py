"""Execs: a unit each, exit codes of processes of any age, events, what a dead init means."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.client import Ctr, events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

BRIEF = int(os.environ.get("SDSHIM_EXITS", "200"))


@pytest.fixture
def box(ctr: Ctr) -> Iterator[Ctr]:
    """A running container `box`."""
    ctr.start("box", "sleep", "1000")
    yield ctr
    ctr.remove("box")
    # ctr's own: it removes the FIFOs of an exec only if it lives to see its end.
    ctr.host.run(["sh", "-c", "rm -rf /run/containerd/fifo/*"])


def _exec(ctr: Ctr, exec_id: str, *command: str) -> subprocess.CompletedProcess[str]:
    return ctr.call("task", "exec", "--exec-id", exec_id, "box", *command, check=False)


def test_an_exec_prints_its_output_and_returns_its_exit_code(box: Ctr) -> None:
    done = _exec(box, "one", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")


def test_an_exec_id_can_be_used_again_after_its_delete(box: Ctr) -> None:
    for code in range(5):
        assert _exec(box, "again", "sh", "-c", f"exit {code}").returncode == code


def test_a_program_that_does_not_exist_fails_the_start_in_the_runtimes_words(box: Ctr) -> None:
    done = _exec(box, "nope", "/does/not/exist")
    assert done.returncode != 0
    assert "OCI runtime exec failed" in done.stderr
    assert "/does/not/exist" in done.stderr
    assert _exec(box, "nope", "true").returncode == 0


def test_a_background_child_that_keeps_stdout_does_not_delay_the_exit(box: Ctr) -> None:
    with events(box.host) as seen:
        process = box.host.popen(
            box.argv("task", "exec", "--exec-id", "bg", "box", "sh", "-c", "sleep 30 & exit 3"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        begun = time.monotonic()
        seen.read(lambda: any(b.get("id") == "bg" for b in seen.bodies("exit", "box")), 20, "exit")
        assert time.monotonic() - begun < 20
        (body,) = (b for b in seen.bodies("exit", "box") if b["id"] == "bg")
        assert body["exit_status"] == 3
        box.host.send_signal(process, 9)
        process.kill()
        process.wait()
    box.host.run(["ctr", "task", "delete", "--exec-id", "bg", "box"], check=False)


def test_the_events_of_an_exec_come_once_and_in_order(box: Ctr) -> None:
    with events(box.host) as seen:
        assert _exec(box, "life", "sh", "-c", "exit 4").returncode == 4
        seen.until("box", "exit")
    assert seen.of("box") == ["exec-added", "exec-started", "exit"]
    (body,) = seen.bodies("exit", "box")
    assert (body["id"], body["exit_status"]) == ("life", 4)


def test_an_exec_is_a_unit_and_its_process_is_in_the_containers_cgroup(
    box: Ctr, host: Host
) -> None:
    box.call("task", "exec", "-d", "--exec-id", "unit", "box", "sleep", "777")
    shown = host.run(["systemctl", "show", "-P", "ActiveState", "sdshim-default-box:unit.service"])
    assert shown.stdout.strip() == "active"
    assert "sleep 777" in host.run(["systemctl", "status", "sdshim-default-box.service"]).stdout
    assert "unit" in box.call("task", "ps", "box").stdout
    with events(host) as seen:
        box.call("task", "kill", "--exec-id", "unit", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    assert seen.bodies("exit", "box")[0]["exit_status"] == 137
    box.call("task", "delete", "--exec-id", "unit", "box", check=False)


def test_twenty_execs_at_once(box: Ctr) -> None:
    # The nap is for ctr: when it hears of an exit before its own open of a FIFO has returned, which
    # takes a while with twenty of them on two cores, it gives the stream up, whatever the shim.
    running = [
        box.host.popen(
            box.argv(
                "task",
                "exec",
                "--exec-id",
                f"e{n}",
                "box",
                "sh",
                "-c",
                f"echo {n}; sleep 0.5; exit {n}",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(20)
    ]
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=90)
        assert (out, process.returncode) == (f"{number}\n", number), err


def test_a_process_that_ends_at_once_never_loses_its_exit_code(box: Ctr) -> None:
    for number in range(BRIEF):
        done = _exec(box, f"brief-{number}", "/bin/sh", "-c", "exit 7")
        assert done.returncode == 7, done.stderr


def test_the_exit_of_init_is_published_after_those_of_its_execs(box: Ctr, host: Host) -> None:
    for number in range(3):
        box.call("task", "exec", "-d", "--exec-id", f"x{number}", "box", "sleep", "1000")
    with events(host) as seen:
        box.call("task", "kill", "-s", "SIGKILL", "box")
        seen.read(lambda: any(b["id"] == "box" for b in seen.bodies("exit", "box")), 20, "exit")
    ids = [body["id"] for body in seen.bodies("exit", "box")]
    assert sorted(ids) == ["box", "x0", "x1", "x2"]
    assert ids[-1] == "box"
    assert {body["exit_status"] for body in seen.bodies("exit", "box")} == {137}


def test_no_exec_starts_in_a_container_whose_init_has_ended(box: Ctr, host: Host) -> None:
    with events(host) as seen:
        box.call("task", "kill", "-s", "SIGKILL", "box")
        seen.until("box", "exit")
    done = _exec(box, "late", "true")
    assert done.returncode != 0
    assert "cannot exec in a stopped state" in done.stderr
