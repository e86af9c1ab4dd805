"""Argument lists of the OCI runtime (protocol 7.1) and what its log says when it fails (7.2). Pure.

`--systemd-cgroup` is never passed: the unit's cgroup is ours, a second unit would own the
processes (units 5).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdshim.core.criu import Wish
    from sdshim.core.model import Identity, RuntimeOptions

LOG = "runtime.log"
PID_FILE = "init.pid"


def prefix(binary: str, options: RuntimeOptions, namespace: str, state_dir: str) -> list[str]:
    """What every call begins with."""
    root = f"{options.root}/{namespace}"
    return [binary, "--root", root, "--log", f"{state_dir}/{LOG}", "--log-format", "json"]


def is_crun(binary: str) -> bool:
    """Whether a program is crun, as its name tells."""
    return binary.rpartition("/")[2].startswith("crun")


def create(
    base: list[str],
    options: RuntimeOptions,
    bundle: str,
    state_dir: str,
    task_id: str,
    console: str = "",
) -> list[str]:
    """`create`: returns when the container's init waits for `start`. The terminal, if there is to
    be one, is sent to the socket `console`."""
    argv = [*base, "create", "--bundle", bundle, "--pid-file", f"{state_dir}/{PID_FILE}"]
    argv += ["--console-socket", console] if console else []
    if options.no_pivot_root:
        argv.append("--no-pivot")
    if options.no_new_keyring:
        argv.append("--no-new-keyring")
    return [*argv, task_id]


def exec_process(base: list[str], state_dir: str, task_id: str, console: str = "") -> list[str]:
    """`exec`, detached: the subreaper waits for the process, not the runtime."""
    files = ["--process", f"{state_dir}/process.json", "--pid-file", f"{state_dir}/exec.pid"]
    terminal = ["--console-socket", console] if console else []
    return [*base, "exec", *files, *terminal, "--detach", task_id]


def start(base: list[str], task_id: str) -> list[str]:
    """`start`: lets the waiting init go on."""
    return [*base, "start", task_id]


def delete(base: list[str], task_id: str, *, force: bool = False) -> list[str]:
    """`delete`; `--force` sleeps 100 ms in runc, so plain comes first (design 4)."""
    return [*base, "delete", *(["--force"] if force else []), task_id]


def pause(base: list[str], task_id: str) -> list[str]:
    """`pause`: freezes the container's cgroup."""
    return [*base, "pause", task_id]


def resume(base: list[str], task_id: str) -> list[str]:
    """`resume`: thaws it."""
    return [*base, "resume", task_id]


def update(base: list[str], task_id: str) -> list[str]:
    """`update` of the container's limits with a LinuxResources on stdin."""
    return [*base, "update", "--resources=-", task_id]


def checkpoint(base: list[str], wish: Wish, images: str, work: str, task_id: str) -> list[str]:
    """`checkpoint` into the folder `images`; criu's log goes to `work`. Without `--leave-running`
    the container ends and the runtime forgets it."""
    argv = [*base, "checkpoint", "--image-path", images, "--work-path", work, *_allowed(wish)]
    argv += ["--manage-cgroups-mode", wish.cgroups_mode] if wish.cgroups_mode else []
    return [*argv, *([] if wish.exit else ["--leave-running"]), task_id]


def restore(
    base: list[str], me: Identity, wish: Wish, state_dir: str, work: str, console: str = ""
) -> list[str]:
    """`restore` of the images in `me.checkpoint`, detached: returns when the processes run. criu
    must be allowed once more what the checkpoint was allowed (`wish`)."""
    argv = [*base, "restore", "--image-path", me.checkpoint, "--work-path", work, *_allowed(wish)]
    argv += ["--detach", "--pid-file", f"{state_dir}/{PID_FILE}"]
    argv += ["--console-socket", console] if console else []
    if not is_crun(base[0]):  # which knows neither
        argv += ["--no-pivot"] if me.runtime.no_pivot_root else []
        argv.append("--no-subreaper")
    return [*argv, "--bundle", me.bundle, me.id]


def _allowed(wish: Wish) -> list[str]:
    switches = {
        "--tcp-established": wish.open_tcp,
        "--ext-unix-sk": wish.external_unix_sockets,
        "--shell-job": wish.terminal,
        "--file-locks": wish.file_locks,
    }
    argv = [name for name, on in switches.items() if on]
    for namespace in wish.empty_namespaces:
        argv += ["--empty-ns", namespace]
    return argv


def exec_fifo(options: RuntimeOptions, namespace: str, task_id: str) -> str:
    """Path that exists exactly while a created container waits for `start` (runc and crun)."""
    return f"{options.root}/{namespace}/{task_id}/exec.fifo"


def state_path(options: RuntimeOptions, namespace: str, task_id: str) -> str:
    """The runtime's own folder for a container."""
    return f"{options.root}/{namespace}/{task_id}"


def state_bundle(text: str) -> str:
    """The bundle that a runtime's state of a container names (runc's state.json, crun's status);
    empty when it names none."""
    try:
        state = json.loads(text)
        named = state.get("bundle")
        labels = [] if named else state["config"]["labels"]
        found = [one.removeprefix("bundle=") for one in labels if one.startswith("bundle=")]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    return named if isinstance(named, str) else "".join(found[:1])


def error_text(log: str, output: str) -> str:
    """The runtime's own error in full: its log's last `error` entry, else what it printed.

    `log` is a sequence of JSON objects: runc and older cruns write one a line, newer cruns several
    lines each. Lines that begin none are passed over.
    """
    found, at, decoder = "", 0, json.JSONDecoder()
    while (at := log.find("{", at)) >= 0:
        try:
            entry, at = decoder.raw_decode(log, at)
        except (ValueError, RecursionError):
            at = log.find("\n", at)
            if at < 0:
                break
            continue
        if entry.get("level") in ("error", "fatal"):
            found = str(entry.get("msg", "")).strip() or found
    return found or " ".join(output.split())


def hint(text: str) -> str:
    """What to do about a runtime's error, where its own words do not say it; else empty."""
    if "RLIM_MEMLOCK" in text:  # crun 1.8 lifts it before it loads device rules on cgroup v2
        return "crun needs CAP_SYS_RESOURCE here, which this host's root does not have: use runc"
    return ""
