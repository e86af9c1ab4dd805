"""Any and Timestamp as containerd reads them (protocol 3.3, 4.1).

type_urls are written without `type.googleapis.com/` (Go's exact-match helpers and containerd 1.6
know no prefix) and accepted with any prefix. A time that has not come is Go's zero time, not an
absent field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")

GO_ZERO_SECONDS = -62_135_596_800  # 0001-01-01, what Go's IsZero() asks for
_NS = 1_000_000_000

# OCI types travel as JSON under these urls, which have no protobuf type behind them.
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def pack(message: Message) -> Any:
    """`message` in an Any whose type_url is the bare message name."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def type_name(value: Any) -> str:
    """The message name in an Any, without the prefix that foreign clients send."""
    url = str(value.type_url).removeprefix("type.googleapis.com/")
    return url if url.startswith("types.containerd.io/") else url.rpartition("/")[2]


def unpack(value: Any, message_type: type[M]) -> M | None:
    """The message in `value`, None when it holds another type; garbage is InvalidArgument."""
    if type_name(value) != message_type.DESCRIPTOR.full_name:
        return None
    message = message_type()
    try:
        message.ParseFromString(value.value)
    except DecodeError as error:
        raise InvalidArgument(f"cannot decode {type_name(value)}", cause=str(error)) from error
    return message


def timestamp(ns: int | None) -> Timestamp:
    """Nanoseconds since the epoch as a Timestamp; None (not yet) becomes Go's zero time."""
    if ns is None:
        return Timestamp(seconds=GO_ZERO_SECONDS)
    return Timestamp(seconds=ns // _NS, nanos=ns % _NS)


def from_timestamp(value: Timestamp) -> int | None:
    """The reverse of `timestamp`; an unset Timestamp (1970) and Go's zero time are both None."""
    if value.seconds in (0, GO_ZERO_SECONDS) and not value.nanos:
        return None
    return value.seconds * _NS + value.nanos
