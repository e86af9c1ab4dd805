"""Daemons for a drill that are born with everything imported.

Most of what a death costs is the next daemon's imports. So a zygote has made them once, and the
program that systemd starts (starter.py) gives it all that it was given itself: descriptors,
environment, limits, cgroup. The zygote's grandchild is an orphan, so a child of systemd, and is the
service's main process then. Everything from `serve` on is what it always is. cgroup v2 only.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import time
from pathlib import Path

from starter import MOST, SOCKET, STREAMS  # type: ignore[import-not-found]

_FAR = 1000
"""Above every descriptor that is handed over."""


def main() -> None:
    """Import everything, and have a daemon for whoever connects."""
    import killer  # type: ignore[import-not-found]

    import sdshim.cli.serve
    import sdshim.cli.settings  # noqa: F401

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(SOCKET)
        listener.listen()
        while True:
            starter, _ = listener.accept()
            pid = os.fork()
            if pid:
                starter.close()
                os.waitpid(pid, 0)
            elif os.fork():
                os._exit(0)
            else:
                become(starter)
                killer.main()


def become(starter: socket.socket) -> None:
    """The process that the starter would have been."""
    text, fds, _, _ = socket.recv_fds(starter, 1 << 20, MOST)
    environment = dict(_pair(word) for word in text.decode().split("\0"))
    while len(fds) < STREAMS + int(environment.get("LISTEN_FDS", "0")):
        fds += socket.recv_fds(starter, 16, MOST)[1]
    credentials = starter.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    peer = struct.unpack("3i", credentials)[0]
    place = Path(f"/proc/{peer}/cgroup").read_text().strip().partition("::")[2]
    os.setsid()
    Path(f"/sys/fs/cgroup{place}/cgroup.procs").write_text("0")
    limits = resource.prlimit(peer, resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    os.environ.clear()
    os.environ.update(environment)
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if name in os.environ:
            os.environ[name] = str(os.getpid())
    while os.getppid() != 1:  # systemd supervises its own children
        time.sleep(0.001)
    starter.send(str(os.getpid()).encode())
    starter.recv(16)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FAR) for fd in fds]
    os.closerange(STREAMS, _FAR)
    for number, fd in enumerate(high):
        os.dup2(fd, number)
        os.close(fd)


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value
