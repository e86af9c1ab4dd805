"""The D-Bus codec, held against dbus-next's (which the product does not use)."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from dbus_next import Message as Theirs
from dbus_next import MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from hypothesis import given
from hypothesis import strategies as st

from sdshim.systemd import codec

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
INTEGERS = {"y": 8, "n": -16, "q": 16, "i": -32, "u": 32, "x": -64, "t": 64}


def _integers(bits: int) -> st.SearchStrategy[int]:
    if bits > 0:
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (-bits - 1)), 2 ** (-bits - 1) - 1)


Pairs = st.SearchStrategy[tuple[str, Any]]
"""Of a signature and a value of it."""


def _nest(inner: Pairs) -> Pairs:
    variants = inner.map(lambda pair: ("v", codec.Variant(*pair)))
    structs = st.lists(inner, min_size=1, max_size=4).map(
        lambda parts: (f"({''.join(s for s, _ in parts)})", [v for _, v in parts])
    )
    arrays = st.tuples(inner, st.integers(0, 3)).map(
        lambda told: (f"a{told[0][0]}", _array(told[0][0], [told[0][1]] * told[1]))
    )
    dicts = st.tuples(inner, st.lists(TEXTS, max_size=3, unique=True)).map(
        lambda told: (f"a{{s{told[0][0]}}}", dict.fromkeys(told[1], told[0][1]))
    )
    return st.one_of(variants, structs, arrays, dicts)


def _array(inner: str, values: list[Any]) -> Any:
    return bytes(values) if inner == "y" else values


SIMPLE: Pairs = st.one_of(
    st.tuples(st.just("s"), TEXTS),
    st.tuples(st.just("o"), st.sampled_from(["/", "/a/b_1", "/org/freedesktop/systemd1"])),
    st.tuples(st.just("g"), st.sampled_from(["", "s", "a{sv}", "(ii)as"])),
    st.tuples(st.just("b"), st.booleans()),
    st.tuples(st.just("d"), st.floats(allow_nan=False)),
    *(st.tuples(st.just(kind), _integers(bits)) for kind, bits in INTEGERS.items()),
)
VALUES: Pairs = st.recursive(SIMPLE, _nest, max_leaves=6)


def _theirs(value: Any) -> Any:
    """The same for dbus-next."""
    if isinstance(value, codec.Variant):
        return Variant(value.signature, _theirs(value.value))
    if isinstance(value, list):
        return [_theirs(one) for one in value]
    if isinstance(value, dict):
        return {key: _theirs(one) for key, one in value.items()}
    return value


def _plain(value: Any) -> Any:
    """The same as it comes in: variants are their values."""
    if isinstance(value, codec.Variant | Variant):
        return _plain(value.value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


@given(parts=st.lists(VALUES, max_size=4))
def test_calls_are_the_same_bytes_values_and_headers_as_of_the_other_codec(
    parts: list[tuple[str, Any]],
) -> None:
    signature, body = "".join(s for s, _ in parts), [v for _, v in parts]
    facts: dict[str, Any] = {
        "path": "/org/a_1", "interface": "a.b", "member": "Do", "destination": "org.c",
        "signature": signature, "serial": 77,
    }  # fmt: skip
    ours = codec.Message(**facts, body=body)
    data = codec.encode(ours)
    theirs = Unmarshaller(io.BytesIO(data)).unmarshall()
    assert [_plain(one) for one in theirs.body] == [_plain(one) for one in body]
    assert {name: getattr(theirs, name) for name in facts} == facts
    back = bytes(Theirs(**facts, body=_theirs(body))._marshall())
    assert len(back) == len(data)  # (they order the header fields otherwise)
    for frame in (data, back):
        found = codec.decode(frame)
        assert {name: getattr(found, name) for name in facts} == facts
        assert found.body == [_plain(one) for one in body]


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (MessageType.METHOD_RETURN, {"reply_serial": 7}),
        (MessageType.ERROR, {"reply_serial": 7, "error_name": "a.b"}),
        (MessageType.SIGNAL, {"path": "/a", "interface": "a.b", "member": "c"}),
        (MessageType.METHOD_CALL, {"path": "/a", "member": "c"}),
    ],
)
def test_every_kind_is_read(kind: MessageType, facts: dict[str, Any]) -> None:
    message = Theirs(message_type=kind, signature="as", body=[["x"]], **facts)
    message.serial = 5
    found = codec.decode(bytes(message._marshall()))
    assert (found.kind, found.body, found.serial) == (kind.value, [["x"]], 5)
    assert {name: getattr(found, name) for name in facts} == facts


def test_the_other_byte_order_and_the_sender_are_read() -> None:
    fields = struct.pack(">BBcBI", 5, 1, b"u", 0, 7) + struct.pack(">BBcB", 8, 1, b"g", 0)
    fields += b"\x06a(sut)\0"
    fields += bytes(-len(fields) % 8) + struct.pack(">BBcBI", 7, 1, b"s", 0, 4) + b":1.0\0"
    body = struct.pack(">IIIs", 24, 0, 1, b"x") + b"\0\0\0" + struct.pack(">IIQ", 3, 0, 9)
    head = struct.pack(">cBBBIII", b"B", codec.METHOD_RETURN, 0, 1, len(body), 4, len(fields))
    found = codec.decode(head + fields + bytes(-len(fields) % 8) + body)
    assert (found.reply_serial, found.sender) == (7, ":1.0")
    assert found.body == [[["x", 3, 9]]]


@pytest.mark.parametrize(
    "signature", ["(", ")", "()", "a", "a{vs}", "a{s}", "a{ss", "{ss}", "z", "a()", "(s", "a" * 99]
)
def test_what_is_no_signature_is_refused(signature: str) -> None:
    with pytest.raises(ValueError, match="bad signature"):
        codec.split(signature)


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("s", b"x"), ("s", "a\0b"), ("s", "\udc80"), ("u", -1), ("u", 2**32), ("u", "1"), ("b", 1),
        ("as", "ab"), ("ay", "ab"), ("ay", [256]), ("a{ss}", [("a", "b")]), ("as", {"a": "b"}),
        ("(ss)", ["a"]), ("(ss)", "ab"), ("v", "x"), ("v", codec.Variant("ss", "x")),
        ("v", codec.Variant("", "x")),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(signature: str, value: object) -> None:
    with pytest.raises(ValueError):
        codec.encode(codec.Message(path="/", member="c", signature=signature, body=[value]))
    with pytest.raises(ValueError):
        codec.check(codec.Variant(signature, value))


@pytest.mark.parametrize("path", ["a", "/a/", "//", "/a-b", "/ä"])
def test_what_is_no_path_never_goes_out(path: str) -> None:
    with pytest.raises(ValueError, match="not an object path"):
        codec.encode(codec.Message(path=path, member="c"))


@given(parts=st.lists(VALUES, max_size=3), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_wrong_byte_makes_another_message_or_none_and_no_other_error(
    parts: list[tuple[str, Any]], at: int, byte: int
) -> None:
    message = codec.Message(
        path="/", member="c", signature="".join(s for s, _ in parts), body=[v for _, v in parts]
    )
    data = bytearray(codec.encode(message))
    data[at % len(data)] = byte
    for frame in (bytes(data), bytes(data[: at % len(data)])):
        try:
            codec.decode(frame)
        except ValueError:
            continue
