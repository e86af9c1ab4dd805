"""Running one command of the OCI runtime from the event loop, so that it outlives the daemon.

posix_spawn, a pidfd in the loop, waitid: no thread, no pipe. stdin is /dev/null, stdout and stderr
go to a file of the state folder: a pipe of ours would kill the child with SIGPIPE when the daemon
dies (design 5). The daemon's unit has KillMode=process, so the child lives to its end; a lock file
inherited by it tells the next daemon when that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import NotFound, Unavailable, scarce
from sdshim.core.points import nowhere

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.points import Crash

LOCK_FD = 3
"""Where the inherited lock sits in the child."""
NO_INPUT = Path("/dev/null")
DYING_S = 2.0
"""What a killed process may take to be gone."""
POLL_S = 0.05


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
    seconds: float,
    lock_fd: int | None = None,
    stdin: Path = NO_INPUT,
    program: str = "",
    crash: Crash = nowhere,
) -> int:
    """Run `argv` to its end, from the file `program` if that is another one than argv[0]; its
    output replaces what `output` held. Returns the exit status, 128+signal when it was killed.
    Cancelling stops the wait, never the child.

    Raises TimeoutError when it has not ended after `seconds`: it and its process group have got
    SIGKILL then. Raises ResourceExhausted or Unavailable when the child cannot be started.
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
        pid = os.posix_spawn(  # noqa: ASYNC221 (returns at exec, the wait is bounded below)
            program or argv[0], argv, dict(environment), file_actions=actions, setpgroup=0
        )
    except OSError as error:
        raise scarce(error) or Unavailable(f"cannot run {argv[0]}", cause=str(error)) from error
    crash("runtime.spawned")
    status = asyncio.ensure_future(_wait(pid))
    done, _ = await asyncio.wait([status], timeout=seconds)
    if not done:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        await asyncio.wait([status], timeout=DYING_S)  # longer: it hangs in the kernel
        raise TimeoutError
    crash("runtime.ended")
    return status.result()


async def _wait(pid: int) -> int:
    """Wait for a child, and reap it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # no descriptor is free
        while not (found := os.waitpid(pid, os.WNOHANG))[0]:  # noqa: ASYNC110, ASYNC222
            await asyncio.sleep(POLL_S)  # (there is nothing that could be awaited)
        return _status(os.WIFEXITED(found[1]), os.waitstatus_to_exitcode(found[1]))
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def reap() -> None:
        loop.remove_reader(pidfd)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        if result is not None and not ended.done():
            ended.set_result(_status(result.si_code == os.CLD_EXITED, result.si_status))

    loop.add_reader(pidfd, reap)
    return await ended


def _status(exited: bool, number: int) -> int:
    """The exit status as a shell has it, of a status or a signal."""
    return number if exited else 128 + abs(number)
