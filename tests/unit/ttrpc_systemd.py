"""A service manager in one small program: it starts a ttrpc server again whenever that dies.

Run as `python -m tests.unit.ttrpc_systemd DIRECTORY PLAN`. It listens on DIRECTORY/s/default, has
a notification socket and a fd store with systemd's rules (a hung-up connection leaves the store,
notifications of a process are read before its death is dealt with), and forks one *life* after
another, each a full server over CallLog and FdStore. It is forked, not started, so that a life
begins within milliseconds; it is a program of its own so that there is one thread only.

PLAN is JSON: `[[point, n], …]`, one for each life: the life kills itself with SIGKILL when it
comes to that point for the n-th time. `log.torn` dies within a write to the log. Lives beyond the
plan do not kill themselves. On stdin: `kill` sends a SIGKILL, EOF ends all. On stdout a line
`life` for each life that begins.

The handlers: `State` is answered inline; `Wait` after a moment; `Do` writes one line into
DIRECTORY/effects, as a unit would be made, and never a second one for the same token.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import hashlib
import json
import os
import random
import select
import signal
import socket
import sys
from pathlib import Path

from sdshim.core.errors import Unimplemented
from sdshim.host.calllog import CallLog
from sdshim.systemd.fdstore import FIRST_FD, FdStore
from sdshim.ttrpc.server import Call, CallKind, Reply, Server


def answer(payload: bytes) -> bytes:
    """What a right reply holds."""
    return hashlib.sha256(payload).digest() + payload[:100]


class Life:
    """One process of the server."""

    def __init__(self, directory: Path, point: str, count: int) -> None:
        self.directory = directory
        self.point = point
        self.count = count
        self.server: Server

    def crash(self, point: str) -> None:
        if point == self.point:
            self.count -= 1
            if not self.count:
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, fd: int, data: bytes) -> int:
        if self.point == "log.torn":
            self.count -= 1
            if not self.count:
                os.write(fd, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return os.write(fd, data)

    def kind(self, service: str, method: str) -> CallKind:
        if method not in ("State", "Wait", "Do"):
            raise Unimplemented(f"method {method}")
        return CallKind.INLINE if method == "State" else CallKind.JOURNALLED

    def inline(self, call: Call) -> bytes:
        return answer(call.payload)

    def dispatch(self, call: Call) -> None:
        delay = random.choice((0, 0, 0.001, 0.005))
        asyncio.get_running_loop().call_later(delay, self.work, call)

    def work(self, call: Call) -> None:
        effects = self.directory / "effects"
        line = f"{call.token.hex()} {hashlib.sha256(call.payload).hexdigest()}\n"
        made = call.recovered and effects.exists() and line in effects.read_text()
        if call.method == "Do" and not made:
            with effects.open("a") as file:
                file.write(line)
        self.server.reply(call.key, Reply(0, "", answer(call.payload)))

    async def live(self, environ: dict[str, str]) -> None:
        store = FdStore(environ)
        log = CallLog(self.directory / "calls", limit=1 << 16, write=self.write)
        self.server = Server(self, log, store, crash=self.crash)
        for name, fd in store.take():
            assert self.server.adopt(name, fd)
        self.server.resume()
        await asyncio.Event().wait()


class Manager:
    """The process that lives through all lives."""

    def __init__(self, directory: Path, plan: list[tuple[str, int]]) -> None:
        self.directory = directory
        self.plan = plan
        self.store: list[tuple[str, int, bool]] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "s" / "default"))
        listener.listen(128)
        self.store.append(("listen.default", listener.detach(), True))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.notify.bind(str(directory / "notify"))
        self.lives = 0

    def run(self) -> None:
        while True:
            child = self.fork()
            print("life", flush=True)
            if not self.watch(child):
                return

    def watch(self, child: int) -> bool:
        """Serve the store until the child is dead; False when all shall end."""
        pidfd = os.pidfd_open(child)
        go_on = True
        while True:
            waiting = [self.notify.fileno(), pidfd, *([0] if go_on else [])]
            ready, _, _ = select.select(waiting, [], [])
            if 0 in ready:
                go_on = os.read(0, 4096) != b""
                os.kill(child, signal.SIGKILL)
            self.take_notifications()
            if pidfd in ready:
                break
        os.close(pidfd)
        os.waitpid(child, 0)
        poll = select.poll()
        for _, fd, polled in self.store:
            if polled:
                poll.register(fd, 0)
        gone = {fd for fd, events in poll.poll(0) if events & (select.POLLHUP | select.POLLERR)}
        self.drop({entry for entry in self.store if entry[1] in gone})
        return go_on

    def take_notifications(self) -> None:
        while True:
            try:
                data, control, _, _ = self.notify.recvmsg(4096, 4096)
            except BlockingIOError:
                return
            fds = array.array("i")
            for _, _, part in control:
                fds.frombytes(part)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in fields:
                polled = fields.get("FDPOLL") != "0"
                self.store += [(fields["FDNAME"], fd, polled) for fd in fds]
                continue
            if "FDSTOREREMOVE" in fields:
                self.drop({entry for entry in self.store if entry[0] == fields["FDNAME"]})
            for fd in fds:
                os.close(fd)

    def drop(self, entries: set[tuple[str, int, bool]]) -> None:
        for entry in entries:
            self.store.remove(entry)
            os.close(entry[1])

    def fork(self) -> int:
        point, count = self.plan[self.lives] if self.lives < len(self.plan) else ("", 0)
        self.lives += 1
        pid = os.fork()
        if pid:
            return pid
        random.seed(self.lives)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for _, fd, _ in self.store]
        for index, fd in enumerate(high):
            os.dup2(fd, FIRST_FD + index)
        os.closerange(FIRST_FD + len(high), 4096)
        environ = {
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(high)),
            "LISTEN_FDNAMES": ":".join(name for name, _, _ in self.store),
        }
        asyncio.run(Life(self.directory, point, count).live(environ))
        os._exit(1)


if __name__ == "__main__":
    Manager(Path(sys.argv[1]), json.loads(sys.argv[2])).run()
