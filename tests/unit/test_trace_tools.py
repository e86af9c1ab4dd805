"""The collector takes what exporters send and refuses the rest; spantree prints it as a tree."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.tools import spantree
from tests.tools.collector import Collector, decode

ROOT = Path(__file__).resolve().parents[2]


def request() -> bytes:
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "sdshim"
    span = resource.scope_spans.add().spans.add(
        name="mount",
        kind=2,
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
        start_time_unix_nano=1,
        end_time_unix_nano=2,
    )
    span.attributes.add(key="n").value.int_value = 3
    values = span.attributes.add(key="l").value.array_value.values
    values.add().bool_value = True
    span.attributes.add(key="none")
    span.status.code = 2
    span.status.message = "no"
    return message.SerializeToString()


def post(port: int, body: bytes, path: str = "/v1/traces", encoding: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"Content-Encoding": encoding} if encoding else {}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_decode() -> None:
    (span,) = decode(request())
    assert span == {
        "trace_id": "000102030405060708090a0b0c0d0e0f",
        "span_id": "0001020304050607",
        "parent_id": "",
        "name": "mount",
        "kind": "server",
        "start_ns": 1,
        "end_ns": 2,
        "attributes": {"n": 3, "l": [True], "none": None},
        "events": [],
        "error": "no",
        "resource": {"service.name": "sdshim"},
    }


def test_collector_answers(tmp_path: Path) -> None:
    out = tmp_path / "spans.jsonl"
    with Collector(out) as collector:
        port = int(collector.endpoint.rpartition(":")[2])
        assert post(port, request()) == (200, b"")
        assert post(port, gzip.compress(request()), encoding="gzip") == (200, b"")
        assert post(port, b"\xff\xff")[0] == 400
        assert post(port, b"no gzip", encoding="gzip")[0] == 400
        assert post(port, gzip.compress(request())[:-9], encoding="gzip")[0] == 400
        assert post(port, request(), "/v1/logs")[0] == 404
        assert collector.count == 2
        assert len(out.read_text().splitlines()) == 2


def test_collector_as_a_program(tmp_path: Path) -> None:
    out = tmp_path / "spans.jsonl"
    command = [sys.executable, "-m", "tests.tools.collector", "--port", "0", "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        assert post(port, request())[0] == 200
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    assert json.loads(out.read_text())["name"] == "mount"


def span(name: str, own: str, parent: str, begin: int, end: int, **more: Any) -> dict[str, Any]:
    return {
        "trace_id": more.pop("trace", "t1"),
        "span_id": own,
        "parent_id": parent,
        "name": name,
        "kind": more.pop("kind", "internal"),
        "start_ns": begin * spantree.MS,
        "end_ns": end * spantree.MS,
        "error": more.pop("error", None),
        "events": more.pop("events", []),
        "attributes": more.pop("attributes", {}),
        "resource": {},
    }


SPANS = [
    span("event", "d", "a", 30, 31, attributes={"container.id": "c1", "x": 1}, kind="client"),
    span("runc.create", "b", "a", 12, 25, error="no such\nfile", attributes={"error.type": "E"}),
    span("mount", "c", "b", 13, 14, events=[{"ns": 13_500_000, "name": "retry", "attributes": {}}]),
    span("Create", "a", "caller", 10, 40, kind="server", attributes={"container.id": "c1"}),
    span("Start", "e", "", 1, 2, trace="t0", attributes={"container.id": "c0"}),
    span("orphan", "f", "f", 3, 4, trace="t0"),
]


def test_tree() -> None:
    first, second = spantree.traces(SPANS)
    lines = list(spantree.render(second))
    assert lines[0].startswith("trace t1  ")
    assert lines[0].endswith("4 spans  30.0 ms")
    assert lines[1:] == [
        "      0.0      30.0  > Create  id=c1",
        "      2.0      13.0    runc.create  ERROR E: no such file",
        "      3.0       1.0      mount  +0.5:retry",
        "     20.0       1.0    < event",
    ]
    assert [line.split()[2] for line in list(spantree.render(first))[1:]] == ["Start", "orphan"]
    assert list(spantree.render(second, every=True))[-1].endswith("< event  x=1")


def test_filter() -> None:
    assert [group[0]["trace_id"] for group in spantree.traces(SPANS, "c1")] == ["t1"]
    assert [group[0]["trace_id"] for group in spantree.traces(SPANS, name="orph")] == ["t0"]
    assert spantree.traces(SPANS, "c2") == []


def test_spantree_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in SPANS) + '{"trace_id": "cut')
    assert spantree.main([str(path), "--container", "c0"]) == 0
    printed = capsys.readouterr().out
    assert "Start" in printed
    assert "Create" not in printed
