"""End one incarnation of a task without the daemon.

Order: lock, kill by the unit (never stop: that waits), the exit record, the OCI runtime's state,
mounts, the unit's failed state, its loggers (a stop that nobody waits for: they have 12 s to write
what they hold). Only a unit whose environment carries our token is touched: the
same id may already belong to a newer task. The state directory stays; the daemon, when it is
back, finds `cleaned` there with the answer that containerd got.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from typing import BinaryIO

from sdshim.launcher import cgroups
from sdshim.launcher.cmdline import Fault, run_dir, write_file
from sdshim.launcher.delete import KILLED
from sdshim.launcher.mounts import unmount_below
from sdshim.launcher.wire import delete_response

_LOCK_WAIT = 0.5
_EXIT_WAIT = 1.0
_SYSTEMCTL_WAIT = 0.6
_TRANSIENT = "/run/systemd/transient"
_RECORD = "task.json"
"""The daemon's record of the task (host/store.py)."""
_LOGGER = ":log.service"
_OURS, _GONE, _FOREIGN = "ours", "gone", "foreign"


class Incarnation:
    """One Create of a task: namespace, id and the token of that Create."""

    def __init__(self, namespace: str, task_id: str, token: str, bundle: str) -> None:
        self.namespace = namespace
        self.id = task_id
        self.token = token
        self.bundle = bundle
        self.unit = f"sdshim-{namespace.replace('-', ':')}-{task_id}.service"
        self.state = f"{run_dir()}/t/{namespace}/{task_id}/{token}"
        self.cgroup = ""
        self.active = False
        self.deadline = 0.0

    def end(self, deadline: float) -> bytes:
        """Do it all before `deadline` (monotonic); the serialized DeleteResponse."""
        self.deadline = deadline
        with self._locked():
            answer = _read(f"{self.state}/cleaned").encode("latin-1")
            return answer or self._end()

    def _end(self) -> bytes:
        owner = self._unit_owner()
        if owner == _OURS:
            self._kill()
            self._wait_for_exit(_EXIT_WAIT)
        if owner == _OURS or (owner == _GONE and self._runtime_state_is_ours()):
            self._runtime_delete()
            self._wait_for_exit(_EXIT_WAIT / 4)  # cgroup v1: a frozen one died only just now
        unmount_below(f"{self.bundle}/rootfs", self.deadline)
        self._end_fuse()
        if owner == _OURS:
            self._systemctl("reset-failed", self.unit)
        self._stop_loggers()
        answer = delete_response(*self._exit())
        self._tell_daemon(answer)
        return answer

    def _tell_daemon(self, answer: bytes) -> None:
        """Leave the answer beside the record. A slow daemon may have removed the task meanwhile:
        it takes the record away first, so without one the folder is nobody's any more."""
        try:
            write_file(f"{self.state}/cleaned", answer)
        except OSError:  # the folder has gone, or there is no room
            return
        if not os.path.exists(f"{self.state}/{_RECORD}"):
            import shutil

            shutil.rmtree(self.state, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(self.state))
                os.rmdir(os.path.dirname(os.path.dirname(self.state)))

    def _locked(self) -> contextlib.ExitStack:
        """The state's lock; after a moment without it too, since every step may be done twice."""
        stack = contextlib.ExitStack()
        until = time.monotonic() + _LOCK_WAIT
        try:
            lock = stack.enter_context(open(f"{self.state}/lock", "ab"))  # noqa: SIM115
        except OSError:
            return stack
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.02)
        return stack

    # The unit

    def _unit_owner(self) -> str:
        names = ("LoadState", "ActiveState", "Environment", "ControlGroup")
        shown = self._systemctl("show", *(f"--property={name}" for name in names), self.unit)
        if shown is None:  # no answer from systemd: its own file tells the same
            shown = _read(f"{_TRANSIENT}/{self.unit}")
            if not shown:
                return _GONE
        found = dict(line.partition("=")[::2] for line in shown.splitlines())
        if f"SDSHIM_TOKEN={self.token}" not in shown:
            return _GONE if found.get("LoadState") == "not-found" else _FOREIGN
        self.cgroup = found.get("ControlGroup", "")
        if "Slice" in found:
            self.cgroup = cgroups.of_unit(found["Slice"], self.unit)
        self.active = found.get("ActiveState") not in ("inactive", "failed")
        return _OURS

    def _kill(self) -> None:
        if self._systemctl("kill", "--kill-whom=all", "-s", "KILL", self.unit) is not None:
            return
        if not self.cgroup:  # it is inactive, or systemd did not answer
            return
        cgroups.kill(self.cgroup)
        if cgroups.populated(self.cgroup):
            raise Fault(
                f"{self.unit}: cannot kill its processes: systemctl failed, cgroup {self.cgroup}"
                f" is still populated (hint: systemctl status {self.unit})"
            )

    def _stop_loggers(self) -> None:
        """Of the task and of its execs, by the task's token in systemd's own files."""
        stem = f"{self.unit.removesuffix('.service')}:"
        try:
            names = os.listdir(_TRANSIENT)
        except OSError:
            return
        loggers = [name for name in names if name.startswith(stem) and name.endswith(_LOGGER)]
        mine = f"SDSHIM_TASK={self.token}"
        found = [name for name in loggers if mine in _read(f"{_TRANSIENT}/{name}")]
        if found:
            self._systemctl("stop", "--no-block", *found)

    def _systemctl(self, *arguments: str) -> str | None:
        """What systemctl prints, or None when it fails, does not come back, or has no time."""
        timeout = min(_SYSTEMCTL_WAIT, self.deadline - time.monotonic())
        if timeout <= 0:
            return None
        try:
            done = subprocess.run(
                ["systemctl", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return None if done.returncode else done.stdout.decode(errors="replace")

    def _end_fuse(self) -> None:
        """The programs of FUSE mounts end after the umount; one that served none needs a word."""
        stem = f"{self.unit.removesuffix('.service')}::fuse-"
        with contextlib.suppress(OSError):
            scopes = [name for name in os.listdir(_TRANSIENT) if name.startswith(stem)]
            ours = [name for name in scopes if name.endswith(f"-{self.token[:8]}.scope")]
            if ours:
                self._systemctl("stop", "--no-block", *ours)

    # How it ended

    def _wait_for_exit(self, seconds: float) -> None:
        until = min(self.deadline - 0.5, time.monotonic() + seconds)
        while (
            self.active
            and not _read(f"{self.state}/exit").endswith("\n")
            and time.monotonic() < until
        ):
            time.sleep(0.01)

    def _exit(self) -> tuple[int, int, int]:
        """Pid, status and time (ns) from the exit hook's record; 137 and now without one."""
        record = _read(f"{self.state}/exit")
        status, recorded_pid = parse_exit(record)
        pid = recorded_pid or self._pid_file()
        if status is None:
            return pid, KILLED, time.time_ns()
        return pid, status, os.stat(f"{self.state}/exit").st_mtime_ns

    def _pid_file(self) -> int:
        for path in (f"{self.state}/init.pid", f"{self.bundle}/init.pid"):
            if pid := _number(_read(path).strip()):
                return pid
        return 0

    # The OCI runtime

    def _runtime(self) -> list[str]:
        """The runtime's command as the daemon recorded it; runc's default without a record."""
        with contextlib.suppress(ValueError):
            command = json.loads(_read(f"{self.state}/runtime"))
            if isinstance(command, list) and command and all(isinstance(c, str) for c in command):
                return command
        return ["runc", "--root", f"/run/containerd/runc/{self.namespace}"]

    def _runtime_state_is_ours(self) -> bool:
        """Whether the runtime knows the id with our bundle (runc: state.json, crun: status)."""
        root = runtime_root(self._runtime())
        text = _read(f"{root}/{self.id}/state.json") or _read(f"{root}/{self.id}/status")
        names = {self.bundle, os.path.realpath(self.bundle)}
        return any(f"{name}{end}" in text for name in names for end in ('"', "/", "\\/"))

    def _runtime_delete(self) -> None:
        for _ in range(2):  # the first may race with systemd's removal of the cgroups
            status = self._run_runtime("delete", "--force", self.id)
            if status in (0, None):
                return
        sys.stderr.write(f"OCI runtime delete failed, see {self.state}/cleanup.log\n")

    def _run_runtime(self, *arguments: str) -> int | None:
        """Exit status; None when it still runs as time is over: it is left to finish its work."""
        timeout = self.deadline - 0.3 - time.monotonic()
        if timeout <= 0:
            return None
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        try:
            with self._log() as log:
                child = subprocess.Popen(
                    [*self._runtime(), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            sys.stderr.write(f"cannot run {self._runtime()[0]}: {error.strerror}\n")
            return None
        try:
            return child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def _log(self) -> BinaryIO:
        """Where the runtime writes: never the streams that containerd reads to their end."""
        try:
            return open(f"{self.state}/cleanup.log", "ab")
        except OSError:
            return open(os.devnull, "ab")


def runtime_root(command: list[str]) -> str:
    """Value of ``--root`` in a runtime's command."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == "--root":
            return following
        if word.startswith("--root="):
            return word.removeprefix("--root=")
    return "/run/runc"


def parse_exit(record: str) -> tuple[int | None, int]:
    """(status, pid) of ``INVOCATION_ID PID SERVICE_RESULT EXIT_CODE EXIT_STATUS`` and a newline.

    The status is None when the line is missing or cut, or no main process ended.
    """
    line, newline, _ = record.partition("\n")
    fields = line.split(" ")
    if not newline or len(fields) != 5:
        return None, 0
    pid = _number(fields[1])
    code, status = fields[3:]
    if code == "exited" and (status == "0" or _number(status)):
        return _number(status) & 0xFF, pid
    if code in ("killed", "dumped"):
        number = _signal_number(status)
        return (128 + number if number else None), pid
    return None, pid


def _signal_number(name: str) -> int:
    import signal  # subprocess has loaded it already

    base, _, offset = name.partition("+")
    if base == "RTMIN":
        number = signal.SIGRTMIN + _number(offset)
    elif f"SIG{name}" in signal.Signals.__members__:
        number = signal.Signals[f"SIG{name}"]
    else:
        number = _number(name)
    return number if number <= signal.SIGRTMAX else 0


def _number(text: str) -> int:
    """0 for what is no number, or more than any of ours can be."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 11 else 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="latin-1", newline="") as file:
            return file.read()
    except OSError:
        return ""
