"""Task events of a containerd, as a test reads them: decoded, kept, waited for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from sdshim.pb import events_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

TYPES = {
    message.full_name: getattr(events_pb2, name)
    for name, message in events_pb2.DESCRIPTOR.message_types_by_name.items()
}


class Event(NamedTuple):
    """One event as containerd has it."""

    namespace: str
    topic: str
    body: Any


class Mailbox:
    """The events that have come so far. Safe to use from many threads."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self._news = threading.Condition()

    def take(self, envelope: Any) -> None:
        """Keep one more event; one of an unknown type is a fault."""
        body = TYPES[envelope.event.type_url].FromString(envelope.event.value)
        with self._news:
            self.seen.append(Event(envelope.namespace, envelope.topic, body))
            self._news.notify_all()

    def of(self, task: str) -> list[str]:
        """Topics of one task so far, without `/tasks/`."""
        return [event.topic.removeprefix("/tasks/") for event in self.all(task)]

    def all(self, task: str, namespace: str = "") -> list[Event]:
        """Events of one task so far, of one namespace if it is named."""
        return [
            event
            for event in list(self.seen)
            if event.body.container_id == task and namespace in ("", event.namespace)
        ]

    def has(self, task: str, timeout: float) -> bool:
        """Whether any event of a task comes in time."""
        return self.wait_for(lambda: bool(self.of(task)), timeout)

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Whether it gets true in time; it is asked again after each event."""
        with self._news:
            return self._news.wait_for(condition, timeout)

    def until(self, task: str, topic: str, timeout: float = 10) -> Event:
        """Wait for an event of a task, and return it."""
        arrived = self.wait_for(lambda: topic in self.of(task), timeout)
        assert arrived, f"no {topic} of {task} within {timeout} s; came: {self.of(task)}"
        return next(event for event in self.all(task) if event.topic == f"/tasks/{topic}")
