"""What the targets share: what a target is, and what counts as a fault beside an exception.

A target's `check` takes any bytes and returns, or raises: an exception that the code under test
does not document, or `Fault`. Structured inputs (`shapes`) are bytes too, so a case that was found
is a file whatever has found it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import ShimError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from hypothesis.strategies import SearchStrategy

MAX_SECONDS = 4.0
"""CPU time that one input may cost."""
MAX_MEMORY = 256 << 10
"""KiB that one input may take."""


class Fault(Exception):
    """What should not be, and raises nothing by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that reads bytes."""

    name: str
    check: Callable[[bytes], None]
    shapes: Callable[[], SearchStrategy[bytes]]
    """Inputs that are nearly right."""
    seeds: tuple[bytes, ...]
    """Right ones, to be changed at random."""
    close: Callable[[], None] = lambda: None
    """Gives back what the first check has made for all; the next one makes it anew."""


def bounded(target: Target, data: bytes) -> None:
    """Run a check; a Fault when it needs too much time or memory."""
    began, peak = time.process_time(), _peak(anew=True)
    target.check(data)
    spent, grown = time.process_time() - began, _peak() - peak
    if spent > MAX_SECONDS:
        raise Fault(f"{len(data)} bytes cost {spent:.1f} s of CPU")
    if grown > MAX_MEMORY:
        raise Fault(f"{len(data)} bytes cost {grown >> 10} MiB of memory")


def _peak(*, anew: bool = False) -> int:
    """KiB that the process has had at most, since it was asked for `anew` (proc(5))."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(None, 1)[0])


class _Surprises(logging.Handler):
    def __init__(self, expected: str) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException] = []
        self._expected = expected

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        wanted = bool(self._expected) and self._expected in record.getMessage()
        if error is not None and not isinstance(error, ShimError) and not wanted:
            self.found.append(error)


@contextlib.contextmanager
def no_surprise(expected: str = "") -> Iterator[None]:
    """An exception that was only logged (with its trace, and no ShimError) is raised after all,
    unless its line has the `expected` words."""
    log = logging.getLogger("sdshim")
    handler, told = _Surprises(expected), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = told
    for error in handler.found:
        raise Fault(f"logged: {error!r}") from error


class _Hurried(selectors.DefaultSelector):
    """Never waits for time to pass: tells how much would have passed."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:  # a thread is at work
            return super().select(0.02)
        self.ahead += timeout
        return events


class HurriedLoop(asyncio.SelectorEventLoop):
    """A loop in which a timer that is the only thing to wait for fires at once."""

    def __init__(self) -> None:
        self._hurried = _Hurried()
        super().__init__(self._hurried)
        self.faults: list[str] = []
        self.set_exception_handler(lambda _loop, context: self.faults.append(str(context)))

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """At once: a thread would be overtaken by the loop's time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def time(self) -> float:
        return super().time() + self._hurried.ahead

    def do(self, work: Awaitable[Any], seconds: float = 3600.0) -> Any:
        """Run something to its end; a Fault when that does not come within the loop's `seconds`."""

        async def limited() -> Any:
            async with asyncio.timeout(seconds):
                return await work

        try:
            result = self.run_until_complete(limited())
        except TimeoutError as error:
            raise Fault(f"no end within {seconds:g} s") from error
        if self.faults:
            faults, self.faults = self.faults, []
            raise Fault(f"in the loop: {faults[0]}")
        return result


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in parts of at most `size` bytes."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


def is_repeated(field: Any) -> bool:
    """Whether a field of a message is a list (or a map), by either generation of protobuf."""
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == 3)
