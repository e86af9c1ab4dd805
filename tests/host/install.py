"""sdshim from the working tree, ready to be put into a host: made once per content by install.sh.

Two cache entries per root, both made by packaging/install.sh in an overlay over that root, so
that the root's own Python compiles the bytecode: `deps` (keyed by the list of requirements, tens
of MB, bound into the host) and `install` (keyed by the sources, small, copied into it).  A boot
after no change runs neither pip nor the compiler.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

from . import cache, roots
from .errors import HostError
from .progress import step

LIB = "/usr/local/lib/sdshim"
DEPS = f"{LIB}/deps"
DEPS_BOUND = "/mnt/sdshim-deps"  # not in place: an upgrade or uninstall must be able to remove it

_OVERLAY = """\
set -eu
mount -t tmpfs tmpfs "$MNT"
mkdir "$MNT/upper" "$MNT/work" "$MNT/root"
mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$MNT/upper,workdir=$MNT/work" "$MNT/root"
rm -rf "$MNT/root$LIB"
mkdir -p "$MNT/root$LIB"
mount -t tmpfs tmpfs "$MNT/root/tmp"
mount -t proc proc "$MNT/root/proc"
sh "$INSTALL" --destdir "$MNT/root" "$@"
cp -a "$MNT/upper/usr/local/." "$OUT"
"""


def source_tree() -> Path:
    """The working tree this package lies in."""
    return Path(__file__).resolve().parents[2]


def _installer(source: Path) -> Path:
    return source / "packaging" / "install.sh"


def _source_key(source: Path) -> str:
    files = [_installer(source)]
    for top in ("sdshim", "units"):
        for folder, _, names in os.walk(source / top):
            if not folder.endswith("__pycache__"):
                files += [Path(folder, name) for name in names if not name.endswith(".pyc")]
    return cache.tree_key(files, source)


def layers(root: roots.Root, path: Path, source: Path | None = None) -> tuple[Path, Path]:
    """The (deps, install) entries for a root; made now if their keys are new."""
    tree = source or source_tree()
    if root.newer:
        root = roots.base(root)
        path = roots.ensure(root)
    built_for = deps_key(root, path, tree)
    deps = cache.ensure("deps", f"{root.name}-{built_for}", partial(_make_deps, root, path, tree))
    name = f"{root.name}-{cache.key([built_for, _source_key(tree)])}"
    fresh = not cache.entry("install", name).exists()
    made = cache.ensure("install", name, partial(_make_install, path, tree))
    if fresh:
        cache.drop_stale("install", root.name)
    return deps, made


def deps_key(root: roots.Root, path: Path, source: Path) -> str:
    """What the dependencies of a root at `path` depend on."""
    listed = subprocess.run(
        ["sh", str(_installer(source)), "--list-deps"], capture_output=True, text=True, check=True
    )
    return cache.key([roots.cache_name(root), roots.python(path), listed.stdout])


def _make_deps(root: roots.Root, path: Path, source: Path, out: Path) -> None:
    with step(f"Python dependencies for {root.name} (once)"):
        _run_installer(path, source, out, ["--deps-only"])


def _make_install(path: Path, source: Path, out: Path) -> None:
    _run_installer(path, source, out, ["--no-deps"])


def _run_installer(root: Path, source: Path, out: Path, options: list[str]) -> None:
    """Runs install.sh on an overlay over `root`; what it made below /usr/local lands in `out`."""
    wrapper = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    wrapper += ["--pid", "--fork", "--kill-child=KILL"]
    environment = {
        **os.environ,
        "MNT": str(cache.mountpoint()),
        "ROOT": str(root),
        "LIB": LIB,
        "INSTALL": str(_installer(source)),
        "OUT": str(out),
    }
    done = subprocess.run(
        [*wrapper, "sh", "-c", _OVERLAY, "sh", *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise HostError(f"packaging/install.sh failed:\n{done.stdout[-2000:]}")


def into_running(root: Path, source: Path | None = None) -> str:
    """Installs into the root of a host that runs; returns what install.sh said."""
    tree = source or source_tree()
    command = ["sh", str(_installer(tree)), "--destdir", str(root), "--no-deps"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise HostError(f"packaging/install.sh failed:\n{done.stderr[-2000:]}")
    return done.stdout
