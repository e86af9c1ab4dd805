"""Bytes of a stream → entries for the journal (pure).

A line of more than MAX_LINE bytes becomes several entries, marked as Docker's journald driver marks
them: CONTAINER_PARTIAL_MESSAGE=true on all but the last, the same CONTAINER_PARTIAL_ID on all,
CONTAINER_PARTIAL_ORDINAL from 1, and CONTAINER_PARTIAL_LAST.
"""

from __future__ import annotations

import os

MAX_LINE = 16 << 10
"""Docker's."""


class Cutter:
    """Cuts what one stream has into entries; it remembers only the number of a long line's part."""

    def __init__(self, priority: int, *, prefixed: bool) -> None:
        """`priority` is of lines without one; `prefixed`: `<3>` at the beginning of a line is the
        line's own (systemd's SyslogLevelPrefix=)."""
        self._priority = priority
        self._prefixed = prefixed
        self._part = 0
        self._id = b""

    def next(self, data: bytes, start: int, *, whole: bool) -> tuple[bytes, int]:
        """(the fields of the entry that begins at `start`, where it ends); at `start` again when
        there is none yet. `whole`: no more will follow soon, what is there is an entry."""
        end = data.find(b"\n", start, start + MAX_LINE + 1)
        if end >= 0:
            fields = self._fields(data[start:end], last=True)
            return fields, end + 1
        if len(data) - start > MAX_LINE:
            end = _boundary(data, start, start + MAX_LINE)
        elif whole and start < len(data):
            end = len(data)
        else:
            return b"", start
        return self._fields(data[start:end], last=False), end

    def last(self, data: bytes, start: int) -> bytes:
        """The fields of the rest at the stream's end."""
        return self._fields(data[start:], last=True)

    def done(self, *, last: bool) -> None:
        """The entry is with journald: count the parts of a long line."""
        self._part = 0 if last else self._part + 1

    def _fields(self, text: bytes, *, last: bool) -> bytes:
        priority = self._priority
        if self._prefixed and text[:1] == b"<" and text[2:3] == b">" and not self._part:
            level = text[1] - 48
            if 0 <= level <= 7:
                priority, text = level, text[3:]
        if text[-1:] == b"\r" and last:
            text = text[:-1]
        fields = b"PRIORITY=%d\nMESSAGE=%b\n" % (priority, text)
        if last and not self._part:
            return fields
        if not self._part:
            self._id = os.urandom(16).hex().encode()
        fields += b"CONTAINER_PARTIAL_ID=%b\nCONTAINER_PARTIAL_ORDINAL=%d\n" % (
            self._id,
            self._part + 1,
        )
        fields += b"CONTAINER_PARTIAL_LAST=%b\n" % (b"true" if last else b"false")
        return fields if last else fields + b"CONTAINER_PARTIAL_MESSAGE=true\n"


def _boundary(data: bytes, start: int, end: int) -> int:
    """The end of a part: not in the midst of a character of UTF-8."""
    for place in range(end, max(start, end - 4), -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return end


class RateLimit:
    """At most `burst` entries of one unit in `interval` seconds, as journald does it; 0: all."""

    def __init__(self, interval: float, burst: int) -> None:
        self._interval, self._burst = interval, burst
        self._begun = float("-inf")
        self._count = 0
        self.suppressed = 0

    def allows(self, now: float) -> bool:
        """Whether one more entry may go at this time (seconds); a new interval begins with it."""
        if not self._interval or not self._burst:
            return True
        if self.is_over(now):
            self._begun, self._count = now, 0
        return self._count < self._burst

    def is_over(self, now: float) -> bool:
        """Whether the interval has passed."""
        return now - self._begun >= self._interval

    def count(self, *, sent: bool) -> None:
        """The entry was sent, or was left out."""
        self._count += sent
        self.suppressed += not sent

    def report(self, now: float, *, over: bool = False) -> int:
        """How many were left out in an interval that is over; told once."""
        if not self.suppressed or not (over or self.is_over(now)):
            return 0
        told, self.suppressed = self.suppressed, 0
        return told
