"""The ttrpc wire format, pure: bytes in, values out, no I/O.

A frame is a 10-byte big-endian header (data length, stream id, type, flags) and its data. The data
of a request and of a response is a protobuf message so small that it is written and read here by
hand: no generated code, no descriptor pool, and nothing to import. Like Go's decoder, unknown
fields (and known ones of the wrong wire type) are skipped, the last scalar wins, strings must be
UTF-8; everything else is InvalidArgument. Metadata keys are lower-cased, a key may repeat.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from sdshim.core.errors import Internal, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HEADER = 10
MAX_DATA = 4 << 20  # the most a frame may carry; stock drops connections that send more

_HEADER = struct.Struct(">IIBB")
_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_MASK64 = (1 << 64) - 1


class FrameType(IntEnum):
    """What the header's type byte says; other values exist for peers newer than this text."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Header(NamedTuple):
    """The first ten bytes of a frame; `type` may be a value FrameType does not know."""

    length: int
    stream: int
    type: int
    flags: int


class Request(NamedTuple):
    """A call; `timeout_nano` is what remained of the caller's time (0: none, negative: past)."""

    service: str
    method: str
    payload: bytes = b""
    timeout_nano: int = 0
    metadata: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Response(NamedTuple):
    """An answer; code 0 is success, else `message` says why and the payload is empty."""

    code: int = 0
    message: str = ""
    payload: bytes = b""


class _Malformed(ValueError):
    """These bytes are no protobuf message."""


def parse_header(data: bytes) -> Header:
    """The header at the start of `data`, which holds at least HEADER bytes."""
    return Header(*_HEADER.unpack_from(data))


def encode_header(header: Header) -> bytes:
    """The ten bytes of a header."""
    return _HEADER.pack(*header)


def encode_frame(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    """One whole frame."""
    return _HEADER.pack(len(data), stream, kind, flags) + data


def encode_request(request: Request) -> bytes:
    """The data of a request frame."""
    out = bytearray()
    _put_bytes(out, 1, _utf8(request.service))
    _put_bytes(out, 2, _utf8(request.method))
    _put_bytes(out, 3, request.payload)
    _put_int(out, 4, request.timeout_nano)
    for key, value in _pairs(request.metadata):
        pair = bytearray()
        _put_bytes(pair, 1, _utf8(key))
        _put_bytes(pair, 2, _utf8(value))
        out += b"\x2a" + _varint(len(pair)) + pair
    return bytes(out)


def decode_request(data: bytes) -> Request:
    """Read the data of a request frame; raise InvalidArgument when it is none."""
    service = method = ""
    payload = b""
    timeout = 0
    metadata: dict[str, list[str]] = {}
    try:
        for field, value in _fields(data):
            if isinstance(value, int):
                if field == 4:
                    timeout = value - (1 << 64) if value >> 63 else value
            elif field == 1:
                service = value.decode()
            elif field == 2:
                method = value.decode()
            elif field == 3:
                payload = value
            elif field == 5:
                key, text = _key_value(value)
                metadata.setdefault(key, []).append(text)
    except ValueError as error:
        raise InvalidArgument(f"unmarshal request error: {error}") from None
    pairs = {key: tuple(texts) for key, texts in metadata.items()}
    return Request(service, method, payload, timeout, pairs)


def encode_response(response: Response) -> bytes:
    """The data of a response frame; as stock does, success carries no status at all."""
    out = bytearray()
    if response.code:
        status = bytearray()
        _put_int(status, 1, response.code)
        _put_bytes(status, 2, _utf8(response.message))
        out += b"\x0a" + _varint(len(status)) + status
    _put_bytes(out, 2, response.payload)
    return bytes(out)


def decode_response(data: bytes) -> Response:
    """Read the data of a response frame; raise Internal when it is none."""
    code, message, payload = 0, "", b""
    try:
        for field, value in _fields(data):
            if isinstance(value, int):
                continue
            if field == 2:
                payload = value
            elif field == 1:
                for inner, part in _fields(value):
                    if inner == 1 and isinstance(part, int):
                        code = (part & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
                    elif inner == 2 and not isinstance(part, int):
                        message = part.decode()
    except ValueError as error:
        raise Internal(f"unmarshal response error: {error}") from None
    return Response(code, message, payload)


def _pairs(metadata: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    for key, values in metadata.items():
        for value in values:
            yield key, value


def _key_value(data: bytes) -> tuple[str, str]:
    key = text = ""
    for field, value in _fields(data):
        if isinstance(value, int):
            continue
        if field == 1:
            key = value.decode().lower()
        elif field == 2:
            text = value.decode()
    return key, text


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # Go's decoder refuses surrogates


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _put_bytes(out: bytearray, field: int, value: bytes) -> None:
    if value:
        out += _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _put_int(out: bytearray, field: int, value: int) -> None:
    if value:
        out += _varint(field << 3 | _VARINT) + _varint(value & _MASK64)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise _Malformed("unexpected end of data")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise _Malformed("varint is too long")
    if value > _MASK64:
        raise _Malformed("varint overflows 64 bits")
    return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each varint and length-delimited field at the top of a message; the rest is skipped."""
    at = 0
    groups: list[int] = []
    while at < len(data):
        tag, at = _read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise _Malformed(f"field number {field}")
        value: int | bytes | None = None
        if wire == _VARINT:
            value, at = _read_varint(data, at)
        elif wire == _BYTES:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _START_GROUP:
            groups.append(field)
        elif wire != _END_GROUP or not groups or groups.pop() != field:
            raise _Malformed(f"wire type {wire} of field {field}")
        if at > len(data):
            raise _Malformed("unexpected end of data")
        if value is not None and not groups:
            yield field, value
    if groups:
        raise _Malformed("unexpected end of data")
