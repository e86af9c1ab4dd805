"""The options Any of a Create: decoded, and a TOML file that it names read."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING, Any

from sdshim.core import criu
from sdshim.core import options as rules
from sdshim.core.criu import Wish
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import RuntimeOptions
from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import type_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.any_pb2 import Any as AnyMessage

    from sdshim.core.names import TaskKey
    from sdshim.core.options import Options

log = logging.getLogger(__name__)

RUNC = "containerd.runc.v1.Options"
GENERIC = "runtimeoptions.v1.Options"
OURS = "sdshim.v1.Options"
LEGACY = "containerd.linux.runc.CreateOptions"
"""What ctr and docker of containerd's 1.6 time send to a runtime that is not called runc."""
CHECKPOINT = ("containerd.runc.v1.CheckpointOptions", "containerd.linux.runc.CheckpointOptions")
"""Of a Checkpoint; the second is the older name of the same fields."""
MAX_TOML = 1 << 20
SCHED_CORE = "SCHED_CORE"


def decode(options: AnyMessage, default_runtime: str) -> Options:
    """What the options of a task come to; defaults without any. Raises InvalidArgument with the
    type's name and every fault."""
    kind = type_name(options)
    source = f"options of type {kind}"
    if not kind:
        if options.value:
            raise InvalidArgument("options have a value and no type")
        return rules.Options(RuntimeOptions(binary=default_runtime))
    if kind == RUNC:
        message = _parse(runc_pb2.Options(), options.value, source)
        return rules.from_message(_fields(message), default_runtime, source)
    if kind == LEGACY:
        from sdshim.pb import runctypes_pb2

        message = _parse(runctypes_pb2.CreateOptions(), options.value, source)
        return rules.from_message(_fields(message), default_runtime, source)
    if kind == OURS:
        from sdshim.pb import options_pb2

        message = _parse(options_pb2.Options(), options.value, source)
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size:
            raise InvalidArgument(f"{source}: fields that this version does not know")
        return rules.from_message(_fields(message), default_runtime, source)
    if kind == GENERIC:
        return _generic(options.value, default_runtime, source)
    raise InvalidArgument(
        f"options of type {kind[:256]!r} are not supported", hint=f"use {RUNC}, {GENERIC} or {OURS}"
    )


def checkpoint(options: AnyMessage) -> Wish:
    """The options of a Checkpoint; defaults without any. Raises InvalidArgument with the type's
    name, or naming every fault."""
    kind = type_name(options)
    if not kind and not options.value:
        return Wish()
    if kind not in CHECKPOINT:
        raise InvalidArgument(f"checkpoint options of type {kind[:256]!r} are not supported")
    message = _parse(runc_pb2.CheckpointOptions(), options.value, f"options of type {kind}")
    fields = _fields(message)
    spaces = tuple(fields.pop("empty_namespaces", ()))
    return criu.check(Wish(empty_namespaces=spaces, **fields))


def warn(
    key: TaskKey, options: Options, started: Mapping[str, str], left_out: Sequence[str] = ()
) -> None:
    """One line in the log for what one daemon cannot do for one task, `started` is what the
    launcher noted; one for annotations of others that were left out."""
    if left_out:
        log.warning("%s: annotations that cannot be read: %s", key, ", ".join(left_out))
    ignored = list(options.ignored)
    if started.get("sched_core") == "1":
        ignored.append(SCHED_CORE)
    if ignored:
        log.warning(
            "%s: %s cannot be honoured: one daemon serves all tasks (docs/options.md)",
            key,
            " and ".join(ignored),
        )


def _parse(message: Any, data: bytes, source: str) -> Any:
    try:
        message.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has another home in each runtime
        raise InvalidArgument(f"{source} cannot be decoded") from error
    return message


def _fields(message: Any) -> dict[str, Any]:
    """The fields that are set; a map as a dict."""
    return {
        field.name: dict(value) if field.message_type else value
        for field, value in message.ListFields()
    }


def _generic(data: bytes, default_runtime: str, source: str) -> Options:
    from sdshim.pb import runtimeoptions_pb2

    message = _parse(runtimeoptions_pb2.Options(), data, source)
    path, body = message.config_path, message.config_body
    if path and body:
        raise InvalidArgument(f"{source}: both config_path and config_body are given")
    if path:
        source += f", file {path[:256]!r}"
        body = _read(path, source)
    if len(body) > MAX_TOML:
        raise InvalidArgument(f"{source}: larger than {MAX_TOML} bytes")
    document = _toml(body, source) if body.strip() else {}
    return rules.from_toml(document, default_runtime, source)


def _toml(body: bytes, source: str) -> dict[str, Any]:
    import tomllib  # 11 ms, and few have TOML

    try:
        return tomllib.loads(body.decode())
    except RecursionError as error:
        raise InvalidArgument(f"{source}: nested too deeply") from error
    except ValueError as error:
        raise InvalidArgument(f"{source}: not TOML", cause=str(error)[:256]) from error


def _read(path: str, source: str) -> bytes:
    """The file of config_path: it names a program that will run as root, so it must be root's and
    nobody else's to write."""
    if not path.startswith("/") or not path.isprintable():
        raise InvalidArgument(f"{source}: not an absolute path")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"{source}: cannot be opened", cause=error.strerror or "") from error
    try:
        fault = _refusal(os.fstat(fd))
        if fault:
            raise InvalidArgument(f"{source}: {fault}")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(MAX_TOML + 1)
    except OSError as error:
        raise InvalidArgument(f"{source}: cannot be read", cause=error.strerror or "") from error
    finally:
        os.close(fd)


def _refusal(facts: os.stat_result) -> str:
    """Why a file is not read; empty when it is."""
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    if facts.st_uid != 0:
        return f"owned by uid {facts.st_uid}, not by root"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by others than root (mode {stat.S_IMODE(facts.st_mode):04o})"
    if facts.st_size > MAX_TOML:
        return f"larger than {MAX_TOML} bytes"
    return ""
