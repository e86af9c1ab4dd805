"""gRPC clients made at run time from tables of public field numbers.

A message is one line, `"1 name str, 2 parts *Part"`: number, name and type of each field, `*` for
repeated, types with a capital are messages. A map is on the wire what a repeated message of key and
value is. Only the fields we use are in the tables; names of types do not travel in gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Messages = dict[str, Any]
"""Name → message class."""
Methods = dict[str, dict[str, tuple[str, str]]]
"""Service → method → names of the request's and the answer's message."""

_KIND = descriptor_pb2.FieldDescriptorProto
_PLAIN = {
    "str": _KIND.TYPE_STRING,
    "bytes": _KIND.TYPE_BYTES,
    "bool": _KIND.TYPE_BOOL,
    "i32": _KIND.TYPE_INT32,
    "i64": _KIND.TYPE_INT64,
    "u32": _KIND.TYPE_UINT32,
    "u64": _KIND.TYPE_UINT64,
}
_FOREIGN = {"Any": ".google.protobuf.Any", "Timestamp": ".google.protobuf.Timestamp"}


def messages(package: str, tables: Mapping[str, str]) -> Messages:
    """A message class for each entry of the tables, in a package of its own."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    file.dependency.extend([any_pb2.DESCRIPTOR.name, timestamp_pb2.DESCRIPTOR.name])
    for name, table in tables.items():
        message = file.message_type.add(name=name)
        for field in filter(None, table.split(", ")):
            number, label, kind = field.split()
            made = message.field.add(name=label, number=int(number))
            made.label = _KIND.LABEL_REPEATED if kind[0] == "*" else _KIND.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            made.type = _PLAIN.get(kind, _KIND.TYPE_MESSAGE)
            if kind not in _PLAIN:
                made.type_name = _FOREIGN.get(kind, f".{package}.{kind}")
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in tables
    }


class GrpcClient:
    """A connection to a local gRPC server. Safe to use from many threads."""

    def __init__(
        self,
        socket: str,
        types: Messages,
        methods: Methods,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._types = types
        self._methods = methods
        self._metadata = metadata
        self._channel = grpc.insecure_channel(
            f"unix://{socket}",
            # a local socket: nothing may be sent to a proxy, and the authority is not the path
            options=[("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost")],
        )
        self._stubs = {
            (service, method): self._channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=types[asked].SerializeToString,
                response_deserializer=types[answered].FromString,
            )
            for service, table in methods.items()
            for method, (asked, answered) in table.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, service: str, method: str, *, timeout: float = 60, **fields: Any) -> Any:
        """One call to its end. Raises grpc.RpcError."""
        return self.begin(service, method, timeout=timeout, **fields).result()

    def begin(self, service: str, method: str, *, timeout: float = 60, **fields: Any) -> Any:
        """One call under way: a grpc future."""
        return self.send(service, method, fields, timeout)

    def send(self, service: str, method: str, fields: Mapping[str, Any], seconds: float) -> Any:
        """The same for messages that have a field `timeout`."""
        request = self._types[self._methods[service][method][0]](**fields)
        stub = self._stubs[service, method]
        return stub.future(request, timeout=seconds, metadata=self._metadata)

    def stream(self, service: str, method: str, **fields: Any) -> Any:
        """A call that is answered by many messages: an iterator, to be ended by `cancel()`."""
        asked, answered = self._methods[service][method]
        call = self._channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=self._types[asked].SerializeToString,
            response_deserializer=self._types[answered].FromString,
        )
        return call(self._types[asked](**fields), metadata=self._metadata)
