"""Crash points: the moments at which a death of the daemon would be interesting, by name.

Whoever makes an effect that outlives this process calls its `crash` with a point's name right
afterwards; what is done between two points leaves no trace, so a death there is a death at the
first of them. In the daemon `crash` is `nowhere` and does nothing. Only the tests make a daemon
with another one, which sends SIGKILL to itself: no setting leads there.
"""

from __future__ import annotations

from collections.abc import Callable

Crash = Callable[[str], None]


def nowhere(point: str) -> None:
    """Never die."""
    del point


ACCEPT = ("accept", "kept")
"""A connection is accepted (the one moment that costs it), it is in systemd's fd store."""
RECEIVE = ("peek", "append", "consume", "dispatch")
"""A frame has been seen, is in the call log, is out of its socket, its work has begun."""
SPOOL = ("spool.kept", "spool.moved", "spool.filed", "spool.whole", "spool.finished")
"""The same for a frame that does not fit a socket's buffer."""
REPLY = ("done", "send", "sent")
"""The reply is in the call log, is about to leave, has left."""
INLINE = ("inline",)
"""An answer from memory has left, its frame is still in the socket."""
FD_STORE = ("fd.added", "fd.safe", "fd.removed")
"""Systemd was told to keep descriptors, has read that, was told to give them up."""
STATE = ("state.made", "state.written", "state.removed", "bundle.written")
"""A task's folder and files, and ours in the bundle."""
STREAMS = ("streams.opened", "console.taken", "terminal.resized")
"""FIFO ends and terminals, before systemd has them."""
CALLS = ("StartTransientUnit", "StopUnit", "ResetFailedUnit", "UnrefUnit", "SetUnitProperties")
BUS = tuple(f"{call}.{step}" for call in CALLS for step in ("sent", "answered"))
"""What systemd is asked to change: asked, answered (its jobs end later)."""
RUNTIME = ("runtime.spawned", "runtime.ended", "rootfs.unmounted")
"""A command of the OCI runtime runs (it outlives us), has ended."""
PROCESSES = ("signal.sent", "exit.known")
"""A signal has left; the end of a process is known and not yet written down."""
EVENTS = ("event.noted", "event.sent", "event.acked")
"""An event is about to be sent, has been sent, its acknowledgement is on disk and still unread."""
START = ("start.taken", "start.adopted", "start.bound", "start.ready")
"""The daemon's own start: descriptors taken, tasks rebuilt, a socket made, READY=1 said."""

POINTS = (
    *ACCEPT,
    *RECEIVE,
    *SPOOL,
    *REPLY,
    *INLINE,
    *FD_STORE,
    *STATE,
    *STREAMS,
    *BUS,
    *RUNTIME,
    *PROCESSES,
    *EVENTS,
    *START,
)
