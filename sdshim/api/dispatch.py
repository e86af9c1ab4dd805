"""The one way of a request: namespace, span, message, operation, error → status, reply."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdshim.api import control, task
from sdshim.core import logs, spans
from sdshim.core.errors import Code, Internal, InvalidArgument, ShimError, Unimplemented
from sdshim.core.names import TaskKey
from sdshim.daemon import discretion
from sdshim.ttrpc.calls import reply_for
from sdshim.ttrpc.server import CallKind, Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from sdshim.api.task import Method
    from sdshim.core.spans import Span
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Task
    from sdshim.ttrpc.server import Call, Server

log = logging.getLogger(__name__)

NAMESPACE_METADATA = "containerd-namespace-ttrpc"


class Dispatcher:
    """The server's handlers: one table per service, one way through for all of them."""

    def __init__(self, node: Node, listen: Callable[[str], Awaitable[str]]) -> None:
        self._node = node
        self._services: dict[str, Mapping[str, Method]] = dict.fromkeys(task.SERVICES, task.METHODS)
        self._services[control.SERVICE] = control.methods(listen)
        self.server: Server | None = None
        """Set once by the wiring; replies of journalled calls go there."""

    def kind(self, service: str, method: str) -> CallKind:
        """How a call is answered. Raises Unimplemented (protocol 2.4)."""
        return CallKind.INLINE if self._method(service, method).now else CallKind.JOURNALLED

    def inline(self, call: Call) -> bytes:
        """Answer a call that changes nothing."""
        method = self._method(call.service, call.method)
        assert method.now is not None
        with self._span(call) as span:
            try:
                request = self._decode(method, call)
                with self._described(span, call, request):
                    return method.now(self._node, call, request)
            except Exception as error:
                span.set(spans.RPC_STATUS, _code(error))
                raise

    def dispatch(self, call: Call) -> None:
        """Start the work of a journalled call, or answer from what was recorded for it."""
        recorded = self._recorded(call)
        if recorded is not None:
            self._reply(call, recorded)
            return
        self._node.spawn(self._run(call), f"{call.method} {call.key}")

    async def _run(self, call: Call) -> None:
        method = self._method(call.service, call.method)
        assert method.later is not None
        begun = time.monotonic()
        request: Any = None
        known: Task | None = None
        with self._span(call) as span:
            try:
                request = self._decode(method, call)
                known = self._node.tasks.get(_key(call, request))  # Delete forgets it
                with self._described(span, call, request):
                    reply = Reply(0, "", await method.later(self._node, call, request))
            except Exception as failure:
                error = discretion.told(self._node, call.method, request, known, failure)
                span.fail(error)
                span.set(spans.RPC_STATUS, _code(error))
                reply = reply_for(error)
        self._tell(call, request, known, reply, time.monotonic() - begun, span)
        self._reply(call, reply)

    def _tell(
        self, call: Call, request: Any, known: Task | None, reply: Reply, took_s: float, span: Span
    ) -> None:
        """The one line of an operation: to the journal, and to containerd by the bundle's log."""
        key = _key(call, request)
        known = known or self._node.tasks.get(key)
        fields = {
            "CONTAINER_ID": key.id or None,
            "CONTAINER_NAMESPACE": key.namespace,
            "CONTAINER_EXEC_ID": getattr(request, "exec_id", "") or None,
            "UNIT": known.identity.unit if known else None,
            "SDSHIM_OPERATION": call.method,
            "SDSHIM_STATUS": reply.code,
            "DURATION_MS": took_s * 1e3,
            "TRACE_ID": logs.trace_id(span.traceparent) or None,
        }
        bundle = known.identity.bundle if known else getattr(request, "bundle", "")
        text = reply.message or "ok"
        extra = {"fields": fields, "bundle": bundle}
        log.info("%s: %s: %s in %.1f ms", call.method, key, text, took_s * 1e3, extra=extra)

    def _reply(self, call: Call, reply: Reply) -> None:
        assert self.server is not None
        self.server.reply(call.key, reply)
        answered = self._node.unsent.pop(call.key, None)
        if answered:
            answered.replied(call.key)

    def _recorded(self, call: Call) -> Reply | None:
        """The reply that an earlier daemon committed and may not have sent."""
        if not call.recovered:
            return None
        known = self._node.unsent.get(call.key)
        if known is None:
            return None
        found = known.record.replies[call.key]
        return Reply(found.code, found.message, found.payload)

    def _method(self, service: str, method: str) -> Method:
        table = self._services.get(service)
        if table is None:
            raise Unimplemented(f"service {service}")
        found = table.get(method)
        if found is None:
            raise Unimplemented(f"method {method}")
        return found

    def _decode(self, method: Method, call: Call) -> Any:
        if (call.service == control.SERVICE) != (call.namespace == ""):
            raise Unimplemented(f"service {call.service} is not served on this socket")
        told = call.metadata.get(NAMESPACE_METADATA, ())
        if call.namespace and any(namespace != call.namespace for namespace in told):
            raise InvalidArgument(
                f"namespace {told[0]!r} in the metadata, but this is the socket of "
                f"{call.namespace!r}"
            )
        message = method.request()
        try:
            message.ParseFromString(call.payload)
        except Exception as error:  # protobuf's DecodeError has another home in each runtime
            raise Internal(f"ttrpc: error unmarshalling payload: {error}") from error
        return message

    def _span(self, call: Call) -> Any:
        return self._node.tracer.span(
            f"{call.service}/{call.method}",
            {
                spans.RPC_SYSTEM: "ttrpc",
                spans.RPC_SERVICE: call.service,
                spans.RPC_METHOD: call.method,
                spans.RPC_STATUS: 0,
                spans.NAMESPACE: call.namespace,
            },
            parent=spans.remote_parent(call.metadata) or "",
            kind="server",
        )

    @contextmanager
    def _described(self, span: Span, call: Call, request: Any) -> Iterator[None]:
        """Ids of the request and what is known of its task, before the call or after it, as
        attributes; never options, spec or environment."""
        if not self._node.tracer.enabled:
            yield
            return
        key = _key(call, request)
        span.set(spans.NAMESPACE, key.namespace)
        if key.id:
            span.set(spans.CONTAINER_ID, key.id)
        if exec_id := getattr(request, "exec_id", ""):
            span.set(spans.EXEC_ID, exec_id)
        if call.recovered:
            span.set("sdshim.recovered", True)
        before = self._node.tasks.get(key)
        try:
            yield
        finally:
            if task := self._node.tasks.get(key, before):
                span.set(spans.UNIT, task.identity.unit)
                if task.pid:
                    span.set(spans.PID, task.pid)
                if task.exit:
                    span.set(spans.EXIT_CODE, task.exit.status)


def _key(call: Call, request: Any) -> TaskKey:
    """The task a call is about; the control service names the namespace in its request."""
    namespace = call.namespace or getattr(request, "namespace", "")
    return TaskKey(namespace, getattr(request, "id", ""))


def _code(error: Exception) -> int:
    return int(error.code if isinstance(error, ShimError) else Code.UNKNOWN)
