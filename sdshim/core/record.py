"""What stands on disk for one task, and its JSON form (versioned; `host/store.py` writes it).

One record holds {state, events not yet acknowledged, replies not yet sent}, so one atomic write
commits an operation: after a crash either all of it happened or nothing did. Fields this version
does not know are kept and written back, so that an older daemon can take over from a newer one.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sdshim.core import names
from sdshim.core.errors import Internal, InvalidArgument
from sdshim.core.lifecycle import Life, Phase
from sdshim.core.model import (
    CallId,
    Event,
    ExitStatus,
    Identity,
    Log,
    Mount,
    RecordedReply,
    RuntimeOptions,
    Stdio,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    InvalidArgument,
)
"""What reading a file of ours raises when it is not what was written."""


_JSON = json.JSONEncoder(separators=(",", ":"))
_TOKEN = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Record:
    """A task as the next daemon will find it."""

    identity: Identity
    life: Life = field(default_factory=Life)
    deleting: bool = False
    events: tuple[Event, ...] = ()
    replies: dict[CallId, RecordedReply] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)
    """Fields of another version, kept as they were, in the objects that they were in; of objects in
    a list by what names them (`_name`)."""
    told: str = field(default="", repr=False, compare=False)
    """The identity as JSON, once there was need of it: most of a record, and always the same;
    `replace` hands it on."""


def encode(record: Record) -> bytes:
    """The record as JSON."""
    if record.unknown:
        document = _document(record)
        _add(document, record.unknown)
        return _JSON.encode(document).encode()
    if not record.told:
        object.__setattr__(record, "told", _JSON.encode(asdict(record.identity)))
    rest = _JSON.encode(_state(record))
    return f'{{"version":{VERSION},"identity":{record.told},{rest[1:]}'.encode()


def _document(record: Record) -> dict[str, Any]:
    """What this version knows of it."""
    return {"version": VERSION, "identity": asdict(record.identity), **_state(record)}


def _state(record: Record) -> dict[str, Any]:
    """What changes in the course of a life."""
    return {
        "phase": record.life.phase.value,
        "pid": record.life.pid,
        "exit": _flat(record.life.exit) if record.life.exit else None,
        "ooms": record.life.ooms,
        "oom_held": record.life.oom_held,
        "deleting": record.deleting,
        "events": [{**_flat(e), "payload": _text(e.payload)} for e in record.events],
        "replies": [
            {"call": call, "code": r.code, "message": r.message, "payload": _text(r.payload)}
            for call, r in record.replies.items()
        ],
    }


def decode(data: bytes) -> Record:
    """The record in `data`. Raises Internal when it is not one."""
    try:
        document = json.loads(data)
        known = _decode(document)
        return replace(known, unknown=_beyond(document, _document(known)))
    except DAMAGE as error:
        raise Internal("state file cannot be read", cause=repr(error)[:500]) from error


def _decode(document: dict[str, Any]) -> Record:
    raw = _known(Identity, document["identity"])
    raw["runtime"] = RuntimeOptions(**_known(RuntimeOptions, raw["runtime"]))
    raw["stdio"] = Stdio(**_known(Stdio, raw["stdio"]))
    log = _known(Log, raw.get("log", {}))
    log["fields"] = tuple((str(name), str(value)) for name, value in log.get("fields", ()))
    raw["log"] = Log(**log)
    raw["rootfs"] = tuple(
        Mount(**{**_known(Mount, m), "options": tuple(m["options"])}) for m in raw["rootfs"]
    )
    raw["create_call"] = _call(raw["create_call"])
    exit_raw = document["exit"]
    identity = Identity(**raw)
    _check(identity)
    return Record(
        identity=identity,
        life=Life(
            phase=Phase(document["phase"]),
            pid=int(document["pid"]),
            exit=ExitStatus(**_known(ExitStatus, exit_raw)) if exit_raw else None,
            ooms=int(document.get("ooms", 0)),
            oom_held=bool(document.get("oom_held")),
        ),
        deleting=bool(document["deleting"]),
        events=tuple(
            Event(**{**_known(Event, e), "payload": base64.b64decode(e["payload"])})
            for e in document["events"]
        ),
        replies={
            _call(r["call"]): RecordedReply(
                int(r["code"]), str(r["message"]), base64.b64decode(r["payload"])
            )
            for r in document["replies"]
        },
    )


def _beyond(document: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What `document` has and `known` has not; empty objects are left out."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name not in known:
            found[name] = value
        elif isinstance(mine := _named(known[name]), dict):
            inner = _named(value)
            if isinstance(inner, dict) and (more := _beyond(inner, mine)):
                found[name] = more
    return found


def _add(document: dict[str, Any], unknown: Mapping[str, Any]) -> None:
    """Put fields back where they were, as far as the objects are there that had them."""
    for name, more in unknown.items():
        inner = _named(document.get(name))
        if name not in document:
            document[name] = more
        elif isinstance(inner, dict) and isinstance(more, dict):
            if isinstance(document[name], dict):
                _add(inner, more)
                continue
            for key in inner.keys() & more.keys():
                _add(inner[key], more[key])


def _named(value: Any) -> Any:
    """A list of objects as a dict of the same objects; all else as it is."""
    if isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value):
        return {_name(item, at): item for at, item in enumerate(value)}
    return value


def _name(item: dict[str, Any], at: int) -> str:
    """An event's number, a reply's call, the place in the list of another."""
    if "seq" in item:
        return f"seq {item['seq']}"
    if "call" in item:
        return f"call {[*item['call']]}"
    return str(at)


def _check(me: Identity) -> None:
    """What processes are killed and folders are removed by must be what we give to a task: the
    root cgroup, or another task's names, would cost the host or that task. Raises InvalidArgument,
    TypeError."""
    key = names.TaskKey(names.check_id(me.namespace, "namespace"), names.check_id(me.id))
    unit = names.init_unit(key)
    if me.exec_id:
        unit = names.exec_unit(key, names.check_id(me.exec_id, "exec id"))
    tokens = [me.token, me.task_token] if me.exec_id else [me.token]
    group = me.cgroup.split("/")
    if (
        me.unit != unit
        or not all(map(_TOKEN.fullmatch, tokens))
        or not me.bundle.startswith("/")
        or ".." in (*group, *me.bundle.split("/"))
        or not any(group)
    ):
        raise InvalidArgument(f"names that cannot be those of {key}")
    texts = (*asdict(me.stdio).values(), me.containerd, me.slice, me.checkpoint, me.traceparent)
    if not all(isinstance(text, str | bool) for text in texts):
        raise TypeError("a text is none")


def _flat(value: ExitStatus | Event) -> dict[str, Any]:
    """The fields of what has only plain ones. (asdict() copies each, at many times the cost.)"""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _call(raw: list[int]) -> CallId:
    conn, stream = raw
    return int(conn), int(stream)


def _text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def _known(cls: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of `raw` that this version's dataclass has."""
    return {k: v for k, v in raw.items() if k in cls.__dataclass_fields__}
