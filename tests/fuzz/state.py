"""What stands on disk and in the fd store: any bytes, and the daemon starts all the same.

The first byte says what is damaged. Beside a task whose state it is there is another one, which
must still be there when the daemon has taken over.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hypothesis import strategies as st

from sdshim.core import criu, exitrecord, record, spans
from sdshim.core.errors import Internal, InvalidArgument
from sdshim.core.lifecycle import Phase
from sdshim.core.model import Event
from sdshim.core.record import Record
from sdshim.daemon import recovery, streams
from sdshim.daemon.publisher import Publisher
from sdshim.host.calllog import CallLog
from sdshim.host.callrecords import MAGIC
from sdshim.host.store import Store
from sdshim.launcher import cleanup
from sdshim.systemd.fdstore import FdStore
from sdshim.telemetry import tracer_from_env
from tests.fuzz.kit import Fault, Target, no_surprise
from tests.fuzz.world import GOOD, OTHER, TOKEN, Manager, World, close, world
from tests.unit.test_record import IDENTITY, RECORD

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

RECORD_KIND, TASK, CALLS, RECORDS, OUTBOX, EXIT, FILES, NOTES, FDS, START = range(10)
NAMES = (
    "exit", "init.pid", "oom", "killed", "limited", "limits-put-off", "counters.json", "cleaned",
    "stderr", "runtime.log", "resources.json", "lock",
)  # fmt: skip


def _check_record(data: bytes) -> None:
    try:
        found = record.decode(data)
    except Internal:
        return
    if record.decode(record.encode(found)) != found:
        raise Fault("a record does not come back")


def _check_takeover(data: bytes, phase: Phase, name: str) -> None:
    """A daemon starts on a task with a damaged file, and on a good one."""
    place = world()
    place.reset()
    with no_surprise(), place.watched(b""):
        place.loop.do(_take_over(place, data, phase, name), 3000.0)


async def _take_over(place: World, data: bytes, phase: Phase, name: str) -> None:
    manager = Manager()
    before = place.node(manager)
    good = place.put(before, manager, Phase.EXITED, place.identity(GOOD, OTHER))
    bad = place.put(before, manager, phase)
    await before.close()
    folder = before.store.folder(bad.identity)
    (folder / name).write_bytes(data)
    node = place.node(manager)
    await recovery.take_over(node, [], ())
    for _ in range(50):
        await asyncio.sleep(0)
    await asyncio.sleep(20)
    kept = node.store.folder(good.identity) / "task.json"
    if good.key not in node.tasks or record.decode(kept.read_bytes()) != good.record:
        raise Fault("the other task is lost")
    if node.tasks[good.key].identity != good.identity:
        raise Fault("the other task has another identity")
    for key, task in node.tasks.items():
        if not node.store.folder(task.identity).exists():
            raise Fault(f"{key} has no folder")
    await node.close()


def _framed(data: bytes) -> bytes:
    """Records with right lengths and checksums: each a length byte and its body."""
    out = bytearray(MAGIC)
    while data:
        body, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        out += len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
    return bytes(out)


def _check_calls(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, no_surprise():
        path = Path(folder) / "calls"
        path.write_bytes(data)
        log = CallLog(path)
        calls = log.open_calls()
        serials = log.connections()
        if any(log.next_serial() <= serial for serial in serials):
            raise Fault("a serial is given twice")
        log.compact()
        if log.open_calls() != calls or log.connections() != serials:
            raise Fault("compaction changes the log")
        log.close()
        again = CallLog(path)
        if again.open_calls() != calls or sorted(again.connections()) != sorted(serials):
            raise Fault("the log does not come back")
        again.close()


def _check_outbox(data: bytes) -> None:
    place = world()
    place.reset()
    folder = place.run_dir / "e"
    folder.mkdir()
    (folder / "0123456789abcdef.json").write_bytes(data)

    async def load() -> None:
        reserve = Store(place.run_dir / "t").reserve
        publisher = Publisher(folder, cast("Any", _Kept()), spans.NULL_TRACER, reserve)
        publisher.load([])
        seq = publisher.next_seq()
        event = Event(seq, "/tasks/exit", "t", b"", 1)
        task = place.put(place.node(Manager()), Manager(), Phase.CREATED)
        publisher.publish(task, event)
        publisher.close()

    with no_surprise(), place.watched(b""):
        place.loop.do(load(), 60.0)


class _Kept:
    def remove(self, name: str) -> None:
        return


def _check_exit(data: bytes) -> None:
    text = data.decode(errors="replace")
    found = exitrecord.parse_record(text)
    status = found.exit_status(1).status if found else None
    if status is not None and not 0 <= status <= 255:
        raise Fault(f"exit status {status}")
    theirs, _pid = cleanup.parse_exit(data.decode("latin-1"))
    if theirs is not None and not 0 <= theirs <= 255:
        raise Fault(f"the launcher's exit status {theirs}")
    ours = status if found and found.had_process else None
    if data.isascii() and theirs is not None and ours != theirs:
        raise Fault(f"the daemon says {ours}, the launcher {theirs}")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.make(IDENTITY)
        for name in ("exit", "init.pid"):
            (store.folder(IDENTITY) / name).write_bytes(data)
        store.exit_record(IDENTITY)
        if not 0 <= store.pid(IDENTITY) <= 1 << 22:
            raise Fault(f"pid {store.pid(IDENTITY)}")


def _check_fds(data: bytes) -> None:
    names = data.decode(errors="replace")
    env = {"LISTEN_PID": "0", "LISTEN_FDS": names, "LISTEN_FDNAMES": names}
    FdStore(env).take()
    for name in names.split(":"):
        streams.parse(name)
    tracer_from_env({}, None)


def check(data: bytes) -> None:
    """Nothing but what the readers document; the other task stays."""
    kind, rest = (data[0] % 10 if data else 0), data[1:]
    if kind == RECORD_KIND:
        _check_record(rest)
    elif kind == TASK:
        _check_takeover(rest, Phase.CREATED, "task.json")
    elif kind == CALLS:
        _check_calls(rest)
    elif kind == RECORDS:
        _check_calls(_framed(rest))
    elif kind == OUTBOX:
        _check_outbox(rest)
    elif kind == EXIT:
        _check_exit(rest)
    elif kind == FILES and rest:
        phases = (Phase.CREATED, Phase.RUNNING, Phase.EXITED, Phase.PAUSED)
        _check_takeover(rest[1:], phases[rest[0] >> 6], NAMES[(rest[0] & 63) % len(NAMES)])
    elif kind == NOTES:
        try:
            criu.decode_notes(rest)
        except InvalidArgument:
            return
    elif kind == FDS:
        _check_fds(rest)


def _changed_record() -> SearchStrategy[bytes]:
    from tests.fuzz.spec import jsons

    document: dict[str, Any] = json.loads(record.encode(RECORD))
    own: dict[str, Any] = json.loads(record.encode(Record(world().identity())))
    texts = st.sampled_from(
        ["", "/", "..", "../good", "good", "a", OTHER, TOKEN, "x/y", "\0", "fuzz"]
    )
    values = st.one_of(jsons(), texts, st.sampled_from([float("inf"), float("nan"), 2**70, -1]))

    def change(base: dict[str, Any], top: dict[str, Any], inner: dict[str, Any]) -> bytes:
        made = {**base, **top}
        if isinstance(made.get("identity"), dict):
            made["identity"] = {**made["identity"], **inner}
        return json.dumps(made).encode()

    return st.builds(
        change,
        st.sampled_from([document, own, own]),
        st.dictionaries(st.sampled_from(list(document)), values, max_size=2),
        st.dictionaries(st.sampled_from(list(document["identity"])), values, max_size=3),
    )


def _call_records() -> SearchStrategy[bytes]:
    import struct

    head = st.builds(
        lambda kind, conn, stream: struct.pack("<BQI", kind, conn, stream),
        st.integers(0, 8),
        st.sampled_from([1, 1, 2, 2**64 - 1]),
        st.sampled_from([1, 1, 3, 0]),
    )
    facts = st.just(struct.pack("<ddI16s", 1.0, 2.0, 3, b"t" * 16))
    sized = st.binary(max_size=5).map(lambda text: len(text).to_bytes(4, "little") + text)
    tail = st.lists(sized, max_size=7).map(b"".join)
    body = st.one_of(
        st.tuples(head, facts, tail).map(b"".join),
        st.tuples(head, st.binary(max_size=4), tail).map(b"".join),
        st.binary(max_size=30),
    )
    return st.lists(body.map(lambda one: bytes([min(len(one), 255)]) + one[:255])).map(b"".join)


def _numbers() -> SearchStrategy[str]:
    return st.one_of(
        st.sampled_from(["-", "0", "7", "KILL", "RTMIN+3", "RTMIN+999", "²", "9" * 5000, "999"]),
        st.text(max_size=4),
    )


def shapes() -> SearchStrategy[bytes]:
    """Nearly right files of each kind."""
    from tests.fuzz.spec import jsons

    jsonic = st.one_of(jsons(), st.sampled_from([float("inf"), [[1, "t", 2]], [["a", "t", "x"]]]))
    line = st.builds(
        lambda words, end: " ".join(words) + end,
        st.tuples(
            st.sampled_from(["-", "i"]),
            _numbers(),
            _numbers(),
            st.sampled_from(["exited", "killed", "dumped", "-", ""]),
            _numbers(),
        ),
        st.sampled_from(["\n", "", "\n\n"]),
    ).map(lambda text: text.encode("utf-8", "replace"))
    outbox = st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.integers(), jsonic)
            for name in ("address", "acked", "sending", "stream", "version")
        },
    ).map(lambda one: json.dumps(one).encode())
    deep = st.integers(1, 100_000).map(lambda depth: b"[" * depth)
    anything = st.one_of(
        jsonic.map(lambda one: json.dumps(one).encode()), st.binary(max_size=40), line, deep,
        _numbers().map(lambda text: text.encode("utf-8", "replace")),
    )  # fmt: skip
    files = st.tuples(st.integers(0, 255).map(lambda n: bytes([n])), anything).map(b"".join)

    def of(kind: int, inner: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
        return inner.map(lambda data: bytes([kind]) + data)

    return st.one_of(
        of(RECORD_KIND, st.one_of(_changed_record(), deep)),
        of(TASK, st.one_of(_changed_record(), anything)),
        of(RECORDS, _call_records()),
        of(OUTBOX, st.one_of(outbox, anything)),
        of(EXIT, line),
        of(FILES, files),
        of(NOTES, anything),
        of(FDS, anything),
    )


def _log() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls"
        log = CallLog(path)
        log.opened(1, "fuzz")
        log.received(
            (1, 1), service="s", method="m", payload=b"p", metadata={"k": ("v",)}, namespace="n",
            peer_pid=1, token=b"t" * 16, received=1.0, deadline=None,
        )  # fmt: skip
        log.done((1, 1), (5, "no", b""), b"note")
        log.close()
        return path.read_bytes()


TARGET = Target(
    "state",
    check,
    shapes,
    (
        bytes([RECORD_KIND]) + record.encode(RECORD),
        bytes([TASK]) + record.encode(RECORD),
        bytes([CALLS]) + _log(),
        bytes([OUTBOX]) + b'{"version":1,"address":"/x","acked":5,"sending":6,"stream":3}',
        bytes([EXIT]) + b"0123 42 success exited 7\n",
        bytes([FILES, 4]) + b'[["MemoryMax", "t", 5]]',
        bytes([NOTES]) + b'{"streams": {"1": "file[1:2]"}, "switches": [], "empty_namespaces": []}',
        bytes([FDS]) + b"conn.1:io.00.out:listen.x",
    ),
    close,
)
