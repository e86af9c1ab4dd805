"""Steps with their elapsed seconds, on stderr: a moving line on a terminal, plain lines else."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

QUIET_BEAT = 15.0  # seconds between signs of life where nobody watches a terminal


class Step:
    """One step under way: `tell()` says what it is at, a thread keeps the clock moving."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._started = time.monotonic()
        self._detail = ""
        self._done = threading.Event()
        self._moving = sys.stderr.isatty()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if not self._moving:
            print(f"{self.title} …", file=sys.stderr, flush=True)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._done.set()
        self._ticker.join()
        clear = "\r\x1b[K" if self._moving else ""
        word = "done" if kind is None else "failed"
        print(f"{clear}{self.title}: {word}, {self.seconds:.1f} s", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def tell(self, detail: str) -> None:
        self._detail = detail

    def _tick(self) -> None:
        while not self._done.wait(0.2 if self._moving else QUIET_BEAT):
            line = f"{self.title} {self.seconds:5.0f} s  {self._detail}"
            if self._moving:
                print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)
            else:
                print(line[:100], file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[Step]:
    with Step(title) as running:
        yield running
