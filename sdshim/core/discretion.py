"""Environment values of a container, taken out of texts for clients, logs and spans (pure).

An OCI runtime may quote the process that it could not start. `NAME=value` always loses its value;
a value that stands alone does when it is long enough to be a secret and not one of the names whose
values are paths and words that error texts are full of.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN = "…"
LONG = 6
"""Characters from which on a value may be a secret."""
PLAIN = frozenset(["HOME", "HOSTNAME", "LANG", "PATH", "PWD", "SHELL", "TERM", "TMPDIR", "USER"])


def discreet(text: str, environment: Iterable[str]) -> str:
    """The text without the values of `NAME=value` entries, as they are, quoted, or on one line."""
    forms = {form for entry in environment for form in _forms(entry)}
    pairs = [form.partition("=") for form in forms]
    for name, equals, value in sorted(pairs, key=lambda pair: (-len(pair[2]), pair)):
        if equals and value:
            text = text.replace(f"{name}={value}", f"{name}={HIDDEN}")
            if len(value) >= LONG and name not in PLAIN:
                text = text.replace(value, HIDDEN)
        elif not equals and len(name) >= LONG:  # the runtime refuses what has no `=`, and says so
            text = text.replace(name, HIDDEN)
    return text


def _forms(entry: str) -> set[str]:
    """An entry, what it is inside a JSON text (with escapes for all that is not ASCII, or only for
    what must have one, as Go's %q has), and what it is when a text's lines are made one."""
    joined = " ".join(entry.split())
    return {entry, joined, json.dumps(entry)[1:-1], json.dumps(entry, ensure_ascii=False)[1:-1]}
