"""Sealed copies of runtimes' programs: one for all, kept for the next daemon, new with the file."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdshim.runtime import sealed
from sdshim.runtime.sealed import Sealed

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sdshim.core.unitspec import SealedProgram

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make a file immutable (CAP_LINUX_IMMUTABLE)"
)


class Store:
    """systemd's fd store: copies by name."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}

    def keep(self, name: str, *fds: int, poll: bool = True) -> Awaitable[None]:
        assert not poll, "a memfd is nobody's connection"
        self.fds[name] = os.dup(fds[0])
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def remove(self, name: str) -> None:
        os.close(self.fds.pop(name))


class Daemon:
    """One run of the daemon with the descriptors that the store had for it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.sealed = Sealed(store, folder / "programs", {"PATH": "/usr/bin:/bin"}, 10)
        for name, fd in store.fds.items():
            assert self.sealed.adopt(name, os.dup(fd))

    def lend(self, binary: Path) -> SealedProgram | None:
        """What is lent, still open."""

        async def main() -> SealedProgram | None:
            async with self.sealed.lend(str(binary)) as program:
                if program is None:
                    return None
                return type(program)(os.dup(program.fd), program.link)

        return asyncio.run(main())


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return Path(shutil.copy("/bin/true", tmp_path / "runc"))


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_a_copy_can_be_executed_and_nobody_can_open_it_for_writing(
    tmp_path: Path, store: Store, binary: Path
) -> None:
    program = Daemon(tmp_path, store).lend(binary)
    assert program is not None
    path = f"/proc/self/fd/{program.fd}"
    assert subprocess.run([path], executable=path, pass_fds=[program.fd]).returncode == 0
    assert os.pread(program.fd, 1 << 24, 0) == binary.read_bytes()
    with pytest.raises(PermissionError):
        os.open(path, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(program.fd, b"x")
    assert program.link == str(tmp_path / "programs" / "runc")
    assert str(Path(program.link).readlink()) == "/proc/self/fd/9"


def test_one_copy_serves_all_and_the_next_daemon(
    tmp_path: Path, store: Store, binary: Path
) -> None:
    daemon = Daemon(tmp_path, store)
    lent = [daemon.lend(binary), daemon.lend(binary), Daemon(tmp_path, store).lend(binary)]
    assert len({_inode(program.fd) for program in lent if program}) == 1
    assert len(store.fds) == 1


def test_a_changed_file_gets_another_copy_and_the_old_one_leaves_the_store(
    tmp_path: Path, store: Store, binary: Path
) -> None:
    for daemon in (Daemon(tmp_path, store), Daemon(tmp_path, store)):
        first = daemon.lend(binary)
        shutil.copy("/bin/true", tmp_path / "new")
        (tmp_path / "new").replace(binary)
        second = daemon.lend(binary)
        assert first and second and _inode(first.fd) != _inode(second.fd)
        assert len(store.fds) == 1
        os.close(first.fd)


def test_two_runtimes_have_a_copy_each(tmp_path: Path, store: Store, binary: Path) -> None:
    other = Path(shutil.copy(binary, tmp_path / "crun"))
    daemon = Daemon(tmp_path, store)
    lent = [daemon.lend(path) for path in (binary, other, binary)]
    assert [program and Path(program.link).name for program in lent] == [
        "runc",
        "crun",
        "runc",
    ]
    assert len(store.fds) == 2


@pytest.mark.parametrize(
    "content", [b"#!/bin/sh\nexit 0\n", b"\x7fELF but no program", b"", None], ids=repr
)
def test_what_cannot_be_run_from_a_copy_is_run_from_its_file(
    tmp_path: Path, store: Store, binary: Path, content: bytes | None
) -> None:
    if content is None:
        binary.unlink()
    else:
        binary.write_bytes(content)
    daemon = Daemon(tmp_path, store)
    assert daemon.lend(binary) is None
    assert daemon.lend(binary) is None
    assert store.fds == {}


def test_with_selinux_there_are_no_copies(
    tmp_path: Path, store: Store, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "SELINUX", tmp_path)
    assert Daemon(tmp_path, store).lend(binary) is None
    assert store.fds == {}


def test_other_descriptors_of_the_store_are_left_to_others(tmp_path: Path, store: Store) -> None:
    assert not Daemon(tmp_path, store).sealed.adopt("io.x.stdin", 0)
