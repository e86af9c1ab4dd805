"""What all workers of a fault run share: the host, containerd's API, its events, the tally."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2

from sdshim.pb import events_pb2
from tests.bench.lives import Bench
from tests.fault.tally import Tally
from tests.tools.containerd import EVENTS, TASKS, Containerd
from tests.tools.events import Mailbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.tools.events import Event

SOCKET = "/run/containerd/containerd.sock"
FOLDER = "/tmp/fault"
"""FIFOs of the clients, in the host."""


class Field:
    """One booted host under load."""

    def __init__(self, host: Host, client: Containerd, first: int = 0) -> None:
        """Its containers are numbered from `first` on."""
        self.host = host
        self.client = client
        self.bench = Bench(host, client, first)
        self.tally = Tally()
        self.box = Mailbox()
        self.gaps: list[tuple[float, float]] = []
        """When nobody was told of events, because containerd was away: monotonic from and to."""
        self.epoch = 0
        """How often containerd was taken away."""
        self._present = threading.Event()
        self._present.set()
        self._watching = True
        self._subscribed = threading.Event()
        self._call: Any = None
        host.path(FOLDER).mkdir(exist_ok=True)

    # --- containerd comes and goes

    @contextmanager
    def containerd_away(self) -> Iterator[int]:
        """In this block containerd may be away, for the so manyth time: calls under way may fail,
        none is begun."""
        self._subscribed.clear()
        self.epoch += 1
        self._present.clear()
        gone = time.monotonic()
        try:
            yield self.epoch
            self._await_containerd()
            if not self._subscribed.wait(30):
                self.tally.fault("hung", "containerd sends no events after its restart")
        finally:
            self.gaps.append((gone, time.monotonic()))
            self._present.set()

    def containerd_is_there(self) -> int:
        """Wait until it is; the epoch, to see later whether it went."""
        if not self._present.wait(90):
            raise TimeoutError("containerd has not come back")
        return self.epoch

    def _await_containerd(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.call(TASKS, "List", timeout=5)
                return
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    # --- events

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Every task event of the block is in the box, but for the gaps."""
        threads = [
            threading.Thread(target=work, name=work.__name__)
            for work in (self._read_events, self._probe)
        ]
        for thread in threads:
            thread.start()
        try:
            if not self._subscribed.wait(30):
                raise TimeoutError("containerd sends no events")
            yield
        finally:
            self._watching = False
            self._subscribed.set()
            if self._call is not None:
                self._call.cancel()
            for thread in threads:
                thread.join()

    def _read_events(self) -> None:
        filters = ['topic~="^/(tasks|tests)/"']
        while self._watching:
            with suppress(grpc.RpcError):  # containerd has gone, or the end of the run: cancelled
                self._call = self.client.stream(EVENTS, "Subscribe", filters=filters)
                for envelope in self._call:
                    if envelope.topic == "/tests/probe":
                        self._subscribed.set()
                    else:
                        self.box.take(envelope)
            time.sleep(0.005)

    def _probe(self) -> None:
        """containerd does not say when it has subscribed somebody: an event of our own is the
        sign."""
        value = events_pb2.TaskPaused(container_id="probe").SerializeToString()
        event = any_pb2.Any(type_url="containerd.events.TaskPaused", value=value)
        while self._watching:
            if not self._subscribed.is_set():
                with suppress(grpc.RpcError):
                    self.client.call(
                        EVENTS, "Publish", timeout=1, topic="/tests/probe", event=event
                    )
            time.sleep(0.02)

    def take_events(self) -> dict[str, list[Event]]:
        """The events so far, by container."""
        found: dict[str, list[Event]] = defaultdict(list)
        for event in list(self.box.seen):
            found[event.body.container_id].append(event)
        return found

    def missed(self, begun: float, ended: float) -> bool:
        """Whether an event of that time may have gone by unseen."""
        return any(begun < back and gone < ended for gone, back in self.gaps)
