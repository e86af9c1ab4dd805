"""The cache folder: what is slow to make is made once, whole, under a name that says what it is.

`$SDSHIM_CACHE`, else /var/cache/sdshim.  An entry `<kind>/<name>-<key>` is built as
`<kind>/<name>-<key>.tmp` and renamed when complete, so a half-built one is never used; a flock
lets one process build while others wait for its result.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS = ("roots", "deps", "install", "state", "images", "emulated")


def folder() -> Path:
    return Path(os.environ.get("SDSHIM_CACHE") or "/var/cache/sdshim").absolute()


def mountpoint() -> Path:
    """An empty directory for the private mounts of a boot."""
    place = folder() / "mnt"
    place.mkdir(parents=True, exist_ok=True)
    return place


def key(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def tree_key(paths: Iterable[Path], base: Path) -> str:
    """A key of files' names, modes and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(base)}\0{path.stat().st_mode:o}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def entry(kind: str, name: str) -> Path:
    return folder() / kind / name


def ensure(kind: str, name: str, build: Callable[[Path], None]) -> Path:
    """The finished entry; built now if it is missing."""
    final = entry(kind, name)
    with contextlib.suppress(FileNotFoundError):
        os.utime(final)  # the time of its last use, see drop_stale()
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():  # somebody else was building it while we waited
            return final
        unfinished = final.with_name(final.name + ".tmp")
        remove(unfinished)
        unfinished.mkdir()
        try:
            build(unfinished)
        except BaseException:
            remove(unfinished)
            raise
        os.utime(unfinished)
        unfinished.rename(final)
    return final


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Entry:
    kind: str
    name: str
    size: int
    modified: float


def entries() -> list[Entry]:
    found: list[Entry] = []
    for kind in KINDS:
        for path in sorted((folder() / kind).glob("[!.]*")):
            size = sum(
                Path(top, name).lstat().st_blocks * 512
                for top, _, names in os.walk(path)
                for name in names
            )
            found.append(Entry(kind, path.name, size, path.stat().st_mtime))
    return found


def drop_stale(kind: str, name: str, keep: int = 4, age: float = 3600.0) -> None:
    """Removes what was made for `name`, is not among the `keep` last used, and not in use now.

    Sources change often and each change makes an entry.  A host reads an entry as it boots and
    some while after; whatever was used within the last hour stays.
    """
    used = {
        place: place.stat().st_mtime
        for place in (folder() / kind).glob(f"{name}-*")
        if not place.name.endswith(".tmp")
    }
    for old in sorted(used, key=lambda place: used[place], reverse=True)[keep:]:
        if used[old] < time.time() - age:
            remove(old)


def clean() -> list[str]:
    removed = [f"{e.kind}/{e.name}" for e in entries()]
    for kind in KINDS:
        if (folder() / kind).exists():
            shutil.rmtree(folder() / kind)
    return removed
