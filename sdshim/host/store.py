"""State on disk: one folder per task incarnation, /run/sdshim/t/<ns>/<id>/<token>/.

`task.json` is the record (core/record.py), replaced atomically, on a full disk too (reserve.py);
beside it lie the files of the unit (init.pid, exit, stderr, runtime.log). /run is a tmpfs: it
outlives every death but the machine's, so nothing is fsynced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import exitrecord, record
from sdshim.core.errors import Internal, ShimError, scarce
from sdshim.core.points import nowhere
from sdshim.host.reserve import Reserve, no_room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdshim.core.exitrecord import ExitRecord
    from sdshim.core.model import ExitStatus, Identity
    from sdshim.core.points import Crash
    from sdshim.core.record import Record

RECORD = "task.json"
EXIT = "exit"
STDERR = "stderr"
LOGGER_STDERR = "log.stderr"
RUNTIME_LOG = "runtime.log"
RUNTIME_COMMAND = "runtime"
INIT_PID, EXEC_PID, MAIN_PID = "init.pid", "exec.pid", "main.pid"
PROCESS_SPEC = "process.json"
OOM = "oom"
"""The file with the cgroup's count of OOM kills, copied by the exit hook."""
KILLED = "killed"
"""The count of OOM kills when a client sent SIGKILL: an end by that is not theirs."""
MAX_PID = 1 << 22
"""The most that Linux gives."""
CLEANED = "cleaned"
"""Written by the launcher's `delete` when it had to clean up without the daemon."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A state folder whose record cannot be read."""

    folder: Path
    error: ShimError


class Store:
    """The state folders below `root` (default /run/sdshim/t)."""

    def __init__(self, root: Path, crash: Crash = nowhere) -> None:
        self.root = root
        self._crash = crash
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.reserve = Reserve(root.with_name("reserve"))

    def folder(self, me: Identity) -> Path:
        """Where the incarnation's files are."""
        return Path(self._place(me))

    def _place(self, me: Identity) -> str:
        """The same as text: joined piece by piece, Paths would be a good part of all work here."""
        if me.exec_id:
            task = f"{self.root}/{me.namespace}/{me.id}/{me.task_token}"
            return f"{task}/x/{me.exec_id}/{me.token}"
        return f"{self.root}/{me.namespace}/{me.id}/{me.token}"

    def make(self, me: Identity) -> Path:
        """Make the folder; an earlier daemon may have done so for the same call.

        Raises ResourceExhausted when /run has no room.
        """
        folder = self.folder(me)
        try:
            _make_private(folder)
        except OSError as error:
            raise no_room(folder, error) from error
        self._crash("state.made")
        return folder

    def write(self, entry: Record) -> None:
        """Commit a record: after this the next daemon knows it. Raises ResourceExhausted."""
        self.put(entry.identity, RECORD, record.encode(entry))

    def put(self, me: Identity, name: str, data: bytes) -> None:
        """Write one file of the incarnation atomically."""
        self.reserve.replace(f"{self._place(me)}/{name}", data)
        self._crash("state.written")

    def has(self, me: Identity, name: str) -> bool:
        """Whether the incarnation has a file of that name."""
        return os.access(f"{self._place(me)}/{name}", os.F_OK)

    def drop(self, me: Identity, name: str) -> None:
        """Remove one file of the incarnation."""
        (self.folder(me) / name).unlink(missing_ok=True)

    def rewind(self, me: Identity) -> None:
        """Forget a run that came to nothing: it may be started again."""
        files = (EXIT, INIT_PID, EXEC_PID, MAIN_PID, STDERR, LOGGER_STDERR, RUNTIME_LOG)
        for name in files:
            (self.folder(me) / name).unlink(missing_ok=True)

    def remove(self, me: Identity) -> None:
        """Forget the incarnation: the record goes first, so that a cut here leaves no half task."""
        folder = self.folder(me)
        (folder / RECORD).unlink(missing_ok=True)
        self._crash("state.removed")
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, folder.parent.parent):
            try:
                parent.rmdir()
            except OSError:
                break

    def load(self) -> Iterator[Record | Broken]:
        """Every record on disk, tasks before execs, and every folder whose record is unusable."""
        for folder in (*sorted(self.root.glob("*/*/*")), *self.root.glob("*/*/*/x/*/*")):
            try:
                yield self._load(folder)
            except FileNotFoundError:
                # Cut while it was made or removed: nothing else of that incarnation exists.
                shutil.rmtree(folder, ignore_errors=True)
            except ShimError as error:
                yield Broken(folder, error)
        self._prune()

    def _load(self, folder: Path) -> Record:
        found = record.decode((folder / RECORD).read_bytes())
        if self.folder(found.identity) != folder:  # what is done to it would be done to another
            raise Internal(f"state file of {found.identity.unit} in the folder of another")
        return found

    def _prune(self) -> None:
        """Remove the empty folders of a removal that was cut."""
        for pattern in ("*/*/*/x/*", "*/*/*/x", "*/*", "*"):
            for folder in self.root.glob(pattern):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def exit_record(self, me: Identity) -> tuple[ExitRecord, ExitStatus] | None:
        """What the exit hook left, with its time (the file's mtime); None when there is nothing."""
        path = self.folder(me) / EXIT
        try:
            text = path.read_text(errors="replace")
            found = exitrecord.parse_record(text)
            return (found, found.exit_status(path.stat().st_mtime_ns)) if found else None
        except OSError as error:
            if scarce(error):  # it may be there
                raise
            return None

    def was_cleaned(self, me: Identity) -> bool:
        """Whether the launcher's `delete` ended and removed the container without us."""
        return self.has(me, CLEANED)

    def text(self, me: Identity, name: str) -> str:
        """The first 16 KiB of a file of the incarnation; empty when it is missing."""
        return read_text(f"{self._place(me)}/{name}")

    def pid(self, me: Identity) -> int:
        """The pid that the OCI runtime wrote, 0 when there is none yet."""
        return self._number(me, EXEC_PID if me.exec_id else INIT_PID)

    def main_pid(self, me: Identity) -> int:
        """The unit's main process: init itself, or the subreaper of an exec."""
        return self._number(me, MAIN_PID if me.exec_id else INIT_PID)

    def _number(self, me: Identity, name: str) -> int:
        text = self.text(me, name)
        pid = exitrecord.number(text)
        return pid if pid <= MAX_PID else 0


def _make_private(folder: Path) -> None:
    """Like mkdir(parents=True), whose parents would be everybody's to read."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def read_text(path: str | Path) -> str:
    """The first 16 KiB of a file; empty when it is missing. Raises OSError when that cannot be told
    for want of descriptors."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, 16 << 10).decode(errors="replace").strip()
        finally:
            os.close(file)
    except OSError as error:
        if scarce(error):
            raise
        return ""
