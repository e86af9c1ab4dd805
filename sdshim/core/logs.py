"""Where a process's output goes, and what its lines in the journal carry (pure; docs/logging.md).

A wish comes from the container (annotation, then option), its containerd namespace or the daemon's
configuration, in this order; what it comes to also depends on the streams that the client asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.core import loguri
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import Log, Stdio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.model import Identity

STDIO, JOURNAL, BOTH, NULL = "stdio", "journal", "both", "null"
MODES = (STDIO, JOURNAL, BOTH, NULL)
LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""journald's priorities, by their numbers."""
KEYS = ("log", "log_namespace", "log_stdout_priority", "log_stderr_priority")
"""What a wish consists of, in options and in the configuration."""
NOTES = {f"io.sdshim.{key.replace('_', '-')}": key for key in KEYS}
"""The annotations → the same keys."""
MAX_NAMESPACE = 128
MAX_FIELD = 512

_CRI, _CRIO, _POD = "io.kubernetes.cri.", "io.kubernetes.cri-o.", "io.kubernetes.pod."
_FIELDS = {
    "CONTAINER_NAME": (
        f"{_CRI}container-name",
        "io.kubernetes.container.name",
        "nerdctl/name",
        "io.sdshim.name",
    ),
    "IMAGE_NAME": (f"{_CRI}image-name", f"{_CRIO}ImageName", "io.sdshim.image"),
    "POD_NAME": (f"{_CRI}sandbox-name", f"{_POD}name", f"{_CRIO}Name", "io.sdshim.pod"),
    "POD_NAMESPACE": (f"{_CRI}sandbox-namespace", f"{_POD}namespace", f"{_CRIO}Namespace"),
    "POD_UID": (f"{_CRI}sandbox-uid", f"{_POD}uid"),
    "POD_ID": (f"{_CRI}sandbox-id", f"{_CRIO}SandboxID"),
}
"""Journal fields, and the annotations they come from: the first one that there is. Of containerd's
CRI, of CRI-O (podman writes some of these too) with the kubelet's labels `io.kubernetes.pod.…`, of
nerdctl, which copies its labels, and ours."""


def faults(wish: Mapping[str, str]) -> list[str]:
    """What is wrong with the values of KEYS, one sentence each; empty values are no wish."""
    found = []
    if wish.get("log", "") not in ("", *MODES):
        found.append(f"log {wish['log'][:64]!r} is not one of {', '.join(MODES)}")
    for key in KEYS[2:]:
        if wish.get(key) and priority(wish[key]) is None:
            text = wish[key][:64]
            found.append(f"{key} {text!r} is neither one of {', '.join(LEVELS)} nor 0 to 7")
    space = wish.get("log_namespace", "")
    if space and not (
        len(space) <= MAX_NAMESPACE
        and space.isascii()
        and space.replace("-", "").replace("_", "").replace(".", "").isalnum()
        and space[0] not in ".-"
    ):
        found.append(f"log_namespace {space[:64]!r} is not the name of a journal namespace")
    return found


def priority(text: str) -> int | None:
    """The number of a level's name or number; None when it is neither."""
    if text in LEVELS:
        return LEVELS.index(text)
    return int(text) if len(text) == 1 and text in "01234567" else None


def decide(
    asked: Mapping[str, str],
    notes: Mapping[str, str],
    defaults: Mapping[str, str],
    stdio: Stdio,
) -> Log:
    """Where the output of a container's first process goes.

    `asked` are the options of the task, `notes` the spec's annotations, `defaults` the
    configuration for its containerd namespace. Raises InvalidArgument for annotations that are
    wrong, and when the container's own wish cannot be fulfilled with these streams.
    """
    noted = {key: notes[name] for name, key in NOTES.items() if notes.get(name)}
    if wrong := faults(noted):
        raise InvalidArgument("annotations io.sdshim.log…: " + "; ".join(wrong))
    own = {**asked, **noted}
    wish = {key: own.get(key) or defaults.get(key, "") for key in KEYS}
    types = (notes.get(f"{_CRI}container-type"), notes.get(f"{_CRIO}ContainerType"))
    quiet = "sandbox" in types  # a pause prints nothing
    return Log(
        mode=_refuse(own.get("log", ""), stdio) or _mode(wish["log"], stdio, quiet=quiet),
        wish=wish["log"],
        namespace=wish["log_namespace"],
        stdout_priority=_number(wish["log_stdout_priority"], 6),
        stderr_priority=_number(wish["log_stderr_priority"], 3),
        fields=tuple((field, _line(text)) for field, text in named(notes).items()),
    )


def _refuse(own: str, stdio: Stdio) -> str:
    """The mode that the container itself asks for, if it needs no further thought. Raises
    InvalidArgument when the client's streams leave no way to do it."""
    if own in (JOURNAL, BOTH, NULL) and loguri.parse(stdio.stdout):
        raise InvalidArgument(
            f"log {own!r} beside the log URI {stdio.stdout[:256]!r}: only one can have the output"
        )
    if own in (JOURNAL, NULL) and stdio.terminal:
        raise InvalidArgument(
            f"log {own!r} with a terminal: nobody would see it",
            hint="log 'both' gives a terminal's output to the client and to the journal",
        )
    return own if own in (JOURNAL, NULL) else ""


def _mode(wish: str, stdio: Stdio, *, quiet: bool) -> str:
    if loguri.parse(stdio.stdout) or wish == STDIO:
        return STDIO
    if stdio.terminal:
        return BOTH if wish in (JOURNAL, BOTH) else STDIO
    asked = bool(stdio.stdout or stdio.stderr)
    if quiet and not asked:
        return STDIO
    if not wish:
        return STDIO if asked or stdio.stdin else JOURNAL
    return wish if wish != BOTH or asked else JOURNAL


def of_exec(task: Log, stdio: Stdio) -> str:
    """Where the output of an exec in a container goes: who asks for its streams gets them."""
    if loguri.parse(stdio.stdout) or stdio.terminal:
        return STDIO
    if stdio.stdout or stdio.stderr:
        return BOTH if task.wish in (JOURNAL, BOTH) else STDIO
    if task.wish in (JOURNAL, BOTH):
        return JOURNAL
    return STDIO if task.wish or stdio.stdin else JOURNAL


def process_side(stdio: Stdio, folder: str, mode: str) -> Stdio:
    """The paths that the process's unit opens: the client's, or FIFOs in its state folder."""
    if mode == NULL:
        return Stdio(stdin=stdio.stdin, terminal=stdio.terminal)
    if mode not in (JOURNAL, BOTH):
        return loguri.process_side(stdio, folder)
    err = "" if stdio.terminal else f"{folder}/{loguri.ERR}"
    return Stdio(stdio.stdin, f"{folder}/{loguri.OUT}", err, stdio.terminal)


def name(me: Identity) -> str:
    """What a process's lines begin with: the container's name, or its id."""
    return dict(me.log.fields).get("CONTAINER_NAME", me.id)


def fields(me: Identity) -> dict[str, str]:
    """The journal fields of everything that concerns a process."""
    found = {"CONTAINER_ID": me.id, "CONTAINER_NAME": name(me)}
    found["CONTAINER_NAMESPACE"] = me.namespace
    if me.exec_id:
        found["CONTAINER_EXEC_ID"] = me.exec_id
    found.update(me.log.fields)
    if trace := trace_id(me.traceparent):
        found["TRACE_ID"] = trace
    return found


def trace_id(traceparent: str) -> str:
    """The trace of a W3C traceparent (version-trace-span-flags), empty without one."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def named(notes: Mapping[str, str]) -> dict[str, str]:
    """What the annotations of a spec tell of its container, image and pod: journal field → value,
    without those that are not told."""
    found = {
        field: [notes[key] for key in keys if notes.get(key)] for field, keys in _FIELDS.items()
    }
    return {field: texts[0] for field, texts in found.items() if texts}


def _line(text: str) -> str:
    """Fit for one line of a unit's file."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_FIELD])


def _number(text: str, default: int) -> int:
    found = priority(text)
    return default if found is None else found
