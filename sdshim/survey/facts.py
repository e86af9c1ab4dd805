"""Everything that doctor's checks look at, gathered in one go.

Order: units, then state, then containerd: what is made has its state before its unit and its unit
before its task, what is removed goes the other way round.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import sdshim
from sdshim.core import names
from sdshim.core.errors import PermissionDenied, ShimError
from sdshim.core.lifecycle import Phase
from sdshim.host import cgroup, inventory
from sdshim.pb import control_pb2
from sdshim.survey import containerd, node
from sdshim.ttrpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.config import Config
    from sdshim.core.listing import Entry, UnitFacts
    from sdshim.survey.containerd import View
    from sdshim.survey.node import Kind
    from sdshim.systemd.questions import Questions

SERVICE, SOCKET = names.DAEMON_UNIT, "sdshim.socket"
CONTROL = "sdshim.v1.Control"
TOKEN = "SDSHIM_TOKEN="
ANSWER_S = 3.0
OF_UNITS: tuple[tuple[Kind, str], ...] = (
    ("Service", "Environment"),
    ("Unit", "DropInPaths"),
    ("Unit", "FreezerState"),
)
OF_DAEMON: tuple[tuple[Kind, str], ...] = (
    ("Unit", "LoadState"),
    ("Unit", "ActiveState"),
    ("Unit", "NeedDaemonReload"),
    ("Unit", "DropInPaths"),
    ("Service", "MainPID"),
    ("Service", "NRestarts"),
    ("Service", "NFileDescriptorStore"),
    ("Service", "FileDescriptorStoreMax"),
    ("Service", "ExecMainStartTimestamp"),
)


@dataclass(slots=True)
class Facts:
    """One look at the node."""

    config: Config
    now_ns: int
    entries: list[Entry] = field(default_factory=list)
    units: list[UnitFacts] | None = None
    """None when systemd cannot be asked."""
    helpers: list[UnitFacts] = field(default_factory=list)
    """Units that serve a task: of FUSE programs, mounts of a restore, checkpoints, loggers."""
    bus_error: str = ""
    bus_seconds: float = 0.0
    daemon: dict[str, object] = field(default_factory=dict)
    daemon_error: str = ""
    """Why the daemon, which is active, does not answer."""
    socket_state: str = ""
    views: list[View] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    mounts: list[Path] = field(default_factory=list)
    """Every mount point, the deepest first."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """sdshim's folder below /run."""
        return Path(self.config.run_dir)

    @property
    def tasks(self) -> list[Entry]:
        """Init processes whose record can be read and that are not deleted."""
        return [e for e in self.entries if not e.exec_id and is_live(e)]

    @property
    def daemon_runs(self) -> bool:
        """Whether sdshim.service is active."""
        return self.daemon.get("ActiveState") == "active"

    def unit(self, name: str) -> UnitFacts | None:
        """A loaded unit of ours."""
        return next((unit for unit in self.units or () if unit.name == name), None)

    def known(self, key: names.TaskKey) -> bool:
        """Whether anybody has a task of that name: the disk, a unit that runs, a containerd."""
        unit = self.unit(names.init_unit(key))
        return (
            any(entry.key == key and not entry.exec_id for entry in self.entries)
            or any(key in view.tasks | view.ghosts for view in self.views)
            or (unit is not None and unit.alive)
        )

    @property
    def complete(self) -> bool:
        """Whether systemd and every containerd answered: only then may remains be removed."""
        return self.units is not None and not any(view.error for view in self.views)


def is_live(entry: Entry) -> bool:
    """Whether a record says that there is a process, or was one that is not deleted yet."""
    return entry.record is not None and entry.record.life.phase is not Phase.DELETED


def token_of(unit: UnitFacts) -> str:
    """The token of the Create or Exec that made a unit; empty when it is not of our making."""
    words = unit.properties.get("Environment")
    for word in words if isinstance(words, list) else ():
        if str(word).startswith(TOKEN):
            return str(word).removeprefix(TOKEN)
    return ""


async def gather(config: Config) -> Facts:
    """Look at everything. Raises PermissionDenied when the caller is not root."""
    if os.geteuid():
        text = "the state of sdshim and containerd is for root's eyes only"
        raise PermissionDenied(text, hint="run it as root")
    facts = Facts(config, time.time_ns())
    try:
        async with node.systemd() as questions:
            await _of_systemd(questions, facts)
    except ShimError as error:
        facts.bus_error = str(error)
        facts.units = None
    if facts.daemon_runs:
        facts.daemon_error = await _asked(facts.run_dir)
    facts.entries = node.entries(config)
    facts.acknowledged = inventory.acknowledged(facts.run_dir / "e")
    addresses = {e.record.identity.containerd for e in facts.entries if e.record and is_live(e)}
    # a node may have Docker's containerd only, which is not the configured one
    if not addresses or containerd.is_there(config.containerd_address):
        addresses.add(config.containerd_address)
    facts.views = list(
        await asyncio.gather(*(asyncio.to_thread(containerd.look, a) for a in sorted(addresses)))
    )
    facts.mounts = await asyncio.to_thread(inventory.mounted)
    facts.versions |= await asyncio.to_thread(_versions, facts)
    return facts


async def _of_systemd(questions: Questions, facts: Facts) -> None:
    begun = time.monotonic()
    facts.versions["systemd"] = str(await questions.version())
    facts.bus_seconds = time.monotonic() - begun
    facts.units = await node.units(questions, OF_UNITS)
    facts.helpers = await node.helpers(questions)
    facts.daemon = await node.ask(questions, SERVICE, OF_DAEMON)
    socket = await node.ask(questions, SOCKET, (("Unit", "ActiveState"),))
    facts.socket_state = str(socket.get("ActiveState", ""))


async def _asked(run_dir: Path) -> str:
    """Why the daemon does not answer, empty when it does. Asked is for a namespace's socket that is
    there already, as the launcher does: that changes nothing."""
    served = inventory.namespaces(run_dir / "s")
    if not served:
        return ""
    request = control_pb2.ListenRequest(namespace=served[0]).SerializeToString()
    try:
        async with await Client.connect(str(run_dir / "sdshim.sock"), ANSWER_S) as client:
            await client.call(CONTROL, "Listen", request, timeout=ANSWER_S)
    except ShimError as error:
        return str(error)
    return ""


def _versions(facts: Facts) -> dict[str, str]:
    """Of everything that is worked with; empty for what is not installed."""
    binaries = {"runc", "crun", Path(facts.config.runtime).name}
    binaries |= {e.record.identity.runtime.binary for e in facts.entries if e.record}
    found = {name: program_version([name, "--version"]) for name in sorted(binaries)}
    found["criu"] = program_version(["criu", "--version"])
    for view in facts.views:
        name = "containerd" if len(facts.views) == 1 else f"containerd {view.address}"
        found[name] = view.version
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    found["kernel"] = os.uname().release
    found["cgroup"] = cgroup.describe()
    found["sdshim"] = sdshim.__version__
    return found


def program_version(argv: Sequence[str]) -> str:
    """The first version number that a program prints; empty when it cannot be run."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return match[0] if match else ""


def number(version: str) -> tuple[int, ...]:
    """`1.6.20~ds1` as (1, 6, 20)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
