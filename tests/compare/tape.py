"""What one shim answered in one scenario: step → field → text, made comparable.

A number or a name that differs from run to run gets a word for what it means: a pid becomes the
process it belongs to, a time becomes `zero`, `epoch` or `now`, a namespace `NS`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GO_ZERO = -62_135_596_800
SLACK = 2.0  # seconds between the host's clock readings and ours

Answer = dict[str, str]


@dataclass(slots=True)
class Tape:
    """The answers of one run of a scenario, in the order in which they were asked for."""

    words: Mapping[str, str]
    """What is replaced in every text, e.g. the namespace."""
    answers: dict[str, Answer] = field(default_factory=dict)
    pids: dict[int, str] = field(default_factory=dict)
    """Which process a pid is."""
    _begun: float = field(default_factory=time.time)

    def put(self, step: str, answer: Answer) -> None:
        """Add a step's answer; the second one of the same step is `step #2`."""
        number, label = 1, step
        while label in self.answers:
            number += 1
            label = f"{step} #{number}"
        self.answers[label] = answer

    def text(self, text: str) -> str:
        """A text on one line, with the names of this run replaced."""
        for name, word in self.words.items():
            text = text.replace(name, word)
        return " ".join(text.split())

    def pid(self, number: int) -> str:
        """The process that a pid belongs to."""
        return self.pids.get(number, "another") if number else "0"

    def time(self, stamp: Timestamp) -> str:
        """Whether a time means something, not when it was."""
        if stamp.seconds in (GO_ZERO, 0):
            return "zero" if stamp.seconds else "epoch"
        return "now" if self._begun - SLACK < stamp.seconds <= time.time() + SLACK else "another"

    def flat(self, message: Any) -> Answer:
        """A message, field by field, those that are not set too."""
        return dict(self._fields(message, ""))

    def _fields(self, message: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for one in message.DESCRIPTOR.fields:
            name, value = prefix + one.name, getattr(message, one.name)
            if one.is_repeated if hasattr(one, "is_repeated") else one.label == one.LABEL_REPEATED:
                yield name, ", ".join(self._word(one.name, part) for part in value)
            elif one.message_type and not isinstance(value, Timestamp):
                yield from self._fields(value, f"{name}.")
            else:
                yield name, self._word(one.name, value)

    def _word(self, name: str, value: Any) -> str:
        if isinstance(value, Timestamp):
            return self.time(value)
        if name == "pid":
            return self.pid(value)
        if hasattr(value, "DESCRIPTOR"):
            return "{" + " ".join(f"{k}={v}" for k, v in self.flat(value).items() if v) + "}"
        return self.text(str(value))
