"""Speaking to the service manager by sd_notify, and keeping descriptors in its fd store.

Owns the way to $NOTIFY_SOCKET (a path or an abstract name) and the descriptors of barriers.
Messages leave in the order given and at once; should the manager be too busy to take one, it and
all later ones wait (with copies of their descriptors) until it does, and the loop goes on.

A descriptor is safe only when the manager has read the message that carries it: `keep` sends at
once and returns an awaitable for that moment, a BARRIER=1 that follows. All `keep` calls of one
turn of the loop share one barrier. A manager that does not answer (it may be re-executing itself)
costs a warning, not the service.

Beyond FileDescriptorStoreMax= the manager closes what it is given and says so to nobody. So what is
in the store is counted here, and `demand` refuses new work before it is full.

Without $NOTIFY_SOCKET everything here does nothing, at once: tests, or a daemon by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from array import array
from collections import deque
from typing import TYPE_CHECKING

from sdshim.core import headroom
from sdshim.core.errors import ResourceExhausted
from sdshim.core.points import nowhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from sdshim.core.points import Crash

FIRST_FD = 3
MAX_FDS = 253  # the kernel's limit of one message
TIMEOUT = 5.0
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_LOG = logging.getLogger(__name__)


class FdStore:
    """The door to the service manager's notification socket."""

    def __init__(
        self,
        environ: MutableMapping[str, str] | None = None,
        *,
        timeout: float = TIMEOUT,
        crash: Crash = nowhere,
    ) -> None:
        self._crash = crash
        self._environ = os.environ if environ is None else environ
        self._timeout = timeout
        self._backlog: deque[tuple[bytes, list[int], int]] = deque()
        self._expecting: list[asyncio.Future[None]] = []  # waiting for the barrier to be sent next
        self._stored: dict[str, int] = {}  # name → descriptors
        self._most = 0  # FileDescriptorStoreMax=, 0 when it is not known
        self._tight = False
        self.ask_most: Callable[[], Awaitable[int]] | None = None
        """Set by the wiring: the manager's word on FileDescriptorStoreMax= as it is now."""
        self._barriers: dict[int, tuple[list[asyncio.Future[None]], asyncio.TimerHandle]] = {}
        # Taken out of the environment: a child of ours must not speak in our name.
        address = self._environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: socket.socket | None = None
        if self._address:
            self._sock = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )

    @property
    def active(self) -> bool:
        """Whether there is a manager to speak to."""
        return self._sock is not None

    @property
    def used(self) -> int:
        """How many descriptors are in the store."""
        return sum(self._stored.values())

    async def demand(self, more: int) -> None:
        """Raise ResourceExhausted when new work may not have so many more in the store."""
        if not self._most or not headroom.has_room(self.used, more, self._most):
            if self._sock is None or self.ask_most is None:
                return
            self._most = await self.ask_most()  # it may be another since a daemon-reload
            self._look()
        if self._most and not headroom.has_room(self.used, more, self._most):
            raise ResourceExhausted(
                f"systemd keeps {self.used} of {self._most} descriptors for the daemon, of which"
                f" {headroom.kept_back(self._most)} are not for new containers and execs",
                hint="fewer containers on this node, or a larger FileDescriptorStoreMax= of"
                " sdshim.service",
            )

    def _look(self) -> None:
        """Say once that the store is running out of room."""
        tight = bool(self._most) and headroom.is_tight(self.used, self._most, self._tight)
        if tight and not self._tight:
            _LOG.warning(
                "fd store: %d of %d descriptors (FileDescriptorStoreMax=) are in use;"
                " new containers and execs are refused from %d on",
                self.used,
                self._most,
                self._most - headroom.kept_back(self._most),
            )
        self._tight = tight

    def take(self, other: str = "") -> list[tuple[str, int]]:
        """The descriptors this process was started with, each with its name, once; `other` is the
        name of those that do not come from the store.

        They are close-on-exec from here on, and the variables that announced them are gone.
        """
        taken = [
            self._environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES", "PIDFDID")
        ]
        if taken[0] != str(os.getpid()) or not taken[1].isdigit():
            return []
        names = taken[2].split(":")
        result = []
        for index in range(int(taken[1])):
            os.set_inheritable(FIRST_FD + index, False)
            name = names[index] if index < len(names) else "unknown"
            result.append((name, FIRST_FD + index))
            if name != other:
                self._stored[name] = self._stored.get(name, 0) + 1
        return result

    def notify(self, state: str, *fds: int) -> None:
        """Send one message, e.g. ``READY=1``; several assignments are separated by newlines."""
        self._post(state, fds, 0)

    def notify_for(self, pid: int, state: str) -> None:
        """Send one message in the name of another process, e.g. the main process of another unit:
        the kernel lets CAP_SYS_ADMIN name any that exists. Nothing is sent when it does not."""
        self._post(state, (), pid)

    def _post(self, state: str, fds: tuple[int, ...], sender: int) -> None:
        if self._sock is None:
            return
        data = state.encode()
        if not self._backlog:
            with contextlib.suppress(BlockingIOError):
                self._send(data, fds, sender)
                return
            asyncio.get_running_loop().add_writer(self._sock.fileno(), self._drain)
        self._backlog.append((data, [os.dup(fd) for fd in fds], sender))

    def keep(self, name: str, *fds: int, poll: bool = True) -> asyncio.Future[None]:
        """Put copies into the store under `name`; await the result to know that they are there.

        With `poll` the manager drops a descriptor whose peer has hung up: right for connections,
        wrong for pipes, terminals and files.
        """
        if not name or ":" in name or len(name) > 255 or not name.isprintable():
            raise ValueError(f"not a name for the fd store: {name!r}")
        state = f"FDSTORE=1\nFDNAME={name}" + ("" if poll else "\nFDPOLL=0")
        if self._sock is not None:
            self._stored[name] = self._stored.get(name, 0) + len(fds)
            self._look()
        for start in range(0, len(fds), MAX_FDS):
            self.notify(state, *fds[start : start + MAX_FDS])
        self._crash("fd.added")
        return self.barrier()

    def remove(self, name: str) -> None:
        """Drop all copies of this name from the store."""
        self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self._crash("fd.removed")
        if self._stored.pop(name, 0):
            self._look()

    def barrier(self) -> asyncio.Future[None]:
        """The moment when the manager has dealt with all messages so far."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self._sock is None:
            future.set_result(None)
            return future
        if not self._expecting:
            loop.call_soon(self._send_barrier)
        self._expecting.append(future)
        return future

    def close(self) -> None:
        """Leave the loop and give up all that waits; what the store holds stays there."""
        for read in list(self._barriers):
            self._end_barrier(read)
        for _, fds, _ in self._backlog:
            for fd in fds:
                os.close(fd)
        if self._sock is not None:
            if self._backlog:
                asyncio.get_running_loop().remove_writer(self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._backlog.clear()
        self._resolve(self._expecting)
        self._expecting = []

    def _send(self, data: bytes, fds: tuple[int, ...] | list[int], sender: int) -> None:
        """One message; only BlockingIOError is for the caller, the rest is said and forgotten."""
        assert self._sock is not None
        extra: list[tuple[int, int, bytes | array[int]]] = []
        if fds:
            extra.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds)))
        if sender:
            who = _UCRED.pack(sender, os.getuid(), os.getgid())
            extra.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who))
        try:
            self._sock.sendmsg([data], extra, socket.MSG_NOSIGNAL, self._address)
        except BlockingIOError:
            raise
        except ProcessLookupError:
            _LOG.debug("fd store: %d has ended, nothing is said for it", sender)
        except OSError as error:
            _LOG.warning("fd store: %s not sent: %s", data.partition(b"\n")[0].decode(), error)

    def _drain(self) -> None:
        """The manager takes messages again."""
        assert self._sock is not None
        while self._backlog:
            data, fds, sender = self._backlog[0]
            try:
                self._send(data, fds, sender)
            except BlockingIOError:
                return
            self._backlog.popleft()
            for fd in fds:
                os.close(fd)
        asyncio.get_running_loop().remove_writer(self._sock.fileno())

    def _send_barrier(self) -> None:
        """Send a pipe's write end; the manager closes it when it comes to it."""
        futures, self._expecting = self._expecting, []
        if self._sock is None:
            self._resolve(futures)
            return
        try:
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            _LOG.warning("fd store: no barrier: %s", error)
            self._resolve(futures)
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._timeout, self._barrier_late, read)
        self._barriers[read] = (futures, timer)
        loop.add_reader(read, self._end_barrier, read)
        self.notify("BARRIER=1", write)
        os.close(write)

    def _barrier_late(self, read: int) -> None:
        _LOG.warning("fd store: the manager has not answered for %g s; going on", self._timeout)
        self._end_barrier(read)

    def _end_barrier(self, read: int) -> None:
        futures, timer = self._barriers.pop(read)
        timer.cancel()
        asyncio.get_running_loop().remove_reader(read)
        os.close(read)
        self._crash("fd.safe")
        self._resolve(futures)

    @staticmethod
    def _resolve(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)
