"""Spans of a real daemon, as a collector beside it gets them: which, below which, what in them."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.spans import format_traceparent
from sdshim.pb import types_pb2
from tests.host import Host
from tests.system.client import Ctr
from tests.system.taskclient import ROOTFS, V2, V3, Rig, spec_of
from tests.system.traces import Record, Traces, traced_host

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

MS = 1_000_000
CALLS = ("Connect", "Start", "State", "Pids", "CloseIO", "Kill", "Wait", "Delete", "Shutdown")


@pytest.fixture(scope="module")
def traced(host: Host) -> Iterator[Host]:
    """A host like the session's, its daemon tracing, a collector in its network."""
    with traced_host(host) as booted:
        yield booted


@pytest.fixture
def traces(traced: Host) -> Traces:
    """The spans of the traced host."""
    return Traces(traced)


@pytest.fixture
def wired(traced: Host) -> Iterator[Rig]:
    """A containerd of ours on the traced host."""
    with Rig(traced) as rig:
        yield rig


def _mounted(rig: Rig, id_: str, *command: str) -> dict[str, Any]:
    """A bundle whose rootfs is a mount; the fields of its Create."""
    spec = spec_of(*command)
    spec["root"] = {"path": "rootfs", "readonly": True}
    bundle = rig.bundle(id_, spec=spec)
    mount = types_pb2.Mount(type="bind", source=ROOTFS, options=["rbind", "ro"])
    return {"id": id_, "bundle": bundle.path, "rootfs": [mount]}


def _inside(inner: Record, outer: Record, slack_ms: int = 1) -> bool:
    begun = inner["start_ns"] >= outer["start_ns"] - slack_ms * MS
    return bool(begun and inner["end_ns"] <= outer["end_ns"] + slack_ms * MS)


def test_a_life_is_a_tree_of_spans_under_its_calls(wired: Rig, traces: Traces) -> None:
    wired.call("Create", **_mounted(wired, "tree", "sh", "-c", "exit 7"))
    wired.call("Start", id="tree")
    wired.call("Wait", id="tree")
    wired.call("Delete", id="tree")
    wired.events.until("tree", "delete")
    deleted = traces.one("tree", "event.forward", "/tasks/delete")
    create, start, delete = (traces.one("tree", f"Task/{m}") for m in ("Create", "Start", "Delete"))
    job = traces.one("tree", "systemd.StartTransientUnit")
    mount, made = traces.one("tree", "rootfs.mount"), traces.one("tree", "runc.create")
    ended = traces.one("tree", "task.exit")
    parents = {
        job["span_id"]: create,
        mount["span_id"]: job,
        made["span_id"]: job,
        ended["span_id"]: create,
        traces.one("tree", "runc.start")["span_id"]: start,
        traces.one("tree", "runc.delete")["span_id"]: delete,
        traces.one("tree", "rootfs.umount")["span_id"]: delete,
        traces.one("tree", "systemd.StopUnit")["span_id"]: delete,
        traces.one("tree", "event.forward", "/tasks/create")["span_id"]: create,
        traces.one("tree", "event.forward", "/tasks/start")["span_id"]: start,
        deleted["span_id"]: delete,
    }
    by_id = {span["span_id"]: span for span in traces.of("tree")}
    for span_id, parent in parents.items():
        found = by_id[span_id]
        assert found["parent_id"] == parent["span_id"], found["name"]
        assert found["trace_id"] == parent["trace_id"], found["name"]
    told = traces.one("tree", "event.forward", "/tasks/exit")
    assert told["trace_id"] == create["trace_id"]
    assert _inside(job, create) and _inside(mount, job) and _inside(made, job)
    assert mount["end_ns"] <= made["start_ns"] <= ended["start_ns"]
    failed = [span["name"] for span in by_id.values() if span["error"]]
    assert not [name for name in failed if name != "event.forward"]


@pytest.mark.parametrize("service", [V2, V3])
def test_every_call_has_a_span_that_says_what_it_was(
    wired: Rig, traces: Traces, service: str
) -> None:
    id_ = f"calls-{service[16:18]}"
    bundle = wired.bundle(id_, "sleep", "1000")
    pid = wired.call("Create", service=service, id=id_, bundle=bundle.path).pid
    for method in CALLS:
        fields: dict[str, Any] = {"signal": 9} if method == "Kill" else {}
        wired.call(method, service=service, id=id_, **fields)
    for method in ("Create", *CALLS[:-1]):
        span = traces.one(id_, f"{service}/{method}")
        facts = span["attributes"]
        assert span["kind"] == "server"
        assert (facts["rpc.system"], facts["rpc.service"]) == ("ttrpc", service)
        assert (facts["rpc.method"], facts["rpc.grpc.status_code"]) == (method, 0)
        assert facts["containerd.namespace"] == "default"
        assert facts["systemd.unit"] == f"sdshim-default-{id_}.service"
        assert facts["process.pid"] == pid
        assert span["error"] is None
    for method in ("Wait", "Delete"):
        assert traces.one(id_, f"/{method}")["attributes"]["process.exit.code"] == 137
    assert "process.exit.code" not in traces.one(id_, "/Start")["attributes"]
    assert "systemd.unit" not in traces.one(id_, "/Shutdown")["attributes"]


def test_all_spans_of_a_container_name_it_and_its_namespace(wired: Rig, traces: Traces) -> None:
    wired.call("Create", **_mounted(wired, "named", "true"))
    wired.call("Start", id="named")
    wired.call("Wait", id="named")
    create = traces.one("named", "Task/Create")
    wired.call("Delete", id="named")
    traces.one("named", "event.forward", "/tasks/delete")
    delete = traces.one("named", "Task/Delete")
    for span in traces.all():
        if span["trace_id"] in (create["trace_id"], delete["trace_id"]):
            facts = span["attributes"]
            assert facts["container.id"] == "named", span["name"]
            assert facts["containerd.namespace"] == "default", span["name"]
            unit = facts.get("systemd.unit", "sdshim-default-named.service")
            assert unit == "sdshim-default-named.service"


def test_the_exit_says_pid_and_code(wired: Rig, traces: Traces) -> None:
    wired.stopped("coded", "sh", "-c", "exit 42")
    facts = traces.one("coded", "task.exit")["attributes"]
    assert facts["process.exit.code"] == 42
    assert facts["process.pid"] == wired.call("State", id="coded").pid
    assert facts["systemd.unit"] == "sdshim-default-coded.service"


def test_the_callers_traceparent_is_the_parent_of_the_calls_span(
    wired: Rig, traces: Traces
) -> None:
    trace, caller = secrets.randbits(128), secrets.randbits(64)
    metadata = {"traceparent": format_traceparent(trace, caller, 1), "tracestate": "vendor=1"}
    bundle = wired.bundle("child", "sh", "-c", "exit 1")
    wired.call("Create", id="child", bundle=bundle.path, metadata=metadata)
    wired.call("State", id="child", metadata=metadata)
    wired.call("Start", id="child")
    wired.call("Wait", id="child")
    for name in ("Task/Create", "Task/State"):
        span = traces.one("child", name)
        assert (span["trace_id"], span["parent_id"]) == (f"{trace:032x}", f"{caller:016x}")
    # What came of the Create later is in the caller's trace too; what another call did is not.
    for name in ("runc.create", "task.exit"):
        assert traces.one("child", name)["trace_id"] == f"{trace:032x}"
    for topic in ("create", "exit"):
        told = traces.one("child", "event.forward", f"/tasks/{topic}")
        assert told["trace_id"] == f"{trace:032x}"
    assert traces.one("child", "Task/Start")["trace_id"] != f"{trace:032x}"


def test_a_caller_that_does_not_sample_is_not_traced(wired: Rig, traces: Traces) -> None:
    trace = secrets.randbits(128)
    unsampled = {"traceparent": format_traceparent(trace, secrets.randbits(64), 0)}
    bundle = wired.bundle("quiet", "true")
    wired.call("Create", id="quiet", bundle=bundle.path, metadata=unsampled)
    wired.call("State", id="quiet")
    traces.one("quiet", "Task/State")
    wired.call("Delete", id="quiet")
    traces.one("quiet", "event.forward", "/tasks/delete")
    assert not [span for span in traces.all() if span["trace_id"] == f"{trace:032x}"]


@pytest.mark.parametrize("value", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_an_invalid_traceparent_begins_a_trace(wired: Rig, traces: Traces, value: str) -> None:
    id_ = f"odd{len(value)}"
    wired.created(id_)
    wired.call("State", id=id_, metadata={"traceparent": value})
    assert traces.one(id_, "Task/State")["parent_id"] == ""


def test_a_failed_create_tells_its_error_and_which_step_it_was(wired: Rig, traces: Traces) -> None:
    bundle = wired.bundle("fails", "/no/such/command")
    code, text = wired.refused("Create", id="fails", bundle=bundle.path)
    span = traces.one("fails", "Task/Create")
    assert span["error"] == text
    assert span["attributes"]["rpc.grpc.status_code"] == code == 2
    assert span["attributes"]["error.type"] == "UnknownError"
    made = traces.one("fails", "runc.create")
    assert made["error"] == "runc.create: exit status 1"
    job = traces.one("fails", "systemd.StartTransientUnit")
    assert job["attributes"]["systemd.job.result"] == "failed"
    assert made["parent_id"] == job["span_id"]


def test_a_failed_mount_is_the_step_that_has_the_error(wired: Rig, traces: Traces) -> None:
    fields = _mounted(wired, "unmounted", "true")
    fields["rootfs"] = [types_pb2.Mount(type="bind", source="/no/such", options=["rbind"])]
    _, text = wired.refused("Create", **fields)
    assert traces.one("unmounted", "Task/Create")["error"] == text
    assert traces.one("unmounted", "rootfs.mount")["error"].startswith("rootfs.mount: exit status")
    assert not [s for s in traces.of("unmounted") if s["name"] == "runc.create"]


@pytest.mark.parametrize(
    ("method", "code", "kind"), [("State", 5, "NotFound"), ("Wait", 5, "NotFound")]
)
def test_a_refused_call_has_its_status(
    wired: Rig, traces: Traces, method: str, code: int, kind: str
) -> None:
    wired.created(f"refuses-{method}")
    _, text = wired.refused(method, id=f"refuses-{method}", exec_id="x1")
    span = traces.one(f"refuses-{method}", f"Task/{method}")
    assert span["error"] == text == "process does not exist x1: not found"
    assert span["attributes"]["rpc.grpc.status_code"] == code
    assert span["attributes"]["error.type"] == kind
    assert span["attributes"]["container.exec.id"] == "x1"


def test_no_environment_of_a_container_is_in_any_span(wired: Rig, traces: Traces) -> None:
    spec = spec_of("sh", "-c", "exit 1")
    spec["process"]["env"].append("PASSWORD=hunter2")
    wired.created("secret", spec=spec)
    wired.call("Start", id="secret")
    wired.call("Wait", id="secret")
    traces.one("secret", "event.forward", "/tasks/exit")
    assert "hunter2" not in json.dumps(traces.all())


def test_the_containers_of_containerd_are_traced(traced: Host, traces: Traces) -> None:
    assert Ctr(traced).run("real", "sh", "-c", "exit 5").returncode == 5
    traces.one("real", "event.forward", "/tasks/delete")
    assert traces.one("real", "task.exit")["attributes"]["process.exit.code"] == 5
    create = traces.one("real", "Task/Create")
    job = traces.one("real", "systemd.StartTransientUnit")
    assert traces.one("real", "rootfs.mount")["parent_id"] == job["span_id"]
    assert traces.one("real", "runc.create")["trace_id"] == create["trace_id"]
    assert create["resource"]["service.name"] == "sdshim"


def test_an_exit_after_a_restart_of_the_daemon_is_in_the_trace_of_its_create(
    traced: Host, wired: Rig, traces: Traces
) -> None:
    wired.running("lasting")
    before = wired.daemon_pid()
    create = traces.one("lasting", "Task/Create")
    traced.run(["systemctl", "restart", "sdshim.service"])
    wired.call("Kill", id="lasting", signal=9)
    ended = traces.one("lasting", "task.exit")
    assert (ended["trace_id"], ended["parent_id"]) == (create["trace_id"], create["span_id"])
    told = traces.one("lasting", "event.forward", "/tasks/exit")
    assert told["trace_id"] == create["trace_id"]
    assert create["resource"]["process.pid"] == before
    assert ended["resource"]["process.pid"] == wired.daemon_pid() != before


def test_without_an_endpoint_opentelemetry_is_not_even_imported(host: Host) -> None:
    with Host(host.root.name, host.cgroup) as plain:
        folder = plain.path("/run/systemd/system/sdshim.service.d")
        folder.mkdir(parents=True)
        line = "/usr/bin/python3 -IS -X importtime /usr/local/bin/sdshim serve"
        (folder / "imports.conf").write_text(f"[Service]\nExecStart=\nExecStart={line}\n")
        plain.run(["systemctl", "daemon-reload"])
        assert Ctr(plain).run("plain", "sh", "-c", "exit 5").returncode == 5
        said = plain.run(["journalctl", "-u", "sdshim", "-o", "cat", "--no-pager"]).stdout
    assert "sdshim.telemetry" in said  # what is imported is said
    for library in ("opentelemetry", "requests", "grpc"):
        assert not any(
            line.endswith((f" {library}", f" {library}.sdk")) for line in said.split("\n")
        )
