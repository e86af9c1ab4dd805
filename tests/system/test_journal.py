"""Output of containers and execs in the journal (design 7, docs/logging.md)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import ShimError
from tests.system.jobs import Job, both
from tests.system.journal import PUMP, entries, since, texts, wish
from tests.system.taskclient import eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

INVALID, PRECONDITION = 3, 9


@both
def test_who_asks_for_no_streams_has_its_output_in_the_journal(
    rig: Rig, host: Host, where: str
) -> None:
    """Also what a process writes to /dev/stdout and /dev/stderr that it opens itself, as images do
    that link their log files there."""
    begun = since(host)
    script = "echo out; echo err >&2; echo a >/proc/self/fd/1; echo b >/proc/self/fd/2; printf end"
    job = Job(rig, where, "sh", "-c", script)
    assert job.run() == 0
    job.call("Delete")
    found = entries(host, begun, "-u", f"{job.unit}.service")
    priorities = sorted((str(entry["MESSAGE"]), entry["PRIORITY"]) for entry in found)
    wanted = [("a", "6"), ("b", "3"), ("end", "6"), ("err", "3"), ("out", "6")]
    assert priorities == wanted
    assert len(entries(host, begun, "CONTAINER_ID=box", "CONTAINER_NAMESPACE=default")) == 5
    assert {entry.get("CONTAINER_EXEC_ID") for entry in found} == {"e" if where == "exec" else None}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in found} == {"box"}


def test_a_container_of_ctrs_without_io_is_in_the_journal(ctr: Ctr, host: Host) -> None:
    begun = since(host)
    ctr.run("quiet", "sh", "-c", "echo said; exit 3", options=["-d", "--null-io"], check=True)
    ctr.await_status("quiet", "STOPPED")
    assert ctr.delete("quiet") == 3
    ctr.remove("quiet")
    assert texts(host, begun, "-u", "sdshim-default-quiet.service") == ["said"]
    shown = host.run(["journalctl", begun, "-u", "sdshim.service", "-o", "cat"]).stdout
    assert "said" not in shown  # the daemon's own log is its own


# --- modes


@both
def test_both_gives_the_client_its_streams_and_the_journal_the_same_lines(
    rig: Rig, host: Host, where: str
) -> None:
    begun = since(host)
    script = "printf 'name? '; read name; echo hello $name; echo err >&2; echo b >/proc/self/fd/2"
    job = Job(rig, where, "sh", "-c", script, options=wish(log="both"))
    job.fifos("stdin", "stdout", "stderr")
    job.start()
    assert os.read(_blocking(job, "stdout"), 6) == b"name? "  # before there is a line
    with os.fdopen(job.open_stdin(), "w") as stdin:
        stdin.write("you\n")
    assert job.bundle.read("stdout") == b"hello you\n"
    assert job.bundle.read("stderr") == b"err\nb\n"
    assert job.wait() == 0
    job.call("Delete")
    assert texts(host, begun, "-u", f"{job.unit}.service") == ["b", "err", "name? hello you"]


def _blocking(job: Job, stream: str) -> int:
    fd = job.bundle.ends[stream]
    os.set_blocking(fd, True)
    return fd


@pytest.mark.parametrize(("mode", "wanted"), [("journal", ["err", "out"]), ("null", [])])
def test_without_its_streams_a_client_sees_their_end(
    rig: Rig, host: Host, mode: str, wanted: list[str]
) -> None:
    begun = since(host)
    script = "echo out; echo err >&2; read x"
    job = Job(rig, "init", "sh", "-c", script, options=wish(log=mode))
    job.fifos("stdin", "stdout", "stderr")
    job.start()
    with os.fdopen(job.open_stdin(), "w") as stdin:
        stdin.write("go on\n")
    assert job.bundle.read("stdout") + job.bundle.read("stderr") == b""
    assert job.wait() == 0
    job.call("Delete")
    assert texts(host, begun, "CONTAINER_ID=box") == wanted


def _begun(given: list[bytes], written: list[bytes]) -> int:
    """How many lines were begun only, when the room ran out. Each that was given is one of those
    written, or the begin of one, in their order and each once: a small piece may find room again
    that a large one before it had not."""
    rest = iter(written)
    begun = 0
    for line in given:
        of = next((other for other in rest if other.startswith(line)), None)
        assert of is not None, line
        begun += of != line + b"\n"
    return begun


def test_a_client_that_does_not_read_holds_nobody_up(rig: Rig, host: Host) -> None:
    """Its FIFO is full long before the container ends; the journal has every line, and says what
    the client was not given."""
    begun = since(host)
    script = f"for n in $(seq 3000); do echo $n {'x' * 990}; done; echo done >&2"
    job = Job(rig, "init", "sh", "-c", script, options=wish(log="both"))
    job.fifos("stdout", "stderr")
    assert job.run() == 0
    job.call("Delete")
    found = entries(host, begun, "-u", f"{job.unit}.service", "PRIORITY=6")
    assert [int(str(entry["MESSAGE"]).split()[0]) for entry in found] == list(range(1, 3001))
    told = entries(host, begun, "-u", f"{job.unit}.service", "PRIORITY=4")[-1]
    given = job.bundle.read("stdout")
    written = [b"%d %s\n" % (number, b"x" * 990) for number in range(1, 3001)]
    whole = [line for line in given.splitlines(keepends=True) if line in written]
    assert int(told["SDSHIM_DROPPED_LINES"]) == 3000 - len(whole) > 0
    assert f"{3000 - len(whole)} lines" in str(told["MESSAGE"])
    assert _begun(given.splitlines(), written) == len(given.splitlines()) - len(whole)
    assert job.bundle.read("stderr") == b"done\n"


def test_a_terminals_output_goes_to_both(rig: Rig, host: Host) -> None:
    begun = since(host)
    options = wish(log="both")
    job = Job(rig, "init", "sh", "-c", "tty; printf 'x\\ny'", terminal=True, options=options)
    job.fifos("stdin", "stdout")
    assert job.run() == 0
    assert job.bundle.read("stdout") == b"/dev/pts/0\r\nx\r\ny"
    job.call("Delete")
    assert texts(host, begun, "-u", f"{job.unit}.service") == ["/dev/pts/0", "x", "y"]


@pytest.mark.parametrize("mode", ["journal", "null"])
def test_a_terminal_that_nobody_would_see_is_refused(rig: Rig, mode: str) -> None:
    job = Job(rig, "init", "true", terminal=True)
    job.fifos("stdin", "stdout")
    job.streams["options"] = wish(log=mode)
    with pytest.raises(ShimError) as caught:
        job.begin()
    code, text = caught.value.code, str(caught.value)
    assert code == INVALID
    assert f"log '{mode}' with a terminal" in text and "log 'both'" in text


# --- lines


def test_priorities_are_settable_and_a_line_may_have_its_own(rig: Rig, host: Host) -> None:
    begun = since(host)
    spec = spec_of("sh", "-c", "echo out; echo '<2>alert'; echo err >&2")
    spec["annotations"] = {"io.sdshim.log-stderr-priority": "warning", "io.sdshim.name": "shown"}
    bundle = rig.bundle("box", spec=spec)
    options = wish(log_stdout_priority="notice", log_stderr_priority="crit")
    rig.call("Create", id="box", bundle=bundle.path, options=options)
    rig.call("Start", id="box")
    rig.call("Wait", id="box")
    rig.call("Delete", id="box")
    found = entries(host, begun, "CONTAINER_NAME=shown")
    priorities = sorted((str(entry["MESSAGE"]), entry["PRIORITY"]) for entry in found)
    assert priorities == [("alert", "2"), ("err", "4"), ("out", "5")]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in found} == {"shown"}


def test_a_long_line_is_parts_that_say_so(rig: Rig, host: Host) -> None:
    begun = since(host)
    rig.running("box", "sh", "-c", "printf '%050000d\\n' 7; echo short")
    rig.call("Wait", id="box")
    rig.call("Delete", id="box")
    *parts, short = entries(host, begun, "CONTAINER_ID=box")
    assert "".join(str(part["MESSAGE"]) for part in parts) == "7".rjust(50000, "0")
    assert len({part["CONTAINER_PARTIAL_ID"] for part in parts}) == 1
    assert [part["CONTAINER_PARTIAL_ORDINAL"] for part in parts] == ["1", "2", "3", "4"]
    marks = [part.get("CONTAINER_PARTIAL_MESSAGE") for part in parts]
    assert marks == ["true", "true", "true", None]
    assert short["MESSAGE"] == "short" and "CONTAINER_PARTIAL_ID" not in short


@both
def test_a_user_who_is_not_root_opens_its_streams_again(rig: Rig, host: Host, where: str) -> None:
    begun = since(host)
    job = Job(rig, where, "sh", "-c", "id -u; echo a >/proc/self/fd/1; echo b >/proc/self/fd/2")
    job.set(user={"uid": 1000, "gid": 1000})
    assert job.run() == 0
    job.call("Delete")
    assert texts(host, begun, "-u", f"{job.unit}.service") == ["1000", "a", "b"]


# --- where it is configured


@pytest.mark.roots("self")
def test_daemon_and_containerd_namespaces_are_configured(
    rig: Rig, host: Host, configured: Callable[[str], None]
) -> None:
    configured('log = "both"\n[namespaces.default]\nlog_stdout_priority = "notice"\n')
    begun = since(host)
    job = Job(rig, "init", "echo", "hello")
    job.fifos("stdout", "stderr")
    job.run()
    job.call("Delete")
    assert job.bundle.read("stdout") == b"hello\n"
    (found,) = entries(host, begun, "CONTAINER_ID=box")
    assert (found["MESSAGE"], found["PRIORITY"]) == ("hello", "5")
    shown = host.run(["sdshim", "config"]).stdout
    assert 'log = "both"' in shown and '[namespaces."default"]' in shown


def test_a_log_namespace_has_its_own_journal(rig: Rig, host: Host) -> None:
    unit = "systemd-journald@apart.socket"
    bundle = rig.bundle("box", "sh", "-c", "echo apart; printf tail")
    options = wish(log_namespace="apart")
    code, text = rig.refused("Create", id="box", bundle=bundle.path, options=options)
    assert code == PRECONDITION
    assert f"{unit} is not active" in text
    (first, second) = text.partition("(hint: ")[2].rstrip(")").split(" && ")
    host.run(first.split())
    host.run(second.split())
    try:
        rig.call("Create", id="box", bundle=bundle.path, options=options)
        rig.call("Start", id="box")
        rig.call("Wait", id="box")
        rig.call("Delete", id="box")
        host.run(["journalctl", "--namespace=apart", "--sync"])
        argv = ["journalctl", "--namespace=apart", "-o", "cat", "-u", "sdshim-default-box.service"]
        assert host.run(argv).stdout.split() == ["apart", "tail"]
        assert not entries(host, "-u", "sdshim-default-box.service", "MESSAGE=apart")
    finally:
        host.path(f"/etc/systemd/system/sdshim.target.wants/{unit}").unlink()
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "stop", unit, "systemd-journald@apart.service"])


# --- the pump


@pytest.mark.roots("self")
@pytest.mark.cgroup("v2")
def test_the_pump_is_there_only_while_something_comes(rig: Rig, host: Host) -> None:
    def pump() -> str:
        return str(host.run(["systemctl", "show", "-P", "ActiveState", PUMP]).stdout).strip()

    begun = since(host)
    eventually(lambda: pump() == "inactive", "nothing comes", timeout=30)
    script = "read x; echo 1; read x; echo 2"
    job = Job(rig, "init", "sh", "-c", script, options=wish(log="journal"))
    job.fifos("stdin")
    job.start()
    stdin = job.open_stdin()
    assert pump() == "inactive"
    os.write(stdin, b"\n")
    eventually(lambda: texts(host, begun, "CONTAINER_ID=box") == ["1"], "the first line")
    assert pump() == "active"
    eventually(lambda: pump() == "inactive", "nothing more comes", timeout=30)
    os.write(stdin, b"\n")
    os.close(stdin)
    job.wait()
    job.call("Delete")
    assert texts(host, begun, "CONTAINER_ID=box") == ["1", "2"]


# --- the daemon's own log


def test_each_operation_is_a_line_with_fields_in_the_journal_and_one_in_the_bundles_log(
    rig: Rig, host: Host
) -> None:
    begun = since(host)
    bundle = rig.bundle("box", "sh", "-c", "exit 7")
    os.mkfifo(bundle.outside / "log")
    rig.call("Create", id="box", bundle=bundle.path)  # nobody reads it: nobody waits
    bundle.attach("log")
    rig.call("Start", id="box")
    rig.call("Wait", id="box")
    rig.call("Delete", id="box")
    host.run(["journalctl", "--sync"])
    argv = ["journalctl", begun, "-o", "json", "_SYSTEMD_UNIT=sdshim.service", "CONTAINER_ID=box"]
    lines = [json.loads(line) for line in host.run(argv).stdout.splitlines()]
    found = {line["SDSHIM_OPERATION"]: line for line in lines if "SDSHIM_OPERATION" in line}
    assert {"Create", "Start", "Wait", "Delete"} <= found.keys()
    for line in found.values():
        assert line["CONTAINER_NAMESPACE"] == "default"
        assert line["UNIT"] == "sdshim-default-box.service"
        assert line["SDSHIM_STATUS"] == "0" and float(line["DURATION_MS"]) > 0
    (exit,) = [line for line in lines if "SDSHIM_EXIT_STATUS" in line]
    assert exit["SDSHIM_EXIT_STATUS"] == "7"
    said = os.read(bundle.ends["log"], 1 << 16).decode().splitlines()
    words = ["Start: default/box: ok in", "exited with status 7", "Delete: default/box: ok in"]
    assert all(any(word in line for line in said) for word in words)
    assert all(line.startswith('time="') and "level=info msg=" in line for line in said)


def test_a_bundles_log_without_room_costs_the_line_only(rig: Rig) -> None:
    bundle = rig.bundle("box", "true")
    os.mkfifo(bundle.outside / "log")
    bundle.attach("log")
    full = os.open(bundle.outside / "log", os.O_WRONLY | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.close(full)
    rig.call("Create", id="box", bundle=bundle.path)
    rig.call("Start", id="box")
    assert rig.call("Wait", id="box").exit_status == 0
    rig.call("Delete", id="box")
    assert not os.read(bundle.ends["log"], 1 << 20).strip(b"\0")
