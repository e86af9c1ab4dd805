"""Values, frames and addresses of D-Bus: the pure half of `bus`, which has the reasons."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dbus_next import Variant
from dbus_next._private.unmarshaller import Unmarshaller

from sdshim.core.errors import InvalidArgument
from sdshim.systemd.errors import DBUS, BadProperty

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_MESSAGE = 128 << 20


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal as received; variants in `body` are already plain values."""

    path: str
    interface: str
    member: str
    body: list[Any]


@dataclass(slots=True)
class Rule:
    """One match rule with its handlers and what is compared here (the bus compares the rest)."""

    path: str | None
    interface: str | None
    member: str | None
    arg0: str | None
    handlers: list[Callable[[Signal], None]] = field(default_factory=list)

    @classmethod
    def parse(cls, rule: str) -> Rule:
        pairs = (part.partition("=") for part in rule.split(",") if part)
        parts = {key: value.strip("'") for key, _, value in pairs}
        get = parts.get
        return cls(get("path"), get("interface"), get("member"), get("arg0"))

    def matches(self, signal: Signal) -> bool:
        return (
            self.member in (None, signal.member)
            and self.interface in (None, signal.interface)
            and self.path in (None, signal.path)
            and (self.arg0 is None or signal.body[:1] == [self.arg0])
        )


def typed(properties: Sequence[tuple[str, str, object]]) -> list[object]:
    """(name, signature, value) as the body of an ``a(sv)``; tuples in a value serve as structs. The
    value of a descriptor (``h``) is its number here; `descriptors` go along with the message."""
    packed: list[object] = []
    passed = 0
    for name, signature, value in properties:
        if signature == "h":
            value, passed = passed, passed + 1
        try:
            packed.append([name, Variant(signature, listed(value))])
        except ValueError as error:
            raise BadProperty(f"{DBUS}.Error.InvalidArgs", str(error), name) from error
    return packed


def descriptors(properties: Sequence[tuple[str, str, Any]]) -> list[int]:
    """The descriptors among the values, in the order in which `typed` counts them."""
    return [value for _, signature, value in properties if signature == "h"]


def listed(value: object) -> object:
    """The same with lists for tuples, at every depth: what the marshaller takes for structs."""
    if isinstance(value, tuple | list):
        return [listed(item) for item in value]
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """The same without variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def decode(frame: bytes) -> Any:
    """The Message in a whole frame. Raises whatever the library makes of a faulty one."""
    return Unmarshaller(io.BytesIO(frame)).unmarshall()


def frame_length(head: bytes | bytearray) -> int:
    """Length of the message whose first 16 bytes are `head`."""
    if head[0] not in b"lB":
        raise ValueError("not a D-Bus message")
    body, _serial, fields = struct.unpack_from("<III" if head[0] == ord("l") else ">III", head, 4)
    length: int = 16 + (fields + 7) // 8 * 8 + body
    if length > MAX_MESSAGE:
        raise ValueError(f"a message of {length} bytes")
    return length


def headers_only(frame: bytes) -> bytes:
    """The same message with an empty body: what is left when a body cannot be decoded."""
    fields = struct.unpack_from("<I" if frame[0] == ord("l") else ">I", frame, 12)[0]
    return frame[:4] + bytes(4) + frame[8 : 16 + (fields + 7) // 8 * 8]


def socket_paths(address: str) -> list[str]:
    """Socket paths (abstract ones with a leading NUL) of a D-Bus address, in order."""
    paths = []
    for part in filter(None, address.split(";")):
        transport, _, options = part.partition(":")
        values = dict(option.partition("=")[::2] for option in options.split(",") if option)
        if transport == "unix" and "path" in values:
            paths.append(unquote(values["path"]))
        elif transport == "unix" and "abstract" in values:
            paths.append("\0" + unquote(values["abstract"]))
    if not paths:
        raise InvalidArgument(f"D-Bus address {address!r} names no unix socket")
    return paths


def label(call: Any) -> str:
    """The call in error texts: its member and short plain arguments, never property values."""
    words = [call.member, *(a for a in call.body if isinstance(a, str) and len(a) <= 255)]
    return " ".join(words)
