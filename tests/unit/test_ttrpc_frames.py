"""The wire format, against hand-made bytes and against arbitrary ones."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core.errors import Internal, InvalidArgument
from sdshim.ttrpc.frames import (
    Header,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_frame,
    encode_header,
    encode_request,
    encode_response,
    parse_header,
)

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
METADATA = st.dictionaries(
    TEXTS.filter(lambda text: text == text.lower()),
    st.lists(TEXTS, min_size=1).map(tuple),
)


def test_a_frame_is_ten_bytes_big_endian_and_its_data() -> None:
    assert encode_frame(5, 1, b"abc", 2) == b"\0\0\0\3\0\0\0\5\1\2abc"
    assert parse_header(b"\0\0\0\3\0\0\0\5\1\2abc") == Header(3, 5, 1, 2)


def test_a_request_is_the_protobuf_message_that_stock_sends() -> None:
    request = Request("s", "m", b"p", 300, {"k": ("v", "w")})
    wire = b"\x0a\x01s\x12\x01m\x1a\x01p\x20\xac\x02"
    wire += b"\x2a\x06\x0a\x01k\x12\x01v\x2a\x06\x0a\x01k\x12\x01w"
    assert encode_request(request) == wire
    assert decode_request(wire) == request


def test_metadata_keys_are_lower_cased_and_may_repeat() -> None:
    wire = encode_request(Request("s", "m", metadata={"Key": ("a",), "kEY": ("b",)}))
    assert decode_request(wire).metadata == {"key": ("a", "b")}


def test_success_carries_no_status() -> None:
    assert encode_response(Response(0, "", b"p")) == b"\x12\x01p"
    assert encode_response(Response()) == b""
    assert encode_response(Response(5, "no")) == b"\x0a\x06\x08\x05\x12\x02no"


def test_a_surrogate_in_an_error_text_becomes_legal_utf8() -> None:
    response = decode_response(encode_response(Response(2, "bad \udcff name")))
    assert response.message == "bad \\udcff name"


def test_unknown_fields_and_wrong_wire_types_are_skipped() -> None:
    unknown = (
        b"\x08\x07"  # service as a varint
        b"\x31"
        + bytes(8)
        + b"\x35"
        + bytes(4)  # field 6, both fixed widths
        + b"\x3a\x02hi"  # field 7
        b"\x43\x0a\x01x\x43\x44\x44"  # group 8 with a service and a group inside
        b"\x22\x01x"  # timeout as bytes
    )
    assert decode_request(unknown + b"\x0a\x01s") == Request("s", "", b"", 0, {})


@pytest.mark.parametrize(
    "wire",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\x02\xff\xfe",
        b"\x00\x01",
        b"\x43",
        b"\x44",
        b"\x43\x4c",
        b"\x0e",
        b"\x35\x01",
        b"\x20" + b"\xff" * 10,
        b"\x20" + b"\xff" * 9 + b"\x02",
        b"\x2a\x03\x0a\x05x",
    ],
)
def test_malformed_requests_are_invalid_arguments(wire: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^unmarshal request error: "):
        decode_request(wire)


@given(TEXTS, TEXTS, st.binary(), INT64, METADATA)
def test_requests_survive_the_wire(
    service: str, method: str, payload: bytes, nano: int, metadata: dict[str, tuple[str, ...]]
) -> None:
    request = Request(service, method, payload, nano, metadata)
    assert decode_request(encode_request(request)) == request


@given(st.integers(1, 16), TEXTS, st.binary())
def test_responses_survive_the_wire(code: int, message: str, payload: bytes) -> None:
    response = Response(code, message, payload)
    assert decode_response(encode_response(response)) == response


def test_a_negative_code_keeps_its_sign() -> None:
    assert decode_response(encode_response(Response(-1, "x"))).code == -1


@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_are_refused(data: bytes) -> None:
    for decode, refusal in ((decode_request, InvalidArgument), (decode_response, Internal)):
        with contextlib.suppress(refusal):
            decode(data)


@given(st.binary(min_size=10, max_size=10))
def test_any_ten_bytes_are_a_header(data: bytes) -> None:
    assert encode_header(parse_header(data)) == data
