"""The pump: carries the output of containers from their FIFOs to the journal (and to the client).

    pump.py SOCKET

One per daemon, a unit of its own (unitspec.pump_properties). SOCKET is the daemon's; over it come
the FIFOs, and the pump ends when it closes. It looks at a FIFO with tee(2), sends to journald, then
consumes: what was not sent is still in the FIFO, so a SIGKILL may repeat a line and loses none.

From the daemon, each a datagram:
    add SERIAL PRIORITY PREFIXED INTERVAL_US BURST UNIT SOCKET, a newline, journal fields;
        with the FIFO and, when the client has its part, the client's FIFO
    finish SERIAL   what is in the FIFO now is all
To the daemon:
    end SERIAL      everything is out, the descriptors are closed
    idle COUNT      nothing has come for a while; COUNT messages from the daemon were seen

journald that takes no more holds all streams up, as it does with every service. A client that does
not read holds nobody up: what its FIFO has no room for is dropped for it, by whole lines where
possible, counted, and said in the journal.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import sys
import termios
import time
from collections import deque

LOOK = 32 << 10
"""Bytes of one stream in one turn; others come next. More than a part of a long line."""
RETRY_S = 0.5
"""Between the tries to reach a journald that is not there."""
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032
_NONBLOCK = 2  # SPLICE_F_NONBLOCK
_SO_SNDBUFFORCE = 32
_SUPPRESSED = "a596d6fe7bfa4994828e72309e95d61e"
"""journald's own message id for a rate limit."""

room = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if room not in sys.path:
    sys.path.insert(0, room)

from sdshim.launcher.lines import Cutter, RateLimit  # noqa: E402 (the interpreter runs with -I)


class Journal:
    """The native socket of one journal namespace."""

    def __init__(self, path: str, epoll: select.epoll) -> None:
        self._path, self._epoll = path, epoll
        self._socket: socket.socket | None = None
        self.waiting: list[Stream] = []
        """Streams that have an entry for which there was no room."""

    def send(self, entry: bytes) -> bool:
        """Send one entry; False when journald takes none now."""
        try:
            if self._socket is None:
                self._connect()
            assert self._socket is not None
            self._socket.send(entry)
        except BlockingIOError:
            return False
        except OSError:  # it is being restarted, or not there
            self.close()
            return False
        return True

    def _connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 8 << 20)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        self._socket = made

    def wait(self, stream: Stream) -> bool:
        """Remember who waits; False when time has to tell (journald is not there)."""
        self.waiting.append(stream)
        if self._socket is None:
            return False
        # Oneshot: it is told once, and only while somebody waits.
        mask = select.EPOLLOUT | select.EPOLLONESHOT
        try:
            self._epoll.register(self._socket.fileno(), mask)
        except FileExistsError:
            self._epoll.modify(self._socket.fileno(), mask)
        return True

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket else -1

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


class Client:
    """The client's end of one stream: written as far as there is room, never waited for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._cut = False  # the rest of a line that was begun is dropped: end it first
        self._given = 0  # of what is still in the container's FIFO
        self._inside = False  # what was written last is no whole line
        self._skipping = False  # inside a line that is dropped
        self.lines = self.bytes = 0
        """Dropped."""

    def give(self, data: bytes) -> None:
        """Write what is new in what the container's FIFO holds."""
        place, self._given = self._given, len(data)
        while place < len(data):
            end = data.rfind(b"\n", place, place + select.PIPE_BUF) + 1
            if self._skipping:
                end = data.find(b"\n", place) + 1
            end = end or min(len(data), place + select.PIPE_BUF)
            piece = data[place:end]
            place = end
            if self._skipping or not self._write(piece):
                self.bytes += len(piece)
                self.lines += piece.count(b"\n")
                self._skipping = piece[-1:] != b"\n"

    def _write(self, piece: bytes) -> bool:
        """All or nothing: up to PIPE_BUF bytes are written as one."""
        try:
            if self._cut:
                os.write(self._fd, b"\n")
                self._inside = self._cut = False
            os.write(self._fd, piece)
        except OSError:
            self._cut = self._inside
            return False
        self._inside = piece[-1:] != b"\n"
        return True

    def consumed(self, count: int) -> None:
        self._given -= count

    def close(self) -> None:
        os.close(self._fd)


class Stream:
    """One stream of a process."""

    def __init__(self, words: list[str], fields: bytes, fds: list[int], limit: RateLimit) -> None:
        self.serial = int(words[0])
        self.unit = words[5]
        self.fields = fields
        self.cutter = Cutter(int(words[1]), prefixed=words[2] == "1")
        self.limit = limit
        self.fd = fds[0]
        self.client = Client(fds[1]) if len(fds) > 1 else None
        self.told = False
        """Whether the journal was told that lines are dropped."""
        self.owed = -1
        """Bytes until the end, once `finish` has come."""
        self.queued = False

    def unread(self) -> int:
        """Bytes in its FIFO."""
        count = fcntl.ioctl(self.fd, termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(count, sys.byteorder)

    def hung_up(self) -> bool:
        """Whether nobody can write to it any more."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def close(self) -> None:
        os.close(self.fd)
        if self.client:
            self.client.close()


class Pump:
    """The loop over all streams, a turn for each."""

    def __init__(self, control: socket.socket, idle_s: float) -> None:
        self._control, self._idle_s = control, idle_s
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._tee = ctypes.CDLL(None, use_errno=True).tee
        self._seen, self._room = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._size = fcntl.fcntl(self._room, _F_GETPIPE_SZ)
        self._full = select.poll()
        self._full.register(self._room, select.POLLOUT)
        self._streams: dict[int, Stream] = {}  # by descriptor
        self._journals: dict[str, Journal] = {}
        self._of: dict[int, Journal] = {}  # by a stream's descriptor
        self._limits: dict[str, tuple[RateLimit, int]] = {}  # by unit, and how many share it
        self._queue: deque[Stream] = deque()
        self._messages = 0
        self._closed = False
        self._retry = False
        self._last = time.monotonic()
        self._idle_told = False

    def run(self) -> None:
        """Until the daemon's end of the socket is closed; then one more turn for each stream."""
        while not self._closed:
            self._wait()
            if self._queue:
                stream = self._queue.popleft()
                stream.queued = False
                self._turn(stream)
        for stream in list(self._streams.values()):
            self._turn(stream)

    def _wait(self) -> None:
        timeout = 0.0 if self._queue else RETRY_S if self._retry else self._idle_s
        events = self._epoll.poll(timeout)
        if self._retry and not self._queue and not events:
            self._retry = False
            for journal in self._journals.values():
                self._go_on(journal)
        for fd, _ in events:
            if fd == self._control.fileno():
                self._hear()
            elif fd in self._streams:
                self._enqueue(self._streams[fd])
            else:
                for journal in self._journals.values():
                    if journal.fileno() == fd:
                        self._go_on(journal)
        if not events and not self._queue:
            self._maybe_idle()

    def _go_on(self, journal: Journal) -> None:
        waiting, journal.waiting = journal.waiting, []
        for stream in waiting:
            if self._streams.get(stream.fd) is stream:
                self._enqueue(stream)

    def _enqueue(self, stream: Stream, *, first: bool = False) -> None:
        if not stream.queued or first:
            if stream.queued:
                self._queue.remove(stream)
            stream.queued = True
            (self._queue.appendleft if first else self._queue.append)(stream)

    def _maybe_idle(self) -> None:
        quiet = time.monotonic() - self._last >= self._idle_s
        if quiet and not self._idle_told and not any(s.unread() for s in self._streams.values()):
            self._idle_told = True
            self._say(f"idle {self._messages}")

    # --- the daemon

    def _say(self, text: str) -> None:
        try:
            self._control.send(text.encode())
        except OSError:
            self._closed = True

    def _hear(self) -> None:
        try:
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            data, fds, _, _ = socket.recv_fds(self._control, 256 << 10, 2, flags)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._closed = True
            return
        self._messages += 1
        self._last, self._idle_told = time.monotonic(), False
        head, _, fields = data.partition(b"\n")
        word, *words = head.decode().split(" ")
        if word == "add":
            self._add(words, fields, fds)
        else:
            for stream in self._streams.values():
                if stream.serial == int(words[0]):
                    stream.owed = stream.unread()
                    self._enqueue(stream, first=True)

    def _add(self, words: list[str], fields: bytes, fds: list[int]) -> None:
        unit, path = words[5], words[6]
        limit, sharing = self._limits.get(unit, (RateLimit(int(words[3]) / 1e6, int(words[4])), 0))
        self._forget_limits()
        self._limits[unit] = limit, sharing + 1
        if path not in self._journals:
            self._journals[path] = Journal(path, self._epoll)
        stream = Stream(words, fields, fds, limit)
        self._streams[stream.fd] = stream
        self._of[stream.fd] = self._journals[path]
        self._epoll.register(stream.fd, select.EPOLLIN | select.EPOLLET)
        self._enqueue(stream)

    def _forget_limits(self) -> None:
        """Those of units without streams, once they limit nothing: another stream may come."""
        now = time.monotonic()
        for unit, (limit, sharing) in list(self._limits.items()):
            if not sharing and limit.is_over(now):
                del self._limits[unit]

    # --- a stream

    def _look(self, stream: Stream) -> tuple[bytes, bool]:
        """What its FIFO holds, up to LOOK bytes; whether the FIFO is full."""
        size = fcntl.fcntl(stream.fd, _F_GETPIPE_SZ)
        if size != self._size:
            try:
                self._size = fcntl.fcntl(self._room, _F_SETPIPE_SZ, size)
            except OSError:  # as many buffers as there are: it is full a little early then
                self._size = fcntl.fcntl(self._room, _F_GETPIPE_SZ)
        count = self._tee(stream.fd, self._room, LOOK, _NONBLOCK)
        if count <= 0:
            return b"", False
        # As many buffers in either pipe: when this one has no room, the FIFO has none.
        full = not self._full.poll(0)
        return os.read(self._seen, count), full

    def _turn(self, stream: Stream) -> None:
        # first: what is written between the look and the last writer's end must not be missed
        hung_up = stream.hung_up()
        data, full = self._look(stream)
        if data:
            self._last, self._idle_told = time.monotonic(), False
            if stream.client:
                stream.client.give(data)
        place = 0
        while place < len(data):
            entry, end = stream.cutter.next(data, place, whole=full and not place)
            if end == place:
                break
            if not self._emit(stream, entry):
                self._consume(stream, place)
                self._stall(stream)
                return
            stream.cutter.done(last=data[end - 1] == 10)
            place = end
        self._consume(stream, place)
        self._tell_dropped(stream)
        if stream.owed >= 0:
            stream.owed = max(0, stream.owed - place)
        if place and stream.owed != 0:
            self._enqueue(stream, first=stream.owed > 0)
        elif stream.owed >= 0 or hung_up:
            self._end(stream, data[place:])

    def _stall(self, stream: Stream) -> None:
        if not self._of[stream.fd].wait(stream):
            self._retry = True

    def _consume(self, stream: Stream, count: int) -> None:
        while count:
            taken = len(os.read(stream.fd, count))
            count -= taken
            if stream.client:
                stream.client.consumed(taken)

    def _emit(self, stream: Stream, entry: bytes) -> bool:
        """Send one entry, or leave it out as the rate limit wants; False when it must wait."""
        now, limit = time.monotonic(), stream.limit
        if not self._tell_suppressed(stream, now):
            return False
        if not limit.allows(now):
            limit.count(sent=False)
            return True
        if not self._of[stream.fd].send(stream.fields + entry):
            return False
        limit.count(sent=True)
        return True

    def _tell_suppressed(self, stream: Stream, now: float, *, over: bool = False) -> bool:
        limit = stream.limit
        if not (count := limit.report(now, over=over)):
            return True
        more = f"MESSAGE_ID={_SUPPRESSED}\nN_DROPPED={count}\n"
        if self._notice(stream, f"Suppressed {count} messages from {stream.unit}", more):
            return True
        limit.suppressed += count
        return False

    def _tell_dropped(self, stream: Stream, *, over: bool = False) -> bool:
        """The first time, and in the end, say what the client was not given; False when journald
        has no room for that."""
        client = stream.client
        if client is None or not client.bytes or (stream.told and not over):
            return True
        text = "the client does not read its FIFO: what it has no room for is dropped for it"
        if over:
            text = f"{client.lines} lines ({client.bytes} bytes) were not given to the client"
        more = f"SDSHIM_DROPPED_LINES={client.lines}\nSDSHIM_DROPPED_BYTES={client.bytes}\n"
        told = self._notice(stream, f"sdshim: {text}", more)
        stream.told |= told
        return told

    def _notice(self, stream: Stream, text: str, more: str) -> bool:
        entry = f"PRIORITY=4\nMESSAGE={text}\n{more}".encode()
        return self._of[stream.fd].send(stream.fields + entry)

    def _end(self, stream: Stream, rest: bytes) -> None:
        """Nothing will follow: the last line may have no end."""
        if rest:
            if not self._emit(stream, stream.cutter.last(rest, 0)):
                self._stall(stream)
                return
            self._consume(stream, len(rest))
        _, sharing = self._limits[stream.unit]
        if sharing == 1 and not self._tell_suppressed(stream, time.monotonic(), over=True):
            self._stall(stream)
            return
        if not self._tell_dropped(stream, over=True):
            self._stall(stream)
            return
        self._limits[stream.unit] = stream.limit, sharing - 1
        self._epoll.unregister(stream.fd)
        del self._streams[stream.fd], self._of[stream.fd]
        if stream.queued:
            self._queue.remove(stream)
        stream.close()
        self._say(f"end {stream.serial}")


def main(argv: list[str]) -> int:
    """Serve the daemon that listens at the socket."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(argv[0])
    Pump(control, float(os.environ.get("SDSHIM_IDLE", "10"))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
