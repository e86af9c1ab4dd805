"""`delete` in full: end what is left of the bundle's incarnation and say how it ended.

containerd kills this program after 5 s, and waits for it in every task delete. So: the daemon is
asked for at most 3 s; when it is gone, hung or fails, cleanup.py does the work without it.
"""

from __future__ import annotations

import contextlib
import os
import time

from sdshim.launcher import control
from sdshim.launcher.cmdline import Flags, run_dir, write_file
from sdshim.launcher.wire import Message, delete_response, encode

BUDGET = 4.4
"""Seconds from this program's start; the rest of containerd's 5 s is for starting interpreters."""
ASK = 3.0
KILLED = 128 + 9
_TOKEN_LENGTH = 32


def delete(flags: Flags, begin: float) -> bytes:
    """The serialized DeleteResponse for stdout."""
    bundle = os.path.abspath(flags["bundle"] or ".")
    answer = _read(f"{bundle}/sdshim.deleted")
    if answer:
        return answer
    token = _read(f"{bundle}/sdshim.token").decode(errors="replace").strip()
    if len(token) != _TOKEN_LENGTH or set(token) - set("0123456789abcdef"):
        # Create never reached the daemon
        from sdshim.launcher.mounts import unmount_below

        unmount_below(f"{bundle}/rootfs", begin + BUDGET)
        return delete_response(0, KILLED, time.time_ns())
    answer = _ask_daemon(flags, token, bundle, begin + ASK)
    if not answer:
        from sdshim.launcher.cleanup import Incarnation

        incarnation = Incarnation(flags["namespace"], flags["id"], token, bundle)
        answer = incarnation.end(begin + BUDGET)
    with contextlib.suppress(OSError):  # it only spares a second delete the work
        write_file(f"{bundle}/sdshim.deleted", answer)
    return answer


def _ask_daemon(flags: Flags, token: str, bundle: str, deadline: float) -> bytes:
    """The daemon's answer; empty when there is none to be had."""
    request = encode((1, flags["namespace"]), (2, flags["id"]), (3, token), (4, bundle))
    try:
        answer = control.call(run_dir(), "Cleanup", request, deadline)
        Message(answer)
    except (control.CallFailed, ValueError):
        return b""
    return answer


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
