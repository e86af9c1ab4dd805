"""A small OTLP/HTTP receiver: spans arrive as protobuf (gzip or not), and leave as JSON lines.

    python -m tests.tools.collector --port 4318 --out spans.jsonl

Needs nothing but opentelemetry-proto. A line has trace_id, span_id, parent_id (hex), name, kind,
start_ns, end_ns, attributes, events, error (message or null), resource. GET / answers how many
spans came. It ends with SIGTERM or SIGINT; the file is complete after every request.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import error as ZlibError

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from types import TracebackType

PROTOBUF = "application/x-protobuf"
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_ERROR = 2


def decode(body: bytes) -> list[dict[str, Any]]:
    """The spans of one export request."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        _span(span, _attributes(resource.resource.attributes))
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _span(span: Any, resource: dict[str, Any]) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "name": span.name,
        "kind": _KINDS[span.kind] if span.kind < len(_KINDS) else str(span.kind),
        "start_ns": span.start_time_unix_nano,
        "end_ns": span.end_time_unix_nano,
        "attributes": _attributes(span.attributes),
        "events": [
            {"ns": e.time_unix_nano, "name": e.name, "attributes": _attributes(e.attributes)}
            for e in span.events
        ],
        "error": span.status.message if span.status.code == _ERROR else None,
        "resource": resource,
    }


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    plain = getattr(value, kind)
    return plain.hex() if isinstance(plain, bytes) else plain


class Collector:
    """The receiver as a context manager: listens from its making on, serves inside `with`."""

    def __init__(self, out: Path, port: int = 0) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._file = out.open("a", encoding="utf-8")
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, spans: list[dict[str, Any]]) -> None:
        """Write spans out, all of them or none."""
        lines = "".join(json.dumps(span, separators=(",", ":")) + "\n" for span in spans)
        with self._lock:
            self._file.write(lines)
            self._file.flush()
            self.count += len(spans)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._file.close()


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            self._answer(HTTPStatus.OK, f"{collector.count} spans\n".encode(), "text/plain")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path != "/v1/traces":
                self._answer(HTTPStatus.NOT_FOUND, b"only /v1/traces\n", "text/plain")
                return
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                spans = decode(body)
            except (DecodeError, OSError, EOFError, ZlibError) as error:
                self._answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode(), "text/plain")
                return
            collector.take(spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self._answer(HTTPStatus.OK, answer, PROTOBUF)

        def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence: stderr is for what goes wrong."""

    return Handler


def main(arguments: list[str]) -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="collector", description="OTLP/HTTP spans to JSON lines")
    parser.add_argument("--port", type=int, default=4318, help="0 = any free one")
    parser.add_argument("--out", type=Path, required=True, help="file to append to")
    options = parser.parse_args(arguments)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with Collector(options.out, options.port) as collector:
        print(f"listening on {collector.endpoint}", flush=True)
        done.wait()
    print(f"{collector.count} spans", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
