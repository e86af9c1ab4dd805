"""Running one command of the OCI runtime from the event loop, so that it outlives the daemon.

posix_spawn, a pidfd in the loop, waitid: no thread, no pipe. stdin is /dev/null, stdout and stderr
go to a file of the state folder: a pipe of ours would kill the child with SIGPIPE when the daemon
dies (design 5). The daemon's unit has KillMode=process, so the child lives to its end; a lock file
inherited by it tells the next daemon when that is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCK_FD = 3
"""Where the inherited lock sits in the child."""
NO_INPUT = Path("/dev/null")


def find(binary: str, what: str = "OCI runtime") -> str:
    """Absolute path of a program. Raises NotFound in the words Go's exec would use."""
    path = shutil.which(binary)
    if path is None:
        place = "executable file not found in $PATH"
        if "/" in binary:
            there = os.access(binary, os.F_OK)
            place = "permission denied" if there else "no such file or directory"
        option = "BinaryName" if what == "OCI runtime" else "CriuPath"
        raise NotFound(
            f'{what} "{binary}" cannot be run: exec: "{binary}": {place}',
            hint=f"install it, or name another in the runtime options ({option})",
        )
    return path


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment less what is meant for the daemon alone: OCI hooks inherit it."""
    private = (
        "CREDENTIALS_DIRECTORY",
        "FDSTORE",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LISTEN_",
        "MEMORY_PRESSURE_",
        "NOTIFY_",
        "OTEL_",
        "RUNTIME_DIRECTORY",
        "SYSTEMD_EXEC_PID",
        "WATCHDOG_",
    )
    return {k: v for k, v in environ.items() if not k.startswith(private)}


async def run(
    argv: list[str],
    environment: Mapping[str, str],
    output: Path,
    *,
    lock_fd: int | None = None,
    stdin: Path = NO_INPUT,
) -> int:
    """Run `argv` to its end; its output replaces what `output` held. Returns the exit status,
    128+signal when it was killed. Cancelling stops the wait, never the child.

    Raises Unavailable when the child cannot be started (no memory, no descriptors).
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, str(stdin), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if lock_fd is not None:
        actions.append((os.POSIX_SPAWN_DUP2, lock_fd, LOCK_FD))
    try:
        pid = os.posix_spawn(  # noqa: ASYNC221 (returns at exec, the wait is on a pidfd)
            argv[0], argv, dict(environment), file_actions=actions, setpgroup=0
        )
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise Unavailable(f"cannot run {argv[0]}", cause=str(error)) from error
    return await _wait(pidfd)


async def _wait(pidfd: int) -> int:
    """Wait for a child by its pidfd, and reap it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def reap() -> None:
        loop.remove_reader(pidfd)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        if result is None or ended.done():
            return
        killed = result.si_code != os.CLD_EXITED
        ended.set_result(result.si_status + (128 if killed else 0))

    loop.add_reader(pidfd, reap)
    return await ended
