"""The root file systems hosts boot from, and how those that must be made are made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import cache
from .errors import CannotBoot, HostError
from .packages import GUEST
from .progress import step

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = "2"  # part of the key: raise it when the way a root is built changes


@dataclass(frozen=True, slots=True)
class Root:
    """One kind of root. `suite` is empty for the machine's own."""

    name: str
    suite: str
    cgroups: tuple[str, ...]
    newer: str = ""
    """The suite that `NEWER` comes from, on top of the root called `suite`."""


ROOTS = (
    Root("self", "", ("v2", "v1")),
    Root("trixie", "trixie", ("v2", "v1")),
    Root("forky", "forky", ("v2",)),  # its systemd has no v1 any more
    Root("mixed", "trixie", ("v2", "v1"), newer="forky"),  # so that containerd 2 meets v1
)
NEWER = ("containerd", "runc")


def by_name(name: str) -> Root:
    for root in ROOTS:
        if root.name == name:
            return root
    raise ValueError(f"no root is called {name!r}; there are " + ", ".join(r.name for r in ROOTS))


def base(root: Root) -> Root:
    """The root that this one was made from; all but `NEWER` is the same, Python too."""
    return by_name(root.suite) if root.newer else root


def cache_name(root: Root) -> str:
    on_top = [root.newer, *NEWER] if root.newer else []
    return f"{root.name}-{cache.key([RECIPE, root.suite, *sorted(GUEST), *on_top])}"


def ensure(root: Root) -> Path:
    """Where the root's files are; built now if that was never done on this machine."""
    if not root.suite:
        return Path("/")
    return cache.ensure("roots", cache_name(root), partial(_bootstrap, root)) / "root"


def is_built(root: Root) -> bool:
    return not root.suite or cache.entry("roots", cache_name(root)).exists()


def python(path: Path) -> str:
    """The version of a root's python, from its link: no process is needed for that."""
    return (path / "usr/bin/python3").readlink().name.removeprefix("python")


def containerd_version(root: Root, path: Path) -> tuple[int, ...]:
    """Of the root's containerd, from its package database: it decides on the config's format."""
    status = (path / "var/lib/dpkg/status").read_text(errors="replace")
    match = re.search(r"^Package: containerd\n(?:.+\n)*?Version: (?:\d+:)?(\d[\d.]*)", status, re.M)
    if match is None:
        hint = "run with --install-packages" if not root.suite else "clean the cache"
        raise CannotBoot(f"root {root.name} has no containerd; {hint}")
    return tuple(int(part) for part in match[1].strip(".").split("."))


def _script(suite: str) -> Path:
    """debootstrap may be older than the suite it builds; trixie's script serves newer ones."""
    scripts = Path("/usr/share/debootstrap/scripts")
    for name in (suite, "trixie", "sid"):
        if (scripts / name).exists():
            return scripts / name
    raise CannotBoot("debootstrap is missing; run with --install-packages")


# debootstrap resolves no virtual packages (python3-grpcio needs one), apt does: so it makes the
# smallest base only.  A testing suite's signature is good for a week: a mirror or a clock that is a
# few days off must not stop a build, so its date (not the signature) goes unchecked, as
# debootstrap does.
_BUILD = """\
set -eu
suite=$1 target=$2 script=$3 base=$4 newer=$5
shift 5
if [ "$base" ]; then
    cp -a "$base" "$target"
    sed "s/ $suite / $newer /" "$target/etc/apt/sources.list" \
        >"$target/etc/apt/sources.list.d/$newer.list"
else
    debootstrap --variant=minbase "$suite" "$target" "" "$script" || {
        tail -n 5 "$target/debootstrap/debootstrap.log"
        exit 1
    }
fi
mount -t proc proc "$target/proc"
printf '#!/bin/sh\\nexit 101\\n' >"$target/usr/sbin/policy-rc.d"
chmod 755 "$target/usr/sbin/policy-rc.d"
apt() {
    chroot "$target" apt-get --quiet -o Acquire::Check-Valid-Until=false \
        -o APT::Default-Release="$suite" "$@"
}
apt update
apt --yes --no-install-recommends \
    -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Options::=--path-exclude=/usr/share/man/* \
    -o Dpkg::Options::=--path-exclude=/usr/share/locale/* \
    install "$@"
rm "$target/usr/sbin/policy-rc.d"
apt clean
rm -rf "$target"/var/lib/apt/lists/*
umount "$target/proc"
"""


def _bootstrap(root: Root, folder: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise CannotBoot("debootstrap is missing; run with --install-packages")
    below = str(ensure(base(root))) if root.newer else ""
    packages = [f"{name}/{root.newer}" for name in NEWER] if root.newer else GUEST
    command = ["sh", "-c", _BUILD, "sh", root.suite, str(folder / "root")]
    command += [str(_script(root.suite)), below, root.newer, *packages]
    with step(f"Building root {root.name} (once, a minute or two)") as running:
        tail: deque[str] = deque(maxlen=15)
        with _isolated(command) as process:
            assert process.stdout is not None
            for line in process.stdout:
                running.tell(line.strip().removeprefix("I: "))
                tail.append(line)
        if process.returncode != 0:
            raise HostError(f"building root {root.name} failed:\n" + "".join(tail))


@contextmanager
def _isolated(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Own mounts and pids: whatever ends this process takes the build and its mounts along."""
    wrapper = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    wrapper += ["--pid", "--fork", "--kill-child=KILL"]
    process = subprocess.Popen(
        wrapper + command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        start_new_session=True,  # a Ctrl-C is ours to pass on: as a kill
    )
    assert process.stdout is not None
    try:
        yield process
        process.wait()
    finally:
        process.kill()
        process.stdout.read()  # its end means that the last of them is dead
        process.wait()
