"""`start` in full: make sure that the namespace's socket exists, then answer the caller.

The daemon listens on one socket per containerd namespace and makes it when asked (Control.Listen).
The bundle (the working directory) gets `address`, which containerd 1.6 and 1.7 read at reload, and
`sdshim.start`, `key=value` lines that tell the daemon which containerd wants this task's events,
and what it gives to its children (`nofile`: their soft limit of open files).
"""

from __future__ import annotations

import os
import resource
import time

from sdshim.launcher import control
from sdshim.launcher.cmdline import Fault, Flags, run_dir, write_file
from sdshim.launcher.wire import Message, encode

_PATIENCE = (
    10.0  # socket activation after an upgrade's restart takes a second or two on a busy host
)
_DEBUG = -4
_EXTENSIONS = 8  # the only field that may hold NULs, which the sh launcher loses
_HINT = "systemctl start sdshim.socket; journalctl -u sdshim"


def start(flags: Flags, stdin: bytes, *, cut: bool = False) -> bytes:
    """The bytes for stdout; `cut` when the sh launcher read `stdin`, not to its end or not all."""
    params = bootstrap_params(stdin, flags["id"], flags["namespace"], cut=cut)
    address = _listen(flags["namespace"])
    facts = _facts(flags, params)
    lines = "".join(f"{key}={value}\n" for key, value in facts.items())
    for key, value in facts.items():
        if "\n" in value:
            raise Fault(f"{key} contains a newline: {value!r}")
    try:
        write_file("address", address.encode(errors="surrogateescape"))
        write_file("sdshim.start", lines.encode(errors="surrogateescape"))
    except OSError as error:
        bundle = os.getcwd()
        raise Fault(f"cannot write into the bundle {bundle}: {error.strerror}") from None
    if params is None:
        return address.encode()
    return encode((1, 3), (2, address), (3, "ttrpc"))


def bootstrap_params(stdin: bytes, task_id: str, namespace: str, *, cut: bool) -> Message | None:
    """containerd 2.3's BootstrapParams, or None for an older caller's options Any or nothing.

    Each message can be read as the other. An Any's type URL would have to be this very id, its
    value this very namespace, and containerd's own fields 4 to 7 would have to follow.
    """
    try:
        message = Message(stdin, before=_EXTENSIONS if cut else 0)
    except ValueError:
        return None
    same = message.text(1) == task_id and message.text(2) == namespace
    return message if same and any(message.data(n) for n in (4, 5, 6, 7)) else None


def _facts(flags: Flags, params: Message | None) -> dict[str, str]:
    env = os.environ
    told = params or Message(b"")
    debug = flags.debug or told.number(3) <= _DEBUG
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return {
        "namespace": flags["namespace"],
        "id": flags["id"],
        "ttrpc_address": told.text(5) or env.get("TTRPC_ADDRESS", ""),
        "grpc_address": told.text(6) or flags["address"],
        "publish_binary": told.text(7) or flags["publish-binary"],
        "debug": "1" if debug else "0",
        "sched_core": "1" if env.get("SCHED_CORE") else "0",
        "max_shim_version": env.get("MAX_SHIM_VERSION", ""),
        "runtime_version": told.text(4),
        "answer_version": "3" if params else "2",
        "nofile": "unlimited" if files == resource.RLIM_INFINITY else str(files),
    }


def _listen(namespace: str) -> str:
    """Ask the daemon for the namespace's socket; it may be starting, or restarting, just now."""
    deadline = time.monotonic() + _PATIENCE
    request = encode((1, namespace))
    while True:
        try:
            answer = Message(control.call(run_dir(), "Listen", request, deadline))
            break
        except control.Unreachable as error:
            raise Fault(f"sdshim is not running: {error} (hint: {_HINT})") from None
        except control.Interrupted as error:
            if time.monotonic() + 0.1 > deadline:
                raise Fault(f"sdshim does not stay up: {error} (hint: {_HINT})") from None
            time.sleep(0.05)
        except (control.CallFailed, ValueError) as error:
            raise Fault(
                f"sdshim gave no socket for namespace {namespace}: {error} (hint: {_HINT})"
            ) from None
    address = answer.text(1)
    if not address:
        raise Fault(f"sdshim gave no socket for namespace {namespace}: empty answer")
    return f"unix://{address}" if address.startswith("/") else address
