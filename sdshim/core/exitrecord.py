"""The exit hook's record and systemd's exit facts → an ExitStatus.

The record is one line ended by a newline, `INVOCATION_ID PID SERVICE_RESULT EXIT_CODE EXIT_STATUS`,
`-` for what systemd did not set (units 4). A line without its newline does not count: the hook
was cut while it wrote.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace

from sdshim.core.model import EXIT_UNKNOWN, ExitStatus

CLD_EXITED, CLD_KILLED, CLD_DUMPED = 1, 2, 3
"""Values of ExecMainCode (waitid's si_code)."""
_NUMBER = re.compile("[0-9]{1,10}")
OOM_KILL = "oom-kill"
"""systemd's word for a unit's end by the kernel's OOM killer; the exit hook writes it too."""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """What the exit hook of a unit left behind."""

    invocation_id: str
    pid: int
    result: str
    code: str
    """``exited``, ``killed``, ``dumped`` or empty: there was no main process."""
    status: str

    @property
    def had_process(self) -> bool:
        """True when the unit had a main process that ended (EXIT_CODE was set)."""
        return bool(self.code)

    def exit_status(self, time_ns: int) -> ExitStatus:
        """The exit as containerd counts it; 255 when there is nothing to tell it from."""
        return ExitStatus(_status(self.code, self.status), time_ns, self.result)


def number(text: str) -> int:
    """The number in a small file of ours, 0 when there is none; whatever else is in it.
    (str.isdigit() takes what int() does not, and int() refuses thousands of digits.)"""
    return int(text) if _NUMBER.fullmatch(text) else 0


def _status(code: str, status: str) -> int:
    if code == "exited" and _NUMBER.fullmatch(status):
        return int(status) & 0xFF
    if code in ("killed", "dumped"):
        killed_by = signal_number(status)
        return 128 + killed_by if killed_by else EXIT_UNKNOWN
    return EXIT_UNKNOWN


def signal_number(name: str) -> int:
    """Number of a signal by name without SIG (``KILL``, ``RTMIN+3``) or digits; 0 if unknown."""
    base, plus, offset = name.removeprefix("SIG").partition("+")
    if base == "RTMIN" and plus:
        found = signal.SIGRTMIN + number(offset)
    elif known := signal.Signals.__members__.get(f"SIG{base}"):
        found = int(known)
    else:
        found = number(name)
    return found if found <= signal.SIGRTMAX else 0


def parse_record(text: str) -> ExitRecord | None:
    """The record in `text`, or None when it is missing, cut or malformed."""
    line, newline, _ = text.partition("\n")
    fields = line.split(" ")
    if not newline or len(fields) != 5:
        return None
    invocation, pid, result, code, status = ("" if f == "-" else f for f in fields)
    return ExitRecord(invocation, number(pid), result, code, status)


def from_systemd(code: int, status: int, time_ns: int) -> ExitStatus | None:
    """ExecMainCode/ExecMainStatus as an ExitStatus; None while the process has not ended."""
    if code == CLD_EXITED:
        return ExitStatus(status & 0xFF, time_ns)
    if code in (CLD_KILLED, CLD_DUMPED):
        return ExitStatus(128 + status, time_ns)
    return None


def from_wait_status(status: int, time_ns: int) -> ExitStatus:
    """What waitpid(2) gave as an ExitStatus: the signal in the lowest 7 bits (above it if there
    was a core dump), or else the status in the byte above."""
    killed_by = status & 0x7F
    return ExitStatus(128 + killed_by if killed_by else status >> 8 & 0xFF, time_ns)


def blamed(exit: ExitStatus, kills: int) -> ExitStatus:
    """The exit with `oom-kill` as its reason, if it was by SIGKILL and the kernel has killed in the
    container for want of memory: nobody tells whom it has killed, CRI judges alike (protocol 10.2).
    """
    killed = exit.status == 128 + signal.SIGKILL
    return replace(exit, reason=OOM_KILL) if killed and kills > 0 else exit
