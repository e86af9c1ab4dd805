"""sdshim.v1.Control, on the main socket only: what the launcher asks (design 2)."""

from __future__ import annotations

import socket
from types import MappingProxyType
from typing import TYPE_CHECKING

from sdshim.api.task import Method
from sdshim.core.names import TaskKey, check_id
from sdshim.daemon.delete import cleanup
from sdshim.pb import control_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from sdshim.daemon.node import Node
    from sdshim.ttrpc.server import Call

SERVICE = "sdshim.v1.Control"


def methods(listen: Callable[[str], Awaitable[str]]) -> Mapping[str, Method]:
    """The service's methods; `listen` makes the socket of a namespace and returns its address."""

    async def _listen(node: Node, call: Call, request: pb.ListenRequest) -> bytes:
        address = await listen(check_id(request.namespace, "namespace"))
        return pb.ListenResponse(address=address).SerializeToString()

    async def _cleanup(node: Node, call: Call, request: pb.CleanupRequest) -> bytes:
        key = TaskKey(
            check_id(request.namespace, "namespace"), check_id(request.id, "container id")
        )
        return await cleanup(node, call, key, request.token)

    return MappingProxyType(
        {
            "Listen": Method(pb.ListenRequest, later=_listen),
            "Cleanup": Method(pb.CleanupRequest, later=_cleanup),
        }
    )


def bind(path: Path) -> socket.socket:
    """A listening socket at `path`, root only; what lay there before is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(4096)
    sock.setblocking(False)
    return sock
