"""What a failed Create, Exec or Start tells, without the environment that the process has."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core.discretion import discreet
from sdshim.core.errors import ShimError
from sdshim.host.store import PROCESS_SPEC
from sdshim.runtime import bundle

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task

METHODS = ("Create", "Exec", "Start", "Update", "Checkpoint")
"""In which an OCI runtime may complain of what it was given."""


def told(node: Node, method: str, request: Any, task: Task | None, error: Exception) -> Exception:
    """The error, or one of the same code with a discreet text."""
    if method not in METHODS or not isinstance(error, ShimError):
        return error
    text = str(error)
    kept = discreet(text, _environment(node, request, task))
    if kept == text:
        return error
    made = ShimError(kept)
    made.code = error.code
    return made


def _environment(node: Node, request: Any, task: Task | None) -> list[str]:
    found: list[str] = []
    folder = getattr(request, "bundle", "") or (task.identity.bundle if task else "")
    if folder.startswith("/"):
        found += bundle.environment(Path(folder))
    child = task.execs.get(getattr(request, "exec_id", "")) if task else None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if child:
            path = node.store.folder(child.identity) / PROCESS_SPEC
            found += bundle.entries(json.loads(path.read_bytes()))
        elif hasattr(request, "spec"):
            found += bundle.entries(json.loads(request.spec.value))
    return found
