"""Listening sockets: accepting from all of them, or from none while descriptors are short.

A full descriptor table makes accept() fail and leaves the connection waiting, so a level-triggered
loop would spin: accepting pauses until a connection of ours has closed or some time has passed. It
pauses a little earlier, so that there are descriptors for the work of those who are connected.
Whoever waits is not refused: containerd gives a task up whose connection fails.
Only a peer with our own effective uid and gid gets further than accept().
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import struct
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY = 1.0  # seconds before descriptors are asked for again
_BATCH = 64
_SILENCE = 60.0
"""Seconds between two lines in the log about it."""
_LEFT = 16
"""Descriptors that connections leave to others."""
_CREDENTIALS = struct.Struct("iII")
_LOG = logging.getLogger(__name__)


class Acceptor:
    """Owns the listeners; each connection goes to `accepted` before the next is taken."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, accepted: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._accepted = accepted
        self._listeners: dict[str, socket.socket] = {}
        self._wanted = False
        self._paused = False
        self._short = False  # of descriptors
        self._said = -_SILENCE
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _LEFT

    @property
    def namespaces(self) -> list[str]:
        """The namespaces listened for."""
        return list(self._listeners)

    def add(self, namespace: str, sock: socket.socket) -> None:
        """Take a listening socket over (in place of an earlier one of the same namespace)."""
        sock.setblocking(False)
        self.remove(namespace)
        self._listeners[namespace] = sock
        if self._wanted and not self._paused:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def remove(self, namespace: str) -> None:
        """Close the listener of a namespace, if there is one."""
        sock = self._listeners.pop(namespace, None)
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def start(self) -> None:
        """Accept from now on."""
        self._wanted = True
        self.again()

    def again(self) -> None:
        """Descriptors may be there again."""
        self._paused = False
        if self._wanted:
            for sock in self._listeners.values():
                self._loop.add_reader(sock.fileno(), self._accept, sock)

    def stop(self) -> None:
        """Accept no more; who connects waits for the next process."""
        self._wanted = False
        self._pause()

    def close(self) -> None:
        """Give up the listeners; copies elsewhere go on listening."""
        self.stop()
        for sock in self._listeners.values():
            sock.close()
        self._listeners.clear()

    def connection_closed(self) -> None:
        """One of our own descriptors is free."""
        if self._short:
            self._short = False
            self.again()

    def _look_again(self) -> None:
        """Whether others have given descriptors back."""
        if not self._short:
            return
        try:
            fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            os.close(fd)
        except OSError:
            fd = self._most
        if fd < self._most:
            self.connection_closed()
        else:
            self._loop.call_later(RETRY, self._look_again)

    def _wait(self, why: object) -> None:
        if self._loop.time() >= self._said + _SILENCE:
            self._said = self._loop.time()
            _LOG.error("ttrpc: accepts no more connections until descriptors are free: %s", why)
        self._short = True
        self._pause()
        self._loop.call_later(RETRY, self._look_again)

    def _pause(self) -> None:
        self._paused = True
        for sock in self._listeners.values():
            self._loop.remove_reader(sock.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS:
                    raise
                self._wait(error)
                return
            pid, uid, gid = credentials(sock)
            if (uid, gid) != (os.geteuid(), os.getegid()):
                _LOG.warning("ttrpc: refused pid %d, uid %d, gid %d", pid, uid, gid)
                sock.close()
                continue
            number = sock.fileno()
            sock.setblocking(False)
            self._accepted(sock)
            if number >= self._most:
                self._wait(f"{number} are in use (LimitNOFILE=)")
                return


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the process that connected."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    return pid, uid, gid


def namespace_of(sock: socket.socket) -> str:
    """The containerd namespace a socket serves: `…/s/<namespace>`, else none (the main socket).

    An accepted connection has its listener's name, also after the listener is gone.
    """
    name = sock.getsockname()
    path = PurePath(name if isinstance(name, str) else name.decode(errors="replace"))
    return path.name if path.parent.name == "s" else ""
