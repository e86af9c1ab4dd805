"""The OCI spec: config.json → plan, unit properties on the wire, config.json written anew; and
names, which must lead back to what they were made from.

The first byte says which: a spec, or names.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

from dbus_next import Message
from hypothesis import strategies as st

from sdshim.core import names
from sdshim.core import resources as limits
from sdshim.core.errors import ShimError
from sdshim.core.unitspec import ExecUnit, HostFacts, InitUnit, exec_properties, init_properties
from sdshim.daemon import plan
from sdshim.pb import task_v2_pb2 as pb
from sdshim.runtime import bundle
from sdshim.systemd.wire import typed
from sdshim.ttrpc.server import Call, CallKey
from tests.fuzz.kit import Fault, Target, no_surprise
from tests.fuzz.world import SPEC, close, world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

    from sdshim.core.unitspec import Property

SPEC_KIND, NAMES_KIND = range(2)
_UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+\.(service|slice|scope)")
_HOSTS = (HostFacts(252, True, "/l"), HostFacts(257, False, "/l"), HostFacts(262, True, "/l"))


def on_the_wire(properties: Sequence[Property]) -> None:
    """Properties must fit their D-Bus types, and no text may hold a NUL."""
    body = ["x.service", "fail", typed(properties), []]
    message = Message(
        destination="a.b",
        path="/",
        interface="a.b",
        member="c",
        signature="ssa(sv)a(sa(sv))",
        body=body,
    )
    message.serial = 1
    message._marshall()
    for name, _, value in properties:
        if name in ("Description", "Slice", "SyslogIdentifier") and not value.isprintable():
            raise Fault(f"{name}={value!r}")


def _call() -> Call:
    return Call(
        CallKey(1, 1),
        service="s",
        method="Create",
        payload=b"",
        metadata={},
        namespace="fuzz",
        peer_pid=1 << 30,
        token=bytes(16),
        received=0.0,
        deadline=None,
        connection=None,
        note_begun=lambda: None,
    )


def _check_spec(data: bytes) -> None:
    place = world()
    place.reset()
    path = place.bundle / "config.json"
    path.write_bytes(data)
    request = pb.CreateTaskRequest(id="a", bundle=str(place.bundle))
    with no_surprise(), place.watched(b""):
        try:
            made = plan.make(
                request, _call(), place.node(cast("Any", None)).config, "", unified=True
            )
            spec = bundle.with_cgroup(made.spec, made.identity.cgroup)
            bundle.write_spec(place.bundle, spec)
        except ShimError:
            if path.read_bytes() != data:
                raise Fault("a refused config.json was changed") from None
            return
        again = bundle.load_spec(place.bundle)
    _compare(made.spec, again, made.identity.cgroup)
    me = made.identity
    if ".." in me.cgroup.split("/") or not me.cgroup.strip("/") or not me.cgroup.isprintable():
        raise Fault(f"cgroup {me.cgroup!r}")
    for host in _HOSTS:
        unit = InitUnit(me, str(place.run_dir), ("/r",), made.description)
        on_the_wire(init_properties(unit, host))
        on_the_wire(exec_properties(ExecUnit(me, "/s", ("/r",), "d"), host))
    wanted = (made.spec.get("linux") or {}).get("resources")
    if isinstance(wanted, dict):
        for unified in (False, True):
            try:
                properties = limits.properties(wanted, unified=unified)
            except ShimError:
                continue
            on_the_wire(properties)


def _compare(before: dict[str, Any], after: dict[str, Any], cgroup: str) -> None:
    """Nothing but the cgroup's path is changed."""
    linux = {**(before.get("linux") or {}), "cgroupsPath": cgroup}
    if repr({**before, "linux": linux}) != repr(after):
        raise Fault("config.json is not what it was")


def _check_names(data: bytes) -> None:
    words = [word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")]
    legal = []
    for word in words:
        try:
            legal.append(names.check_id(word))
        except ShimError:
            continue
        except UnicodeEncodeError:  # protobuf gives no such text
            continue
    seen: dict[str, object] = {}
    for namespace in legal:
        for task_id in legal:
            key = names.TaskKey(namespace, task_id)
            _note(seen, names.init_unit(key), (key, "", False))
            _note(seen, names.logger_unit(key), (key, "", True))
            for exec_id in legal:
                _note(seen, names.exec_unit(key, exec_id), (key, exec_id, False))
                _note(seen, names.logger_unit(key, exec_id), (key, exec_id, True))
            if names.helper_of(names.mounts_unit(key)) != key:
                raise Fault(f"helper of {key}")
    for word in words:
        _check_any_name(word)
    slices: dict[str, object] = {}
    for namespace in legal:
        for pod in words:
            if pod and names.pod_slice(namespace, pod):
                _once(slices, names.pod_slice(namespace, pod), (namespace, pod))
    for name in slices:
        if len(name.encode()) > 255 or "--" in name or "/" in name or not _UNIT.fullmatch(name):
            raise Fault(f"slice {name!r}")


def _note(seen: dict[str, object], unit: str, meaning: tuple[names.TaskKey, str, bool]) -> None:
    _once(seen, unit, meaning)
    if names.parse_unit(unit) != meaning or len(unit) > 255 or not _UNIT.fullmatch(unit):
        raise Fault(f"{unit!r} is read as {names.parse_unit(unit)}, not {meaning}")


def _once(seen: dict[str, object], name: str, meaning: object) -> None:
    if seen.setdefault(name, meaning) != meaning:
        raise Fault(f"{name!r} is {seen[name]} and {meaning}")


def _check_any_name(word: str) -> None:
    """What is read as a name of ours is exactly the name that is made of it."""
    found = names.parse_unit(word)
    if found is not None:
        make = names.logger_unit if found.logger else names.exec_unit
        bare = not found.exec_id and not found.logger
        back = names.init_unit(found.key) if bare else make(found.key, found.exec_id)
        if back != word:
            raise Fault(f"{word!r} is read as {back!r}")
    names.helper_of(word)
    names.slice_path(word)


def check(data: bytes) -> None:
    """Only ShimErrors; properties fit their types; names are a bijection."""
    if data[:1] and data[0] % 2 == NAMES_KIND:
        _check_names(data[1:])
    else:
        _check_spec(data[1:])


def jsons() -> SearchStrategy[Any]:
    """Any JSON value."""
    numbers = st.integers(-(2**70), 2**70)
    leaf = st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=12))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    )


def resources() -> SearchStrategy[Any]:
    """A LinuxResources, nearly."""
    number = st.one_of(
        st.integers(-2, 2**64),
        st.sampled_from([0, 1, 10, 1000, 2**63, 2**64, 2**70]),
        st.text(max_size=3),
    )
    digits = st.text("0123456789²٣ -,max", max_size=8)
    texts = st.one_of(
        digits, st.sampled_from(["max", "max 100000", "1 1", "9" * 30, "0-3,8"]), number
    )

    def part(*fields: str, of: SearchStrategy[Any] = number) -> SearchStrategy[Any]:
        return st.one_of(
            st.dictionaries(st.sampled_from(fields), of, max_size=len(fields)), st.none(), number
        )

    return st.fixed_dictionaries(
        {},
        optional={
            "memory": part("limit", "swap", "reservation"),
            "cpu": part("shares", "quota", "period") | part("cpus", "mems", of=texts),
            "pids": part("limit"),
            "blockIO": part("weight"),
            "unified": part(
                "memory.max", "memory.low", "cpu.max", "cpu.weight", "pids.max", of=texts
            ),
        },
    )


def _specs() -> SearchStrategy[bytes]:
    paths = st.one_of(
        st.sampled_from(
            [
                "",
                "/fuzz/a",
                "/docker/a",
                "x.slice:p:n",
                "a-b.slice:p:n",
                ".slice:a:b",
                "-.slice:a:b",
            ]
        ),
        st.sampled_from(["/", "//", "/a/../b", "../x", "a", "..", "/x\n", "--.slice:a:b", "/x/y"]),
        st.text(max_size=20),
    )
    names_of = ["image-name", "sandbox-name", "sandbox-namespace", "sandbox-id", "container-name"]
    keys = [*(f"io.kubernetes.cri.{name}" for name in names_of), "io.sdshim.pod"]
    notes = st.dictionaries(
        st.one_of(st.sampled_from(keys), st.text(max_size=5)), st.one_of(st.text(), st.none())
    )
    linux = st.fixed_dictionaries(
        {},
        optional={
            "cgroupsPath": st.one_of(paths, st.none(), st.integers()),
            "resources": st.one_of(resources(), jsons()),
            "namespaces": st.one_of(
                st.lists(
                    st.fixed_dictionaries({}, optional={"type": st.just("pid"), "path": paths})
                ),
                jsons(),
            ),
        },
    )
    spec = st.fixed_dictionaries(
        {},
        optional={
            "linux": st.one_of(linux, linux, jsons()),
            "annotations": st.one_of(notes, jsons()),
            "process": jsons(),
        },
    )
    return st.one_of(spec, spec, jsons()).map(
        lambda one: bytes([SPEC_KIND]) + json.dumps(one).encode()
    )


def shapes() -> SearchStrategy[bytes]:
    """Specs with doubtful values; lists of ids, pods and unit names."""
    ids = st.from_regex(names._ID, fullmatch=True).map(lambda text: text[:76].rstrip("._-"))
    pods = st.text(st.sampled_from("ab-.:\\x2d/é \n%$"), min_size=1, max_size=9)
    units = st.builds(
        lambda parts, end: "sdshim-" + "".join(parts) + end,
        st.lists(st.sampled_from(["a", "-", ":", "log", "::", "b.c", ".", "_"]), max_size=8),
        st.sampled_from([".service", ".scope", ".slice", ""]),
    )
    words = st.lists(st.one_of(ids, ids, pods, units), max_size=5)
    listed = words.map(
        lambda all_of: bytes([NAMES_KIND]) + "\0".join(all_of).encode("utf-8", "replace")
    )
    return st.one_of(_specs(), _specs(), listed)


TARGET = Target(
    "spec",
    check,
    shapes,
    (
        bytes([SPEC_KIND]) + json.dumps(SPEC).encode(),
        bytes([NAMES_KIND]) + b"default\0c1\0a-b\0a.b\0pod name\0sdshim-a:b-c:d:log.service",
    ),
    close,
)
