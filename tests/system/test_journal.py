"""Output of containers and execs in the journal (design 7, docs/logging.md)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import options_pb2
from sdshim.pb.wellknown import pack
from tests.system.jobs import Job, both

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

PUMP = "sdshim.pump.service"


def entries(host: Host, *matches: str) -> list[dict[str, Any]]:
    """What journalctl shows of output, oldest first: all that is sent by now."""
    host.run(["journalctl", "--sync"])
    argv = ["journalctl", "-o", "json", "--all", "--no-pager", *matches]
    lines = [json.loads(line) for line in host.run(argv).stdout.splitlines()]
    # (--after-cursor leaves the first match out when the cursor's own entry is none)
    lines = [line for line in lines if f"--cursor={line['__CURSOR']}" not in matches]
    return [line for line in lines if line.get("_SYSTEMD_UNIT") == PUMP]


def texts(host: Host, *matches: str) -> list[str]:
    """Their messages, of whichever stream."""
    return sorted(str(entry["MESSAGE"]) for entry in entries(host, *matches))


def since(host: Host) -> str:
    """A match for what comes after this moment."""
    host.run(["journalctl", "--sync"])
    shown = host.run(["journalctl", "-n0", "--show-cursor", "--no-pager"]).stdout
    return f"--cursor={shown.rpartition('cursor: ')[2].strip()}"


def wish(**options: Any) -> Any:
    """Options of a task."""
    return pack(options_pb2.Options(**options))


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
