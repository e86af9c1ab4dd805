"""From the arguments to the action; one clear line on stderr when it fails."""

from __future__ import annotations

import os
import sys

from sdshim.launcher.cmdline import NAME, USAGE, Fault, Flags, parse


def run(arguments: list[str], begin: float) -> int:
    """Run one launcher call that began at `begin` (monotonic seconds); its exit status."""
    try:
        flags = parse(arguments)
        if flags.help:
            _out(USAGE.encode())
            return 0
        _out(_act(flags, begin))
    except Fault as fault:
        sys.stderr.write(f"{NAME}: {fault}\n")
        return 1
    return 0


def _act(flags: Flags, begin: float) -> bytes:
    if flags.version or flags.info:
        from sdshim.launcher import info

        return info.version_text() if flags.version else info.runtime_info(_in())
    if flags.action == "start":
        from sdshim.launcher import start

        handed = os.environb.get(b"SDSHIM_STDIN")  # what the sh launcher had read already
        data = _in() if handed is None else handed
        return start.start(flags, data, cut=handed is not None)
    from sdshim.launcher import delete

    return delete.delete(flags, begin)


def _in() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():  # run by a person
        return b""
    return sys.stdin.buffer.read()


def _out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
