"""Sealed copies of the OCI runtimes' programs: made once, not at each `create` and `exec`.

So that no container can write to its program, runc up to 1.1 copies it, 11 MB, into memory of the
container's `init` to be, later ones mount an overlay for it, and crun copies itself at each command
(CVE-2019-5736). What runs from a sealed memfd already does neither: on Debian 13 `create` takes 9
ms of CPU instead of 14, `exec` 7 instead of 12. The copy was also charged to the container at
times: with a limit of 6 MB `create` failed then.

One copy serves all: it is in systemd's fd store, so that it outlives the daemon, and a unit is
given it as its standard input (core/unitspec.py); `links` has a name for it there. Sealed and
immutable: a container that holds its runtime's program cannot even open it for writing, which would
be in the way of whoever executes it next. A file that has changed gets another copy, the one before
leaves the store.

No copy, and the program as it is, where one cannot be made or run, where the program is a script,
and with SELinux, whose domain of a runtime goes by the label of its file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdshim.core.errors import ShimError
from sdshim.core.unitspec import SealedProgram
from sdshim.runtime import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

log = logging.getLogger(__name__)

PREFIX = "program."
TARGET = "/proc/self/fd/9"
"""Where launcher/streams.sh has the copy when it executes it."""
SELINUX = Path("/sys/fs/selinux/enforce")
MFD_EXEC = 0x10
"""Since Linux 6.3; older kernels refuse it."""
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Exactly what runc 1.1 asks for."""


class Keeper(Protocol):
    """systemd's fd store."""

    def keep(self, name: str, *fds: int, poll: bool = True) -> Awaitable[None]:
        """Put copies there now."""

    def remove(self, name: str) -> None:
        """Take them out."""


class Sealed:
    """The copies of this daemon, each by a name that tells its file and the file's version."""

    def __init__(
        self, keeper: Keeper, links: Path, environment: Mapping[str, str], seconds: float
    ) -> None:
        """`links`: a folder of their names; `seconds`: what trying one may take."""
        self._keeper = keeper
        self._links = links
        self._environment = environment
        self._seconds = seconds
        self._copies: dict[str, int] = {}
        self._current: dict[str, str] = {}
        """Path of a program → name of its copy, also when there is none to be had."""
        self._making = asyncio.Lock()
        self._allowed = not SELINUX.exists()

    def adopt(self, name: str, fd: int) -> bool:
        """Take back a copy of the daemon before; False when the name is not one of a copy."""
        if not name.startswith(PREFIX):
            return False
        self._copies[name] = fd
        return True

    @contextlib.asynccontextmanager
    async def lend(self, binary: str) -> AsyncIterator[SealedProgram | None]:
        """The copy of a program, usable until the block ends; None when there is none."""
        copy = await self._copy(binary)
        if copy is None:
            yield None
            return
        fd = os.dup(copy)  # ours may be replaced meanwhile
        try:
            yield SealedProgram(fd, str(self._link(binary)))
        finally:
            os.close(fd)

    async def _copy(self, binary: str) -> int | None:
        try:
            name = _name(os.stat(binary))  # noqa: PTH116 (at each create)
        except OSError:
            return None
        if self._allowed and self._current.get(binary) != name:
            async with self._making:
                if name not in self._copies:
                    await self._make(binary, name)
                self._current[binary] = name
        return self._copies.get(name)

    async def _make(self, binary: str, name: str) -> None:
        """Add a copy, if it can be made and run; those that nobody has asked for are dropped."""
        try:
            fd = _sealed(binary)
            try:
                await self._try(fd, binary)
                self._link(binary)
            except BaseException:
                os.close(fd)
                raise
        except (OSError, ShimError) as error:
            log.info("%s is run from its file, no copy can be used: %s", binary, error)
            return
        wanted = {name, *(one for path, one in self._current.items() if path != binary)}
        for unwanted in self._copies.keys() - wanted:
            os.close(self._copies.pop(unwanted))
            self._keeper.remove(unwanted)
        self._copies[name] = fd
        self._keeper.keep(name, fd, poll=False)

    async def _try(self, fd: int, binary: str) -> None:
        argv = [binary, "--version"]
        status = await process.run(
            argv,
            self._environment,
            Path(os.devnull),
            seconds=self._seconds,
            program=f"/proc/self/fd/{fd}",
        )
        if status:
            raise OSError(f"{' '.join(argv)} ended with {status}")

    def _link(self, binary: str) -> Path:
        """The name for the copy in the unit: the runtime's own, as it is seen in its argv."""
        link = self._links / Path(binary).name
        if not link.is_symlink():
            self._links.mkdir(mode=0o700, exist_ok=True)
            link.symlink_to(TARGET)
        return link


def _name(file: os.stat_result) -> str:
    words = (file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size)
    return PREFIX + "-".join(map(str, words))


def _sealed(binary: str) -> int:
    """A descriptor of a sealed copy. Raises OSError."""
    with Path(binary).open("rb", buffering=0) as source:
        if source.read(4) != b"\x7fELF":
            raise OSError("not an ELF program")
        source.seek(0)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        name = Path(binary).name[:200]
        try:
            copy = os.memfd_create(name, flags | MFD_EXEC)
        except OSError:
            copy = os.memfd_create(name, flags)
        try:
            while os.sendfile(copy, source.fileno(), None, 1 << 30):
                pass
            fcntl.ioctl(copy, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL.to_bytes(8, sys.byteorder))
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(copy)
            raise
    return copy
