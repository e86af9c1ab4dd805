"""Options of tasks and checkpoints by every type's name, as TOML too, and the daemon's own file.

The first byte says which type, or that it is the daemon's configuration.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import strategies as st

from sdshim.core import config, record, unitproperties
from sdshim.core.errors import InvalidArgument
from sdshim.core.record import Record
from sdshim.daemon import options
from sdshim.pb import options_pb2, runc_pb2, runctypes_pb2, runtimeoptions_pb2
from tests.fuzz.kit import Fault, Target, is_repeated, no_surprise
from tests.fuzz.spec import on_the_wire
from tests.unit.test_record import IDENTITY

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

KINDS = (
    options.RUNC,
    options.GENERIC,
    options.OURS,
    options.LEGACY,
    *options.CHECKPOINT,
    "type.googleapis.com/" + options.RUNC,
    "",
    "unknown.Type",
)
CONFIG, TOML = len(KINDS), len(KINDS) + 1
"""Further kinds: the daemon's file; the text of a runtimeoptions message alone."""


def check(data: bytes) -> None:
    """Only InvalidArgument; what is accepted can be used and comes back from disk."""
    kind, value = (data[0] % (len(KINDS) + 2) if data else 0), data[1:]
    with no_surprise():
        if kind == CONFIG:
            _check_config(value)
        elif kind == TOML:
            message = runtimeoptions_pb2.Options(config_body=value)
            _check_options(AnyMessage(type_url=options.GENERIC, value=message.SerializeToString()))
        elif KINDS[kind] in options.CHECKPOINT:
            try:
                options.checkpoint(AnyMessage(type_url=KINDS[kind], value=value))
            except InvalidArgument as error:
                _check_text(error)
        else:
            _check_options(AnyMessage(type_url=KINDS[kind], value=value))


def _check_options(value: AnyMessage) -> None:
    try:
        found = options.decode(value, "runc").runtime
    except InvalidArgument as error:
        _check_text(error)
        return
    texts = (found.binary, found.root, found.criu_path, found.criu_image_path, found.criu_work_path)
    if not all(text.isprintable() for text in texts):
        raise Fault(f"unprintable: {found}")
    if any(text and not text.startswith("/") for text in texts[1:]):
        raise Fault(f"not absolute: {found}")
    if "/" in found.binary and not found.binary.startswith("/"):
        raise Fault(f"a runtime that depends on the current folder: {found}")
    on_the_wire(unitproperties.at_start(found.unit_properties))
    on_the_wire(unitproperties.late(found.unit_properties))
    kept = Record(replace(IDENTITY, runtime=found))
    if record.decode(record.encode(kept)) != kept:
        raise Fault(f"does not come back from disk: {found}")


def _check_text(error: InvalidArgument) -> None:
    """A refusal does not repeat a novel."""
    if len(str(error)) > 20_000:
        raise Fault(f"an error text of {len(str(error))} characters")


def _check_config(value: bytes) -> None:
    try:
        document = tomllib.loads(value.decode())
    except (ValueError, RecursionError):
        return
    try:
        found = config.parse(document)
    except InvalidArgument:
        return
    if config.parse(tomllib.loads(config.render(found))) != found:
        raise Fault(f"does not come back: {found}")
    for seconds in (found.stop_timeout, found.create_timeout, found.logger_timeout):
        if not 0 < int(seconds * 1e6) < 2**64:
            raise Fault(f"no time for systemd: {seconds}")


_TEXTS = st.one_of(
    st.sampled_from(["", "/x", "runc", "x/y", "/a\nb", "../r", "/" + "a" * 5000, "-x"]),
    st.text(max_size=8),
)
_PROPERTIES = st.dictionaries(
    st.one_of(st.sampled_from(list(unitproperties.SETTINGS)), st.text(max_size=5)),
    st.one_of(
        st.sampled_from(
            ["64M", "1.5G", "infinity", "50%", "150%", "0", "1min 30s", "RTMIN+3", "yes"]
        ),
        st.sampled_from(
            ["1" * 40, "0.00000001", "99999999999y", "1.", "²", "%n", "$A", "a\nExecStart=/x"]
        ),
        st.text("0123456789.%KMG smhn²", max_size=8),
        st.text(max_size=9),
    ),
    max_size=3,
)


def _message(made: Any) -> SearchStrategy[bytes]:
    fields: dict[str, SearchStrategy[Any]] = {}
    for field in made.DESCRIPTOR.fields:
        if field.message_type:
            fields[field.name] = _PROPERTIES
        elif is_repeated(field):
            fields[field.name] = st.lists(st.text(max_size=5), max_size=2)
        elif field.cpp_type == field.CPPTYPE_STRING and field.type == field.TYPE_BYTES:
            fields[field.name] = _tomls()
        elif field.cpp_type == field.CPPTYPE_STRING:
            fields[field.name] = _TEXTS
        elif field.cpp_type == field.CPPTYPE_BOOL:
            fields[field.name] = st.booleans()
        else:
            fields[field.name] = st.sampled_from([0, 1, 2**32 - 1])
    optional = st.fixed_dictionaries({}, optional=fields)
    return optional.map(lambda given: bytes(made(**given).SerializeToString()))


def _tomls() -> SearchStrategy[bytes]:
    from sdshim.core.options import KEYS

    keys = st.one_of(st.sampled_from([*KEYS, *asdict(config.Config())]), st.text("ab-", min_size=1))
    value = st.one_of(
        st.text(max_size=6).map(_quoted),
        st.sampled_from(
            ["true", "1", "-1", "1e400", "nan", "inf", "10.5", "9" * 400, "[1]", "{a=1}"]
        ),
        st.sampled_from(
            ['"debug"', '"/run/x"', '"/a\\"b"', '"/a\\\\b"', '"/\\u0000"', "1979-05-27"]
        ),
        _PROPERTIES.map(
            lambda table: (
                "{" + ", ".join(f"{_quoted(k)} = {_quoted(v)}" for k, v in table.items()) + "}"
            )
        ),
    )
    line = st.tuples(keys, value).map(lambda pair: f"{pair[0]} = {pair[1]}\n")
    nested = st.integers(0, 3000).map(lambda depth: "x = " + "[" * depth + "]" * depth + "\n")
    lines = st.lists(line, max_size=4, unique_by=lambda text: text.partition(" ")[0])
    return st.one_of(lines.map("".join), lines.map("".join), nested).map(lambda text: text.encode())


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\u{ord(c) & 0xFFFF:04x}" if not c.isalnum() else c for c in text) + '"'


_MESSAGES = {
    options.RUNC: runc_pb2.Options,
    options.GENERIC: runtimeoptions_pb2.Options,
    options.OURS: options_pb2.Options,
    options.LEGACY: runctypes_pb2.CreateOptions,
    options.CHECKPOINT[0]: runc_pb2.CheckpointOptions,
    options.CHECKPOINT[1]: runc_pb2.CheckpointOptions,
}


def anys() -> SearchStrategy[AnyMessage]:
    """Options of a task as an Any."""
    kinds = (options.RUNC, options.GENERIC, options.OURS)
    return st.sampled_from(kinds).flatmap(
        lambda kind: _message(_MESSAGES[kind]).map(
            lambda value: AnyMessage(type_url=kind, value=value)
        )
    )


def shapes() -> SearchStrategy[bytes]:
    """Messages of each type and TOML with doubtful values."""

    def of(index: int) -> SearchStrategy[bytes]:
        head = bytes([index])
        if index in (CONFIG, TOML):
            return _tomls().map(lambda text: head + text)
        made = _MESSAGES.get(KINDS[index].rpartition("/")[2], runc_pb2.Options)
        return _message(made).map(lambda data: head + data)

    return st.integers(0, len(KINDS) + 1).flatmap(of)


TARGET = Target(
    "options",
    check,
    shapes,
    (
        b"\0" + runc_pb2.Options(binary_name="crun", root="/r", io_uid=5).SerializeToString(),
        bytes([2]) + options_pb2.Options(unit_properties={"MemoryMax": "64M"}).SerializeToString(),
        bytes([4]) + runc_pb2.CheckpointOptions(exit=True, image_path="/i").SerializeToString(),
        bytes([CONFIG]) + config.render(config.Config()).encode(),
        bytes([TOML]) + b'oci_runtime = "crun"\n[unit_properties]\nCPUWeight = "5"\n',
    ),
)
