#!/usr/bin/python3 -IS
"""What systemd starts in a drill with a zygote (zygote.py): it hands everything over to it, says
who the main process is now, and ends. It imports next to nothing: its time is most of a start."""

import _socket
import os

SOCKET = "/run/sdshim-drill/zygote.sock"
STREAMS = 3
MOST = 250
"""Descriptors in one message: the kernel takes 253."""


def _rights(*fds: int) -> list[tuple[int, int, bytes]]:
    packed = b"".join(fd.to_bytes(4, "little") for fd in fds)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]


def _notify(text: bytes, *fds: int) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    to = "\0" + address[1:] if address.startswith("@") else address
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    made.sendmsg([text], _rights(*fds) if fds else [], 0, to)
    made.close()


def main() -> None:
    """Everything that systemd gave us goes to the zygote's grandchild."""
    count = STREAMS + int(os.environ.get("LISTEN_FDS", "0"))
    zygote = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    zygote.connect(SOCKET)
    text = "\0".join(f"{name}={value}" for name, value in os.environ.items())
    fds = range(count)
    zygote.sendmsg([text.encode()], _rights(*fds[:MOST]))
    for first in range(MOST, count, MOST):
        zygote.sendmsg([b"more"], _rights(*fds[first : first + MOST]))
    _notify(b"MAINPID=" + zygote.recv(16))
    ours, systemd = os.pipe()
    _notify(b"BARRIER=1", systemd)
    os.close(systemd)
    os.read(ours, 1)  # its end: systemd has read both
    zygote.send(b"go")
    zygote.close()


if __name__ == "__main__":
    main()
