"""The launcher's command line as containerd writes it (Go's flag package), ids, directories."""

from __future__ import annotations

import os

NAME = "containerd-shim-systemd-v1"
USAGE = f"""\
usage: {NAME} -namespace NS -address GRPC -publish-binary PATH -id ID [-debug] start
       {NAME} -namespace NS -address GRPC -publish-binary PATH -id ID -bundle DIR [-debug] delete
       {NAME} -info < OPTIONS
       {NAME} -v

containerd runs this program, people do not: runtime io.containerd.systemd.v1.
It connects containerd to the sdshim daemon (systemctl status sdshim).
"""

_MAX_ID = 76
_VALUES = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")
_SWITCHES = {"debug": "debug", "info": "info", "v": "version", "version": "version"}
_SWITCHES |= {"h": "help", "help": "help"}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Fault(Exception):
    """The action failed; the text is for a person, with cause and hint."""


class Flags:
    """The parsed command line."""

    __slots__ = ("action", "debug", "help", "info", "values", "version")

    def __init__(self) -> None:
        self.action = ""
        self.debug = self.info = self.version = self.help = False
        self.values = dict.fromkeys(_VALUES, "")

    def __getitem__(self, name: str) -> str:
        """Value of a flag that takes one; empty when it was not given."""
        return self.values[name]


def parse(arguments: list[str]) -> Flags:
    """Parse Go-style flags (one dash or two, ``-x v`` or ``-x=v``) and the action after them."""
    flags = Flags()
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if name in flags.values:
            if not equals and not rest:
                raise Fault(f"flag needs an argument: -{name}")
            flags.values[name] = value if equals else rest.pop(0)
        elif name in _SWITCHES:
            if equals and value not in _TRUE + _FALSE:
                raise Fault(f"invalid boolean value {value!r} for -{name}")
            setattr(flags, _SWITCHES[name], not equals or value in _TRUE)
        else:
            raise Fault(f"flag provided but not defined: -{name}\n{USAGE}")
    if not (flags.version or flags.info or flags.help):
        _take_action(flags, rest)
    return flags


def _take_action(flags: Flags, rest: list[str]) -> None:
    if not rest:
        raise Fault(f"no action given\n{USAGE}")
    if rest[0] not in ("start", "delete"):
        raise Fault(f"unknown action {rest[0]!r}\n{USAGE}")
    if rest[1:]:
        raise Fault(f"unexpected argument {rest[1]!r} after {rest[0]}\n{USAGE}")
    flags.action = rest[0]
    check_id(flags["namespace"], "namespace")
    check_id(flags["id"], "id")


def check_id(value: str, what: str) -> str:
    """Return `value` if containerd would accept it as an identifier (core/names.py: same rule)."""
    if not value:
        raise Fault(f"no {what} given (-{what})\n{USAGE}")
    size = len(value.encode(errors="surrogateescape"))
    if size > _MAX_ID:
        raise Fault(f"{what} {value[:_MAX_ID]!r}… is {size} bytes long, {_MAX_ID} are allowed")
    parts = value.replace("_", ".").replace("-", ".").split(".")  # the re module costs 3 ms
    if not all(part.isascii() and part.isalnum() for part in parts):
        raise Fault(f"{what} {value!r} is not a legal containerd identifier")
    return value


def run_dir() -> str:
    """Where the daemon's sockets and the tasks' states are."""
    return os.environ.get("SDSHIM_RUN_DIR") or "/run/sdshim"


def write_file(path: str, data: bytes) -> None:
    """Write a small file so that nobody ever sees half of it."""
    new = f"{path}.{os.getpid()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.replace(new, path)
