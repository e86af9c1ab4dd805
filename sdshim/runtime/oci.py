"""The door to the OCI runtime for one task: start and delete, with their failures explained.

A command that does not come back costs its own task only: it is killed after `seconds`, and so is
one that an earlier daemon has left, found by the lock that it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.discretion import discreet
from sdshim.core.errors import DeadlineExceeded, NotFound, ShimError, Unavailable, UnknownError
from sdshim.core.points import nowhere
from sdshim.runtime import bundle, commands, process
from sdshim.runtime.criu import Criu
from sdshim.runtime.sealed import Sealed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from sdshim.core.criu import Wish
    from sdshim.core.model import Identity
    from sdshim.core.points import Crash
    from sdshim.runtime.sealed import Keeper

START_LOCK = "start.lock"
LOCK = "runtime.lock"
"""Of pause, resume and update."""
POLL_S = (0.002, 0.05)
"""Shortest and longest pause between two looks at a lock: flock(2) could not be given up."""
OUTPUT = "runtime.out"
STATE_FILES = ("state.json", "status")
"""Where runc and crun keep what they know of a container."""

_LOG = logging.getLogger(__name__)


class OciRuntime:
    """Runs the OCI runtime for tasks; holds no state of its own but copies of its program."""

    def __init__(
        self,
        environment: Mapping[str, str],
        seconds: float,
        keeper: Keeper,
        programs: Path,
        crash: Crash = nowhere,
    ) -> None:
        """`seconds`: what one command may take; `programs`: a folder for `sealed`."""
        self._crash = crash
        self._environment = process.clean_environment(environment)
        self._seconds = seconds
        self.criu = Criu(self._environment, seconds)
        self.sealed = Sealed(keeper, programs, self._environment, seconds)

    def prepare(self, state_dir: Path) -> None:
        """Make what `start` and `delete` will write to: the container must be able to go when no
        inode is left. Raises OSError."""
        for name in (commands.LOG, OUTPUT, START_LOCK):
            (state_dir / name).touch(mode=0o600)

    def create_argv(self, me: Identity, state_dir: Path, console: str = "") -> list[str]:
        """What the unit's ExecStart runs. Raises UnknownError for an unknown runtime."""
        base = self._base(me, state_dir)
        return commands.create(base, me.runtime, me.bundle, str(state_dir), me.id, console)

    def exec_argv(self, me: Identity, state_dir: Path, console: str = "") -> list[str]:
        """What an exec's subreaper runs."""
        return commands.exec_process(self._base(me, state_dir), str(state_dir), me.id, console)

    def checkpoint_argv(
        self, me: Identity, state_dir: Path, wish: Wish, images: Path, work: Path
    ) -> list[str]:
        """What a checkpoint's unit runs; the runtime's log goes to `state_dir`."""
        base = self._base(me, state_dir)
        return commands.checkpoint(base, wish, str(images), str(work), me.id)

    def restore_argv(
        self, me: Identity, state_dir: Path, wish: Wish, work: Path, console: str = ""
    ) -> list[str]:
        """What the ExecStart of a restored container's unit runs."""
        base = self._base(me, state_dir)
        return commands.restore(base, me, wish, str(state_dir), str(work), console)

    def command_prefix(self, me: Identity) -> list[str]:
        """Runtime and state root, for whoever must clean up without us."""
        return [me.runtime.binary, "--root", f"{me.runtime.root}/{me.namespace}"]

    async def start(self, me: Identity, state_dir: Path) -> None:
        """`start` under the lock that tells a later daemon whether it still runs."""
        argv = commands.start(self._base(me, state_dir), me.id)
        with _locked(state_dir / START_LOCK) as lock:
            await self._run(me, argv, state_dir, "OCI runtime start failed", lock)

    async def pause(self, me: Identity, state_dir: Path) -> None:
        """`pause`; a later daemon waits for its end by `settled`."""
        argv = commands.pause(self._base(me, state_dir), me.id)
        with _locked(state_dir / LOCK) as lock:
            await self._run(me, argv, state_dir, "OCI runtime pause failed", lock)

    async def resume(self, me: Identity, state_dir: Path) -> None:
        """`resume`; a later daemon waits for its end by `settled`."""
        argv = commands.resume(self._base(me, state_dir), me.id)
        with _locked(state_dir / LOCK) as lock:
            await self._run(me, argv, state_dir, "OCI runtime resume failed", lock)

    async def update(self, me: Identity, state_dir: Path, resources: Path) -> None:
        """`update` with the LinuxResources in a file; a later daemon waits by `settled`."""
        argv = commands.update(self._base(me, state_dir), me.id)
        with _locked(state_dir / LOCK) as lock:
            await self._run(me, argv, state_dir, "OCI runtime update failed", lock, resources)

    async def settled(self, state_dir: Path) -> None:
        """Wait for the `pause`, `resume` or `update` that an earlier daemon has begun."""
        await self._wait_unlocked(state_dir, LOCK)

    async def start_settled(self, state_dir: Path) -> None:
        """The same for a `start`."""
        await self._wait_unlocked(state_dir, START_LOCK)

    async def delete(self, me: Identity, state_dir: Path, *, force: bool = False) -> None:
        """`delete`; a container that the runtime does not know counts as deleted, and so does one
        of that id with another bundle: it is somebody else's.

        Plain delete can fail while systemd removes the unit's cgroups: the second try finds no
        cgroup and succeeds (units 2); the third is by force.
        """
        if not self._knows(me):
            return
        if other := _other_bundle(me):
            _LOG.warning("the OCI runtime's container %s is of %s, let alone", me.id, other)
            return
        failure: ShimError | None = None
        for forced in (force, force, True):
            argv = commands.delete(self._base(me, state_dir), me.id, force=forced)
            try:
                await self._run(me, argv, state_dir, "failed to delete task")
                return
            except UnknownError as error:
                if "does not exist" in str(error) or not self._knows(
                    me
                ):  # runc's word; crun's vary
                    return
                failure = error
        assert failure is not None
        raise failure

    def waits_for_start(self, me: Identity) -> bool:
        """True while the created container has not been let go."""
        return Path(commands.exec_fifo(me.runtime, me.namespace, me.id)).exists()

    def _knows(self, me: Identity) -> bool:
        return Path(commands.state_path(me.runtime, me.namespace, me.id)).exists()

    def failure(self, state_dir: Path, prefix: str, default: str) -> UnknownError:
        """The error that the runtime's log of this task tells, or `default`."""
        text = self.complaint(state_dir, "")
        return UnknownError(f"{prefix}: {text or default}", hint=commands.hint(text))

    def complaint(self, state_dir: Path, printed: str) -> str:
        """What the runtime's log in a folder complains of, else what it has printed."""
        return commands.error_text(_tail(state_dir / commands.LOG), printed)

    def _base(self, me: Identity, state_dir: Path) -> list[str]:
        try:
            binary = process.find(me.runtime.binary)
        except NotFound as error:  # NotFound would be the task (protocol 3.5)
            raise UnknownError(error.message, hint=error.hint) from error
        return commands.prefix(binary, me.runtime, me.namespace, str(state_dir))

    async def _run(
        self,
        me: Identity,
        argv: list[str],
        state_dir: Path,
        prefix: str,
        lock: int | None = None,
        stdin: Path = process.NO_INPUT,
    ) -> None:
        log, output = state_dir / commands.LOG, state_dir / OUTPUT
        with contextlib.suppress(FileNotFoundError):
            os.truncate(log, 0)
        crun = commands.is_crun(argv[0])  # it would copy itself each time
        lent = self.sealed.lend(argv[0]) if crun else _no_copy()
        try:
            async with lent as copy:
                status = await process.run(
                    argv,
                    self._environment,
                    output,
                    seconds=self._seconds,
                    lock_fd=lock,
                    stdin=stdin,
                    program=f"/proc/self/fd/{copy.fd}" if copy else "",
                    crash=self._crash,
                )
        except TimeoutError:
            raise self._hangs(prefix, argv[0]) from None
        if status:
            text = commands.error_text(_tail(log), _tail(output))
            detail = text or f"{argv[0]} did not terminate successfully: exit status {status}"
            # Here and not only where a call is answered: spans and the log quote it first.
            environment = bundle.environment(Path(me.bundle))
            raise UnknownError(f"{prefix}: {discreet(detail, environment)}")

    def _hangs(self, prefix: str, binary: str) -> DeadlineExceeded:
        text = f"{prefix}: {binary} did not end within {self._seconds:g} s and was killed"
        return DeadlineExceeded(text, hint="runtime_timeout in sdshim's configuration; its hooks")

    async def _wait_unlocked(self, state_dir: Path, name: str) -> None:
        """Wait until a command begun by an earlier daemon has ended (its lock is gone); kill it
        when its time is up."""
        path = state_dir / name
        until = time.monotonic() + self._seconds
        pause, killed = POLL_S[0], False
        while _is_locked(path):
            if time.monotonic() > until:
                if killed:
                    text = f"what holds {path} cannot be killed"
                    raise Unavailable(text, hint=f"fuser -v {path}")
                _kill_holders(path)
                until, killed = time.monotonic() + process.DYING_S, True
            await asyncio.sleep(pause)
            pause = min(2 * pause, POLL_S[1])


def _other_bundle(me: Identity) -> str:
    """The bundle that the runtime's state of our id names, if it is not ours."""
    for name in STATE_FILES:
        try:
            path = Path(commands.state_path(me.runtime, me.namespace, me.id)) / name
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if f'{me.bundle}"' in text:  # nearly always, so it is not parsed for nothing
            return ""
        named = commands.state_bundle(text)
        return named if named and os.path.realpath(named) != os.path.realpath(me.bundle) else ""
    return ""


@contextlib.asynccontextmanager
async def _no_copy() -> AsyncIterator[None]:
    yield None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A lock for a command to inherit: it is held until the command has ended. Raises Unavailable
    when an earlier one holds it, which was killed and hangs in the kernel."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "an earlier command of the OCI runtime for this container has not ended"
            raise Unavailable(text, hint=f"fuser -v {path}") from None
        yield lock
    finally:
        os.close(lock)


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _kill_holders(path: Path) -> None:
    """SIGKILL to the processes that have inherited the lock: nobody else has it at that number."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                if (entry / "fd" / str(process.LOCK_FD)).readlink() == path:
                    os.kill(int(entry.name), signal.SIGKILL)


def _tail(path: Path, limit: int = 64 << 10) -> str:
    """The end of a file, at most `limit` bytes; empty when it is missing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""
