"""Files that can be replaced on a full disk."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import Code, ResourceExhausted, scarce
from sdshim.host import reserve
from sdshim.host.reserve import Reserve
from sdshim.ttrpc.calls import reply_for

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> Reserve:
    return Reserve(tmp_path / "reserve", files=2)


class Full:
    """A disk on which nothing new has room: no file can be made or grow, `gives` bytes at a time
    are taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gives: int | None) -> None:
        self._open, self._write, self._gives = os.open, os.write, gives
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(os, "write", self.write)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and self._gives is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._open(path, flags, mode)

    def write(self, fd: int, data: bytes) -> int:
        has_room = os.fstat(fd).st_size >= reserve.SIZE
        return self._write(fd, data if has_room or self._gives is None else data[: self._gives])


@pytest.mark.parametrize("gives", [None, 0, 3])
def test_what_exists_can_be_replaced_and_nothing_new_is_made(
    files: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives: int | None
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    files.replace(old, b"first")
    Full(monkeypatch, gives)
    files.replace(old, b"second")
    assert old.read_bytes() == b"second"
    assert old.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ResourceExhausted, match="No space left"):
        files.replace(new, b"longer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "reserve"]


def test_what_is_used_up_is_made_again_as_soon_as_there_is_room(
    files: Reserve, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    files.replace(old, b"first")
    for number in range(2):
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, None)
            files.replace(old, b"%d" % number)
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, None)
        with pytest.raises(ResourceExhausted):
            files.replace(old, b"lost")
    assert old.read_bytes() == b"1"
    assert not list((tmp_path / "reserve").iterdir())
    files.replace(old, b"later")
    sizes = [path.stat().st_size for path in (tmp_path / "reserve").iterdir()]
    assert sizes == [reserve.SIZE] * 2


def test_without_a_folder_it_writes_as_long_as_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "reserve").write_text("no folder")
    files = Reserve(tmp_path / "reserve")
    files.replace(tmp_path / "file", b"text")
    assert (tmp_path / "file").read_bytes() == b"text"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE])
def test_want_of_something_is_told_with_what_to_do(code: int) -> None:
    reply = reply_for(OSError(code, os.strerror(code)))
    assert reply.code == Code.RESOURCE_EXHAUSTED
    assert os.strerror(code) in reply.message
    assert "hint: " in reply.message


def test_other_faults_are_no_want() -> None:
    assert scarce(OSError(errno.EIO, "broken")) is None
