"""What a checkpoint asks of criu, and what criu is told beside the OCI runtime (pure).

A container of ours has the client's FIFOs as its streams. They lie outside of its mount namespace:
criu dumps such a file only as *external*, by the key `file[<mount id>:<inode>]`, and restores it
only from a descriptor that it inherits for that key (criu(8), --external and --inherit-fd). The
OCI runtimes do this for pipes alone, so the rest stands in a configuration file for criu, which it
finds by CRIU_CONFIG_FILE. Which key was which stream lies beside the images.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

MINIMUM = (3, 15)
"""3.14 knows the freezer of cgroup v2, 3.15 a pid namespace that is not the container's own."""
SKIP_MODES_SINCE = (4, 0)
"""criu compares a file's permissions with those at the checkpoint; from here on it can be told not
to (seen in 4.1 and 4.2, unknown to 3.17)."""
CONFIG_VARIABLE = "CRIU_CONFIG_FILE"
NOTES = "sdshim.json"
"""In the images' folder: the keys of the streams by number, and the options that criu must be given
again for a restore."""
SWITCHES = ("open_tcp", "external_unix_sockets", "terminal", "file_locks")
INVENTORY = "inventory.img"
"""Every set of criu's images has one."""
CGROUP_MODES = ("", "soft", "full", "strict", "ignore")

_KEY = re.compile(r"file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]")
_VERSION = re.compile(r"^Version: (\d+)\.(\d+)", re.MULTILINE)
_ERROR = re.compile(r"Error \([^)]*\): (.*)")
_NOISE = ("rlimit:",)
"""What criu calls an error and goes on after."""
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class Wish:
    """containerd.runc.v1.CheckpointOptions (protocol 4.1), checked."""

    exit: bool = False
    """The container ends with its checkpoint."""
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
    cgroups_mode: str = ""
    image_path: str = ""
    work_path: str = ""


def check(wish: Wish) -> Wish:
    """The wish itself. Raises InvalidArgument naming every fault."""
    faults = [
        f"{name} {path[:256]!r} is not an absolute path"
        for name, path in (("image_path", wish.image_path), ("work_path", wish.work_path))
        if path and not is_path(path)
    ]
    faults += [
        f"empty namespace {one[:64]!r} is not a namespace's name"
        for one in wish.empty_namespaces
        if not one.isalpha()
    ]
    if wish.cgroups_mode not in CGROUP_MODES:
        modes = ", ".join(repr(mode) for mode in CGROUP_MODES)
        faults.append(f"cgroups_mode {wish.cgroups_mode[:64]!r} is not one of {modes}")
    if faults:
        raise InvalidArgument("checkpoint options: " + "; ".join(faults))
    return wish


def is_path(path: str) -> bool:
    """Whether a path is absolute and nothing but printable."""
    return path.startswith("/") and path.isprintable()


def version(output: str) -> tuple[int, int] | None:
    """Major and minor number in the output of `criu --version`; None when there are none."""
    found = _VERSION.search(output)
    return (int(found[1]), int(found[2])) if found else None


def key(mount_id: int, inode: int) -> str:
    """criu's name for a file outside of the container's mounts."""
    return f"file[{mount_id:x}:{inode:x}]"


def dump_config(keys: Mapping[int, str], *, unified: bool) -> str:
    """criu's configuration for a checkpoint of a container with these external streams.

    On cgroup v2 (`unified`) the container is in that hierarchy alone (criu calls it by the empty
    name). In a v1 hierarchy that the host has beside it, it is in the root, and criu would go
    through the cgroups of everybody, and fail when one is just being removed.
    """
    lines = [f"external {one}" for one in sorted(set(keys.values()))]
    if unified:
        lines.append('cgroup-dump-controller ""')
    return "".join(f"{line}\n" for line in lines)


def restore_config(keys: Mapping[int, str], cgroup: str, of: tuple[int, int]) -> str:
    """criu's configuration for a restore: each stream from our own descriptor of that number, and
    on cgroup v2 the processes into `cgroup` (runc before 1.2 leaves them where they were)."""
    lines = [f"inherit-fd fd[{number}]:{one}" for number, one in sorted(keys.items())]
    if of >= SKIP_MODES_SINCE:
        lines.append("skip-file-rwx-check")
    if cgroup:
        lines.append(f"cgroup-root :{cgroup}")
    return "".join(f"{line}\n" for line in lines)


def encode_notes(keys: Mapping[int, str], wish: Wish) -> bytes:
    """The file NOTES: what a restore has to know of the checkpoint."""
    switches = [name for name in SWITCHES if getattr(wish, name)]
    streams = {str(number): one for number, one in sorted(keys.items())}
    spaces = list(wish.empty_namespaces)
    notes = {"streams": streams, "switches": switches, "empty_namespaces": spaces}
    return json.dumps(notes).encode()


def decode_notes(data: bytes) -> tuple[dict[int, str], Wish]:
    """The keys and the wish in a file NOTES. Raises InvalidArgument: it comes with an image, from
    anywhere."""
    try:
        raw = json.loads(data)
        keys = {int(number): str(one) for number, one in raw["streams"].items()}
        on = {str(name) for name in raw["switches"]}
        spaces = tuple(map(str, raw["empty_namespaces"]))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"checkpoint: {NOTES} is damaged") from error
    known = set(keys) <= {0, 1, 2} and on <= set(SWITCHES)
    if not known or not all(map(_KEY.fullmatch, keys.values())):
        raise InvalidArgument(f"checkpoint: {NOTES} is damaged")
    wish = Wish(
        open_tcp="open_tcp" in on,
        external_unix_sockets="external_unix_sockets" in on,
        terminal="terminal" in on,
        file_locks="file_locks" in on,
        empty_namespaces=spaces,
    )
    return keys, check(wish)


def errors(log: str) -> str:
    """What criu complains of in its log, in its own words and order; empty when of nothing."""
    found = [text.strip() for text in _ERROR.findall(log) if not text.startswith(_NOISE)]
    text = "; ".join(dict.fromkeys(found))
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
