"""D-Bus messages from and to bytes (D-Bus specification: type system, message format). Pure.

A codec of our own, because it is in the way of every container: dbus-next's took a seventh of the
daemon's CPU time, and its import a fifth of ours. tests/unit/test_systemd_codec.py holds the two
against each other. Signatures become functions once, and are kept.

Values are plain on the way in: a variant is its value, a struct a list, ``ay`` bytes. On the way
out a variant is a `Variant`, a struct a list or a tuple. Whatever does not fit raises ValueError.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Writer = Callable[[bytearray, Any], None]
    Reader = Callable[[bytes, int], tuple[Any, int]]
    """Value and end of what stands at an offset."""

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED = 1

_ORDERS = {ord("l"): "<", ord("B"): ">"}
_NUMBERS = {
    "y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I",
}  # fmt: skip
_ALIGNED = {**{kind: struct.calcsize(code) for kind, code in _NUMBERS.items()}, "b": 4}
_ALIGNED |= {"s": 4, "o": 4, "a": 4, "(": 8, "{": 8, "g": 1, "v": 1}
_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<cBBBIII")
_PATH = re.compile(r"/|(/[A-Za-z0-9_]+)+")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
_WRONG = (TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError)
_KEPT = 512
"""Signatures and headers that are kept ready."""
_DEPTH = 32
"""The most brackets in a signature (specification: 32 arrays and 32 structs)."""
_FIELDS = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u"}
"""Header field → its type."""
_NEEDED = {METHOD_CALL: (1, 3), METHOD_RETURN: (5,), ERROR: (4, 5), SIGNAL: (1, 2, 3)}


@dataclass(slots=True)
class Message:
    """One message; texts that it does not have are empty."""

    kind: int = METHOD_CALL
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    destination: str = ""
    sender: str = ""
    signature: str = ""
    body: list[Any] = field(default_factory=list)
    flags: int = 0
    serial: int = 0
    fds: list[int] = field(default_factory=list)
    """Descriptors that go along; not in the bytes."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A value with its type, on its way out."""

    signature: str
    value: object


def encode(message: Message) -> bytes:
    """A message as bytes, little-endian. Raises ValueError for a value that its signature does not
    allow."""
    body = bytearray()
    types = split(message.signature)
    if len(types) != len(message.body):
        raise ValueError(f"{len(message.body)} values for the signature {message.signature!r}")
    try:
        for kind, value in zip(types, message.body, strict=True):
            _writer(kind)(body, value)
    except (*_WRONG, struct.error) as error:
        raise ValueError(f"not of type {message.signature}: {error!r}") from error
    fields = _fields(
        message.path,
        message.interface,
        message.member,
        message.error_name,
        message.reply_serial,
        message.destination,
        message.signature,
        len(message.fds),
    )
    size = len(fields)
    head = _HEAD.pack(b"l", message.kind, message.flags, 1, len(body), message.serial, size)
    return b"".join((head, fields, bytes(-size % 8), body))


def check(variant: Variant) -> None:
    """Raises ValueError for a value that its signature does not allow."""
    try:
        _write_variant(bytearray(), variant)
    except (*_WRONG, struct.error) as error:
        raise ValueError(f"not of type {variant.signature}: {type(error).__name__}") from error


def decode(frame: bytes) -> Message:
    """The message in a whole frame. Raises ValueError for one that is none."""
    try:
        return _decode(frame)
    except (*_WRONG, struct.error) as error:
        raise ValueError(f"not a D-Bus message: {error!r}") from error


def _decode(frame: bytes) -> Message:
    order = _ORDERS[frame[0]]
    kind, flags = frame[1], frame[2]
    size, serial, length = struct.unpack_from(f"{order}III", frame, 4)
    at, end = 16, 16 + length
    read = _reader("v", order)
    found: dict[int, Any] = {}
    while at < end:
        at += -at % 8
        code = frame[at]
        value, at = read(frame, at + 1)
        wanted = _FIELDS.get(code)
        if wanted and not isinstance(value, int if wanted == "u" else str):
            raise ValueError(f"header field {code} is {value!r}")
        found[code] = value
    if at != end or not all(code in found for code in _NEEDED[kind]):
        raise ValueError(f"the header of a message of kind {kind} is not whole")
    signature = found.get(8, "")
    body: list[Any] = []
    if size:
        at = end + -end % 8
        data, at = frame[at : at + size], 0
        for one in split(signature):
            value, at = _reader(one, order)(data, at)
            body.append(value)
        if at != size or len(data) != size:
            raise ValueError(f"{size} bytes are not of type {signature}")
    get = found.get
    return Message(
        kind,
        get(1, ""),
        get(2, ""),
        get(3, ""),
        get(4, ""),
        get(5, 0),
        get(6, ""),
        get(7, ""),
        signature,
        body,
        flags,
        serial,
    )


@functools.lru_cache(_KEPT)
def split(signature: str) -> tuple[str, ...]:
    """The complete types of a signature. Raises ValueError when it is none."""
    found, at = [], 0
    while at < len(signature):
        end = _end(signature, at, 0)
        found.append(signature[at:end])
        at = end
    return tuple(found)


def _end(signature: str, at: int, depth: int) -> int:
    """Where the complete type that begins at `at` ends."""
    kind = signature[at : at + 1]
    if depth > 2 * _DEPTH or kind not in _ALIGNED or kind == "{":
        raise ValueError(f"bad signature {signature!r}")
    if kind == "a":
        if signature[at + 1 : at + 2] != "{":
            return _end(signature, at + 1, depth + 1)
        key = _end(signature, at + 2, depth + 1)
        end = _end(signature, key, depth + 1)
        if key != at + 3 or signature[at + 2] in "av(" or signature[end : end + 1] != "}":
            raise ValueError(f"bad signature {signature!r}")
        return end + 1
    if kind != "(":
        return at + 1
    end = at + 1
    while signature[end : end + 1] != ")":
        end = _end(signature, end, depth + 1)
    if end == at + 1:
        raise ValueError(f"bad signature {signature!r}: an empty struct")
    return end + 1


# --- out


@functools.lru_cache(_KEPT)
def _fields(
    path: str,
    interface: str,
    member: str,
    error_name: str,
    reply_serial: int,
    destination: str,
    signature: str,
    fds: int,
) -> bytes:
    """The header fields. What is no path or name would cost the connection, so it is refused."""
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"not an object path: {path!r}")
    for name in (interface, member, error_name, destination):
        if name and not _NAME.fullmatch(name):
            raise ValueError(f"not a name: {name!r}")
    values = (path, interface, member, error_name, reply_serial, destination, "", signature, fds)
    out = bytearray()
    for code, value in enumerate(values, start=1):
        if value:
            out += bytes(-len(out) % 8)
            out.append(code)
            _write_variant(out, Variant(_FIELDS[code], value))
    return bytes(out)


@functools.lru_cache(_KEPT)
def _writer(kind: str) -> Writer:
    """What writes a value of a complete type; offsets count from the beginning of `out`."""
    if kind in _NUMBERS:
        return _number_writer(struct.Struct(f"<{_NUMBERS[kind]}"))
    match kind[0]:
        case "b":
            return _write_boolean
        case "s" | "o":
            return _write_text
        case "g":
            return _write_signature
        case "v":
            return _write_variant
        case "a":
            return _array_writer(kind[1:])
    parts = [_writer(one) for one in split(kind[1:-1])]  # a struct, or an entry of a dict

    def write(out: bytearray, value: Any) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise TypeError(f"a struct {kind} was expected")
        out += bytes(-len(out) % 8)
        for part, one in zip(parts, value, strict=True):
            part(out, one)

    return write


def _number_writer(form: struct.Struct) -> Writer:
    def write(out: bytearray, value: Any) -> None:
        out += bytes(-len(out) % form.size)
        out += form.pack(value)

    return write


def _write_boolean(out: bytearray, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError("a boolean was expected")
    out += bytes(-len(out) % 4)
    out += _LENGTH.pack(value)


def _write_text(out: bytearray, value: Any) -> None:
    data = value.encode()
    if b"\0" in data:
        raise ValueError("a NUL in a text")
    out += bytes(-len(out) % 4)
    out += _LENGTH.pack(len(data))
    out += data
    out.append(0)


def _write_signature(out: bytearray, value: Any) -> None:
    data = value.encode()
    out.append(len(data))
    out += data
    out.append(0)


def _write_variant(out: bytearray, value: Any) -> None:
    (kind,) = split(value.signature)
    _write_signature(out, kind)
    _writer(kind)(out, value.value)


def _array_writer(inner: str) -> Writer:
    to = _ALIGNED[inner[0]]
    entry = _writer(f"({inner[1:-1]})") if inner[0] == "{" else _writer(inner)
    fitting = {"{": (dict,), "y": (bytes, bytearray, list)}.get(inner[0], (list, tuple))

    def write(out: bytearray, value: Any) -> None:
        out += bytes(-len(out) % 4)
        at = len(out)
        out += bytes(4)
        out += bytes(-len(out) % to)
        begin = len(out)
        if not isinstance(value, fitting):
            raise TypeError(f"an array of {inner} was expected")
        if inner == "y":
            out += bytes(value)
        else:
            for one in value.items() if isinstance(value, dict) else value:
                entry(out, one)
        _LENGTH.pack_into(out, at, len(out) - begin)

    return write


# --- in


@functools.lru_cache(_KEPT)
def _reader(kind: str, order: str) -> Reader:
    """What reads a value of a complete type; offsets count from the beginning of the data."""
    if kind in _NUMBERS:
        return _number_reader(struct.Struct(order + _NUMBERS[kind]))
    match kind[0]:
        case "b":
            return _boolean_reader(struct.Struct(f"{order}I"))
        case "s" | "o":
            return _text_reader(struct.Struct(f"{order}I"))
        case "g":
            return _read_signature
        case "v":
            return functools.partial(_read_variant, order)
        case "a":
            return _array_reader(kind[1:], order)
    parts = [_reader(one, order) for one in split(kind[1:-1])]  # a struct, or an entry of a dict

    def read(data: bytes, at: int) -> tuple[list[Any], int]:
        at += -at % 8
        values = []
        for part in parts:
            value, at = part(data, at)
            values.append(value)
        return values, at

    return read


def _number_reader(form: struct.Struct) -> Reader:
    size = form.size

    def read(data: bytes, at: int) -> tuple[Any, int]:
        at += -at % size
        return form.unpack_from(data, at)[0], at + size

    return read


def _boolean_reader(form: struct.Struct) -> Reader:
    def read(data: bytes, at: int) -> tuple[bool, int]:
        at += -at % 4
        return bool(form.unpack_from(data, at)[0]), at + 4

    return read


def _text_reader(form: struct.Struct) -> Reader:
    def read(data: bytes, at: int) -> tuple[str, int]:
        at += -at % 4
        begin = at + 4
        end = begin + form.unpack_from(data, at)[0]
        if data[end]:
            raise ValueError("a text without end")
        return data[begin:end].decode(), end + 1

    return read


def _read_signature(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    if data[end]:
        raise ValueError("a signature without end")
    return data[at + 1 : end].decode(), end + 1


def _read_variant(order: str, data: bytes, at: int) -> tuple[Any, int]:
    signature, at = _read_signature(data, at)
    (kind,) = split(signature)
    return _reader(kind, order)(data, at)


def _array_reader(inner: str, order: str) -> Reader:
    length = _number_reader(struct.Struct(f"{order}I"))
    to = _ALIGNED[inner[0]]
    entry = _reader(f"({inner[1:-1]})" if inner[0] == "{" else inner, order)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        size, at = length(data, at)
        at += -at % to
        end = at + size
        if end > len(data):
            raise ValueError("an array beyond the message")
        if inner == "y":
            return data[at:end], end
        values = []
        while at < end:
            value, at = entry(data, at)
            values.append(value)
        if at != end:
            raise ValueError("an array of another length")
        return (dict(values) if inner[0] == "{" else values), end

    return read
