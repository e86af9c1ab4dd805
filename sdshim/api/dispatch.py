"""The one way of a request: namespace, span, message, operation, error → status, reply."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from sdshim.api import control, task
from sdshim.core import spans
from sdshim.core.errors import Internal, InvalidArgument, ShimError, Unimplemented
from sdshim.ttrpc.server import CallKind, Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sdshim.api.task import Method
    from sdshim.core.spans import Span
    from sdshim.daemon.node import Node
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
                _describe(span, call, request)
                return method.now(self._node, call, request)
            except ShimError as error:
                span.fail(error)
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
        with self._span(call) as span:
            try:
                request = self._decode(method, call)
                _describe(span, call, request)
                reply = Reply(0, "", await method.later(self._node, call, request))
            except ShimError as error:
                span.fail(error)
                span.set(spans.RPC_STATUS, int(error.code))
                reply = Reply(int(error.code), str(error), b"")
            except Exception as error:
                span.fail(error)
                log.exception("%s failed", call.method)
                reply = Reply(2, f"internal error: {error!r}", b"")
        log.info(
            "%s %s: %s in %.1f ms",
            call.namespace,
            call.method,
            reply.message or "ok",
            (time.monotonic() - begun) * 1e3,
        )
        self._reply(call, reply)

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
                spans.NAMESPACE: call.namespace,
            },
            parent=spans.remote_parent(call.metadata) or "",
            kind="server",
        )


def _describe(span: Span, call: Call, request: Any) -> None:
    """Ids of the request as attributes; never options, spec or environment."""
    span.set(spans.CONTAINER_ID, getattr(request, "id", ""))
    exec_id = getattr(request, "exec_id", "")
    if exec_id:
        span.set(spans.EXEC_ID, exec_id)
    if call.recovered:
        span.set("sdshim.recovered", True)
