"""Requests: each method's message, decoded and dispatched, on nodes in several states.

Two bytes say which method and which state, the rest is the message. Texts that begin with `/W/`
mean the world's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import strategies as st

from sdshim.api import control, task
from sdshim.api.dispatch import Dispatcher
from sdshim.core.errors import Code, ShimError
from sdshim.core.lifecycle import Phase
from sdshim.daemon import exits, recovery
from sdshim.host.store import Broken
from sdshim.pb import control_pb2, options_pb2, runc_pb2, runtimeoptions_pb2
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import PROCESS_URL, RESOURCES_URL
from sdshim.ttrpc.server import Call, CallKey, CallKind
from tests.fuzz.kit import Fault, Target, is_repeated, no_surprise
from tests.fuzz.world import OTHER, PROCESS, TOKEN, Manager, Replies, World, close, world

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from sdshim.daemon.node import Node

HERE = "/W/"
METHODS = (
    *sorted((task.SERVICES[0], name) for name in task.METHODS),
    (control.SERVICE, "Cleanup"),
    (control.SERVICE, "Listen"),
)
SCENES = ("none", "created", "running", "paused", "exited", "exec", "busy", "fails")
_CONTROL = {"Cleanup": control_pb2.CleanupRequest, "Listen": control_pb2.ListenRequest}
_PATIENT = ("Wait",)
"""May be answered never."""


def _message(service: str, method: str) -> Any:
    if service == control.SERVICE:
        return _CONTROL[method]()
    return task.METHODS[method].request()


def _localised(place: World, service: str, method: str, payload: bytes) -> bytes:
    """The payload with the world's own paths in it."""
    message = _message(service, method)
    try:
        message.ParseFromString(payload)
    except Exception:
        return payload
    for field, value in message.ListFields():
        if isinstance(value, str) and value.startswith(HERE):
            setattr(message, field.name, f"{place.root}/{value.removeprefix(HERE)}")
    return bytes(message.SerializeToString())


def _furnish(place: World, node: Node, manager: Manager, scene: str) -> None:
    if scene in ("created", "paused", "exited"):
        place.put(node, manager, Phase(scene))
    elif scene in ("running", "exec", "busy"):
        one = place.put(node, manager, Phase.RUNNING)
        if scene != "running":
            phase = Phase.CREATED if scene == "exec" else Phase.RUNNING
            place.put_exec(node, one, phase, terminal=scene == "exec")


async def _answer(place: World, service: str, method: str, scene: str, payload: bytes) -> None:
    manager = Manager(fails=scene == "fails")
    node = place.node(manager)
    _furnish(place, node, manager, scene)
    if method in ("Cleanup", "Delete"):  # they wait for an end that somebody must see
        for one in node.tasks.values():
            if one.phase is not Phase.EXITED:
                exits.watch(node, one)

    async def listen(namespace: str) -> str:
        return f"unix://{place.run_dir}/s/{namespace}"

    dispatcher = Dispatcher(node, listen)
    replies = Replies()
    dispatcher.server = cast("Any", replies)
    call = Call(
        CallKey(2, 1),
        service=service,
        method=method,
        payload=payload,
        metadata={},
        namespace="" if service == control.SERVICE else "fuzz",
        peer_pid=1 << 30,
        token=bytes.fromhex(OTHER),
        received=0.0,
        deadline=None,
        connection=cast("Any", _Caller()),
        note_begun=lambda: None,
    )
    try:
        if dispatcher.kind(service, method) is CallKind.INLINE:
            with contextlib.suppress(ShimError):
                dispatcher.inline(call)
        else:
            dispatcher.dispatch(call)
            await _until_answered(replies, patient=method in _PATIENT)
        for reply in replies.found:
            if reply.code not in Code._value2member_map_ or "internal error" in reply.message:
                raise Fault(f"{method}: {reply}")
        if len(replies.found) > 1:
            raise Fault(f"{method} is answered {len(replies.found)} times")
    finally:
        await node.close()
    await _take_over(place, manager)


async def _take_over(place: World, manager: Manager) -> None:
    """The next daemon starts on what this one has left."""
    node = place.node(manager)
    broken = [entry for entry in node.store.load() if isinstance(entry, Broken)]
    if broken:
        raise Fault(f"a record that cannot be read: {broken[0]}")
    await recovery.take_over(node, [], ())
    for _ in range(5):
        await asyncio.sleep(0)
    await node.close()


class _Caller:
    def peer_gone(self) -> bool:
        return False


async def _until_answered(replies: Replies, *, patient: bool) -> None:
    for pause in (*[0.0] * 40, *[0.05] * 100, *[5.0] * 200):
        if replies.found:
            return
        if patient and pause:
            return
        await asyncio.sleep(pause)
    raise Fault("no answer")


def check(data: bytes) -> None:
    """One answer with a known code, nothing out of the folder, a state that a daemon can take."""
    if len(data) < 2:
        return
    service, method = METHODS[data[0] % len(METHODS)]
    scene = SCENES[data[1] % len(SCENES)]
    place = world()
    place.reset()
    payload = _localised(place, service, method, data[2:])
    with no_surprise(), place.watched(payload):
        place.loop.do(_answer(place, service, method, scene, payload), 3000.0)


def _any(kind: str, value: bytes) -> AnyMessage:
    return AnyMessage(type_url=kind, value=value)


def _json_any(kind: str) -> SearchStrategy[AnyMessage]:
    from tests.fuzz.spec import jsons

    return jsons().map(lambda value: _any(kind, json.dumps(value).encode()))


@functools.cache
def _processes() -> SearchStrategy[AnyMessage]:
    size = st.one_of(
        st.none(),
        st.integers(),
        st.dictionaries(st.sampled_from(["width", "height"]), st.one_of(st.integers(), st.text())),
    )
    process = st.fixed_dictionaries(
        {"args": st.one_of(st.lists(st.text(max_size=3), max_size=3), st.none())},
        optional={"consoleSize": size, "terminal": st.booleans(), "env": st.lists(st.text())},
    )
    return process.map(lambda one: _any(PROCESS_URL, json.dumps(one).encode()))


@functools.cache
def _resources() -> SearchStrategy[AnyMessage]:
    from tests.fuzz.spec import resources

    right = resources().map(lambda one: _any(RESOURCES_URL, json.dumps(one).encode()))
    return st.one_of(right, _json_any(RESOURCES_URL))


def _checkpoints() -> SearchStrategy[AnyMessage]:
    texts = st.sampled_from(["", "/W/img", "img", "/\n"])
    made = st.builds(
        runc_pb2.CheckpointOptions, exit=st.booleans(), image_path=texts, cgroups_mode=st.text()
    )
    kind = "containerd.runc.v1.CheckpointOptions"
    return made.map(lambda one: _any(kind, one.SerializeToString()))


def _options() -> SearchStrategy[AnyMessage]:
    from tests.fuzz.options import anys

    return anys()


def _values(field: Any) -> SearchStrategy[Any]:
    """Values for a field of a request, by its name."""
    ids = st.sampled_from(["a", "a", "a", "e", "b", "", "..", "a/b", "%n", "-", "a" * 77])
    paths = st.sampled_from(
        [
            "",
            "/W/bundle/in",
            "/W/bundle/out",
            "/W/bundle",
            "/W/bundle/config.json",
            "x",
            "/W/../etc",
        ]
    )
    uris = st.sampled_from(
        ["", "/W/bundle/out", "file:///x/y", "binary:///bin/true?a=b", "binary:///no", "x:"]
    )
    by_name: dict[str, SearchStrategy[Any]] = {
        "id": ids,
        "exec_id": st.sampled_from(["", "e", "e", "f", "..", "e:e"]),
        "bundle": st.sampled_from(["/W/bundle", "/W/bundle", "/W/bundle/../bundle", "/etc", "rel"]),
        "stdin": paths,
        "stdout": st.one_of(paths, uris),
        "stderr": paths,
        "path": st.sampled_from(["/W/img", "img", "", "/\x01"]),
        "parent_checkpoint": st.sampled_from(["", "/x"]),
        "checkpoint": st.sampled_from(["", "", "/W/img", "x"]),
        "signal": st.sampled_from([0, 9, 15, 64, 65, 2**32 - 1]),
        "token": st.sampled_from([TOKEN, OTHER, ""]),
        "namespace": st.sampled_from(["fuzz", "fuzz", "", "../x", "a" * 80]),
        "spec": _processes(),
        "resources": _resources(),
        "options": st.one_of(_options(), _checkpoints()),
    }
    if field.cpp_type == field.CPPTYPE_BOOL:  # CloseIO's stdin
        return st.booleans()
    if field.name in by_name:
        return by_name[field.name]
    if field.message_type:
        return st.none()
    return st.integers(0, 2**16)


def _mounts() -> SearchStrategy[list[Any]]:
    from sdshim.pb import task_v2_pb2

    text = st.sampled_from(
        ["", "bind", "overlay", "/W/x", "-x", "rw", "uidmap=0:1:2", "loop", "\n"]
    )
    kind = type(task_v2_pb2.CreateTaskRequest().rootfs.add())
    one = st.builds(kind, type=text, source=text, target=text, options=st.lists(text, max_size=3))
    return st.lists(one, max_size=2)


@functools.cache
def _shaped(index: int) -> SearchStrategy[bytes]:
    service, method = METHODS[index]
    made = type(_message(service, method))
    fields: dict[str, SearchStrategy[Any]] = {}
    for field in made.DESCRIPTOR.fields:
        if field.name == "rootfs":
            fields["rootfs"] = _mounts()
        elif not is_repeated(field):
            fields[field.name] = _values(field)
    scenes = st.integers(0, len(SCENES) - 1).map(lambda n: bytes([n]))
    right = st.builds(made, **fields).map(lambda one: bytes(one.SerializeToString()))
    return st.tuples(st.just(bytes([index])), scenes, right).map(b"".join)


def shapes() -> SearchStrategy[bytes]:
    """Messages of the right kind with doubtful values."""
    return st.integers(0, len(METHODS) - 1).flatmap(_shaped)


def _seed(method: str, scene: str, message: Any) -> bytes:
    service = control.SERVICE if method in _CONTROL else task.SERVICES[0]
    head = bytes([METHODS.index((service, method)), SCENES.index(scene)])
    return head + bytes(message.SerializeToString())


def _seeds() -> tuple[bytes, ...]:
    generic = runtimeoptions_pb2.Options(config_body=b'[unit_properties]\nCPUWeight = "5"\n')
    ours = options_pb2.Options(oci_runtime="true", unit_properties={"MemoryMax": "64M"})
    process = _any(PROCESS_URL, PROCESS)
    limits = _any(
        RESOURCES_URL, b'{"memory": {"limit": 67108864}, "unified": {"cpu.max": "max 1"}}'
    )
    return (
        _seed("Create", "none", pb.CreateTaskRequest(id="a", bundle="/W/bundle")),
        _seed(
            "Create",
            "none",
            pb.CreateTaskRequest(
                id="a",
                bundle="/W/bundle",
                stdin="/W/bundle/in",
                stdout="/W/bundle/out",
                options=_any("sdshim.v1.Options", ours.SerializeToString()),
            ),
        ),
        _seed(
            "Create",
            "fails",
            pb.CreateTaskRequest(
                id="a",
                bundle="/W/bundle",
                stdout="file:///x/log",
                options=_any("runtimeoptions.v1.Options", generic.SerializeToString()),
            ),
        ),
        _seed("Start", "created", pb.StartRequest(id="a")),
        _seed("Start", "exec", pb.StartRequest(id="a", exec_id="e")),
        _seed("Exec", "running", pb.ExecProcessRequest(id="a", exec_id="f", spec=process)),
        _seed("ResizePty", "exec", pb.ResizePtyRequest(id="a", exec_id="e", width=9, height=9)),
        _seed("Update", "running", pb.UpdateTaskRequest(id="a", resources=limits)),
        _seed("Kill", "running", pb.KillRequest(id="a", signal=9, all=True)),
        _seed("Delete", "exited", pb.DeleteRequest(id="a")),
        _seed("Pause", "running", pb.PauseRequest(id="a")),
        _seed("Resume", "paused", pb.ResumeRequest(id="a")),
        _seed("Checkpoint", "running", pb.CheckpointTaskRequest(id="a", path="/W/img")),
        _seed(
            "Cleanup", "running", control_pb2.CleanupRequest(namespace="fuzz", id="a", token=TOKEN)
        ),
        _seed("Stats", "running", pb.StatsRequest(id="a")),
    )


TARGET = Target("requests", check, shapes, _seeds(), close)
