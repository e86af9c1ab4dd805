"""Log URIs: where a process's output goes when stdout names no FIFO (protocol 6.1 to 6.4). Pure.

The scheme of stdout decides for all streams; stderr's text is not looked at then. A URI is taken
apart as Go's net/url does for the stock shim: the authority and the fragment are ignored, the path
is percent-decoded, and in the query `+` is a space and a broken pair is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdshim.core.errors import InvalidArgument, UnknownError

if TYPE_CHECKING:
    from sdshim.core.model import Stdio

FAILED = "failed to create init process I/O"
"""How stock begins every error of a logger, an exec's too."""
FILE, BINARY, BINARY_V2 = "file", "binary", "binary-v2"
OUT, ERR, READY = "out", "err", "ready"
"""FIFOs in the state folder of a process with a logger: its fds 3, 4 and 5."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Logger:
    """What takes a process's output."""

    scheme: str
    """`file`, `binary` or `binary-v2`."""
    path: str
    """The file, or the program."""
    arguments: tuple[str, ...] = ()
    """Of the program: each key of the query and its first value, in the order of the query."""


def parse(stdout: str) -> Logger | None:
    """The logger that a stdout names; None when it is empty or a path (of a FIFO).

    Raises InvalidArgument for what is no URI, UnknownError in stock's words for other schemes.
    """
    found = _SCHEME.match(stdout)
    if not found:
        return None
    if _CONTROL.search(stdout):
        raise InvalidArgument(f"stdout: {stdout[:256]!r} has control characters")
    scheme = found[1].lower()
    if scheme not in (FILE, BINARY, BINARY_V2):
        hint = f"{FILE}, {BINARY} and {BINARY_V2} are known"
        raise UnknownError(f"{FAILED}: unknown STDIO scheme {scheme[:64]}", hint=hint)
    rest = stdout[found.end() :].partition("#")[0]
    rest, _, query = rest.partition("?")
    if rest.startswith("//"):
        rest = rest[2:].partition("/")[1] + rest[2:].partition("/")[2]
    raw = rest.encode()
    if broken := _BROKEN.search(raw):
        escape = broken[0].decode(errors="replace")
        raise InvalidArgument(f"stdout: parse {stdout[:256]!r}: invalid URL escape {escape!r}")
    if not raw.startswith(b"/"):
        raise InvalidArgument(f"stdout: {stdout[:256]!r} has no absolute path")
    arguments = () if scheme == FILE else _arguments(query)
    return Logger(scheme, _text(raw), arguments)


def process_side(stdio: Stdio, folder: str) -> Stdio:
    """The paths that the process's unit opens, below its state folder when there is a logger.

    A file gets both streams in the order they were written: they are one FIFO then.
    """
    logger = parse(stdio.stdout)
    if logger is None:
        return stdio
    out = f"{folder}/{OUT}"
    return replace(stdio, stdout=out, stderr=out if logger.scheme == FILE else f"{folder}/{ERR}")


def _arguments(query: str) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for pair in query.split("&"):
        raw = pair.replace("+", " ").encode()
        if not pair or ";" in pair or _BROKEN.search(raw):
            continue
        key, _, value = raw.partition(b"=")
        found.setdefault(_text(key), _text(value))
    return tuple(word for pair in found.items() for word in pair)


def _text(raw: bytes) -> str:
    """Percent-decoded. Raises InvalidArgument for what no argument of a unit can hold."""
    data = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), raw)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("stdout: URI is not UTF-8 when decoded", cause=repr(data)) from error
    if "\0" in text:
        raise InvalidArgument("stdout: NUL in a URI")
    return text
