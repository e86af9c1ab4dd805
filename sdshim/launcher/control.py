"""One blocking ttrpc call to the daemon's service sdshim.v1.Control on the main socket."""

from __future__ import annotations

import _socket  # the socket module itself loads enum and selectors: 5 ms
import os
import struct
import time

from sdshim.launcher.wire import Message, encode

SERVICE = "sdshim.v1.Control"
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_MAX = 4 << 20


class CallFailed(Exception):
    """No usable answer: nobody there, nobody answering, or an error as answer."""


class Unreachable(CallFailed):
    """There is no socket, or nobody listens on it."""


class Interrupted(CallFailed):
    """The daemon went away during the call; the next one may answer."""


def call(run_dir: str, method: str, request: bytes, deadline: float) -> bytes:
    """The response's payload; `deadline` is in monotonic seconds. Raises CallFailed."""
    path = f"{run_dir}/sdshim.sock"
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        _connect(sock, path, deadline)
        nanos = int(_left(deadline) * 1e9)
        message = encode((1, SERVICE), (2, method), (3, request), (4, nanos))
        sock.sendall(_HEADER.pack(len(message), 1, _REQUEST, 0) + message)
        while True:
            size, stream, kind, _ = _HEADER.unpack(_read(sock, _HEADER.size, deadline))
            if size > _MAX:
                raise CallFailed(f"{path}: an answer of {size} bytes is not ttrpc")
            data = _read(sock, size, deadline)
            if (stream, kind) == (1, _RESPONSE):
                return _payload(data)
    except TimeoutError:
        raise CallFailed(f"{path}: no answer in time") from None
    except ValueError as error:
        raise CallFailed(f"{path}: unreadable answer: {error}") from None
    except (ConnectionError, EOFError) as error:
        raise Interrupted(f"{path}: {error}") from None
    except OSError as error:
        raise CallFailed(f"{path}: {os.strerror(error.errno or 0)}") from None
    finally:
        sock.close()


def _connect(sock: _socket.socket, path: str, deadline: float) -> None:
    # A full backlog makes a non-blocking connect fail at once: block, with the kernel's own timer.
    left = _left(deadline)
    timeval = struct.pack("@ll", int(left), int(left % 1 * 1e6) or 1)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)
    try:
        sock.connect(path)
    except BlockingIOError:
        raise TimeoutError from None
    except OSError as error:
        raise Unreachable(f"connect {path}: {error.strerror or error}") from None
    sock.settimeout(_left(deadline))


def _read(sock: _socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        sock.settimeout(_left(deadline))
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the daemon closed the connection")
        data += part
    return data


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _payload(data: bytes) -> bytes:
    response = Message(data)
    status = Message(response.data(1))
    if status.number(1):
        raise CallFailed(status.text(2) or f"status {status.number(1)}")
    return response.data(2)
