"""What is in the journal of a host: the output of containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sdshim.pb import options_pb2
from sdshim.pb.wellknown import pack

if TYPE_CHECKING:
    from tests.host import Host

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
