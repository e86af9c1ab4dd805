"""The door to criu: whether it can work here, and what an OCI runtime that runs it is given.

The OCI runtimes look for `criu` in PATH and start it themselves; what they cannot tell it stands in
a file that the environment names (core/criu.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import criu
from sdshim.core.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted
from sdshim.runtime import process

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "criu.conf"
OUTPUT = "criu.out"
WORK = "work"
_BIN = "bin"


class Criu:
    """Asks criu about itself; holds no state but the environment it is run with."""

    def __init__(self, environment: Mapping[str, str], seconds: float) -> None:
        self._environment = environment
        self._seconds = seconds

    async def check(self, path: str, folder: Path) -> None:
        """Whether the criu at `path` (empty: the one in PATH) works on this machine; its output
        goes to `folder`. Raises FailedPrecondition when it is missing, too old, or says itself that
        it cannot work here."""
        found = await self.version(path, folder)
        output = folder / OUTPUT
        if await self._run([_find(path), "check"], output):
            raise FailedPrecondition(
                f"criu {_dotted(found)} does not work on this machine",
                cause=criu.errors(_text(output)),
                hint="see `criu check`",
            )

    async def version(self, path: str, folder: Path) -> tuple[int, int]:
        """Its version. Raises FailedPrecondition when it is missing or too old."""
        binary, output = _find(path), folder / OUTPUT
        await self._run([binary, "--version"], output)
        found = criu.version(_text(output))
        if found is None:
            raise FailedPrecondition(f"{binary} is not criu", cause=_text(output)[:200].strip())
        if found < criu.MINIMUM:
            raise FailedPrecondition(
                f"criu {_dotted(found)} is too old: {_dotted(criu.MINIMUM)} or newer is needed"
            )
        return found

    async def _run(self, argv: list[str], output: Path) -> int:
        try:
            return await process.run(argv, self._environment, output, seconds=self._seconds)
        except TimeoutError:
            text = f"{' '.join(argv)} did not end within {self._seconds:g} s and was killed"
            raise DeadlineExceeded(text) from None

    def environment(self, path: str, folder: Path, config: str) -> tuple[str, ...]:
        """What the environment of an OCI runtime needs (`NAME=value`) to run the criu at `path`
        with the configuration `config`; the files for it go to `folder`."""
        try:
            (folder / CONFIG).write_text(config)
            words = [f"{criu.CONFIG_VARIABLE}={folder / CONFIG}"]
            if path:
                (folder / _BIN).mkdir(mode=0o700, exist_ok=True)
                link = folder / _BIN / "criu"
                link.unlink(missing_ok=True)
                link.symlink_to(path)
                words.append(f"PATH={folder / _BIN}:{self._environment.get('PATH', os.defpath)}")
        except OSError as error:
            raise ResourceExhausted(f"cannot write in {folder}", cause=str(error)) from error
        return tuple(words)


def stream_key(process_id: str, fd: int) -> str:
    """criu's key of a file that a process (or `self`) has open. Raises OSError."""
    inode = Path(f"/proc/{process_id}/fd/{fd}").stat().st_ino
    info = Path(f"/proc/{process_id}/fdinfo/{fd}").read_text()
    facts = dict(line.partition(":")[::2] for line in info.splitlines())
    return criu.key(int(facts["mnt_id"]), inode)


def _find(path: str) -> str:
    try:
        return process.find(path or "criu", "criu")
    except NotFound as error:
        raise FailedPrecondition(str(error)) from error


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
