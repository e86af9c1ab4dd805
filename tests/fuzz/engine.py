"""Running a target: seeded and short for the unit tests, guided by coverage and long by hand.

The short form needs nothing but hypothesis: the shapes, and the seeds changed at random, both from
a fixed seed. The long form is atheris (libFuzzer), in a process of its own: first on the bytes
themselves, then on hypothesis's choices (`fuzz_one_input`). A case that is found is written to
`found/` and the run goes on; cases that fail at the same place count once.
"""

from __future__ import annotations

import hashlib
import random
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.kit import Target, bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOUND = Path(__file__).with_name("found")


def cases(target: Target) -> list[Path]:
    """What has been found before."""
    return sorted((FOUND / target.name).glob("*"))


def place_of(error: BaseException) -> str:
    """Where an error was raised: the same place is the same fault."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/sdshim/sdshim/" in f.filename or "/sdshim/" in f.filename]
    last = (ours or frames)[-1] if frames else None
    cause = error.__cause__
    inner = place_of(cause) if cause is not None else ""
    where = f"{Path(last.filename).name}:{last.name}" if last else ""
    text = str(error)[:24] if not inner and not ours else ""
    return f"{type(error).__name__} {where} {text} {inner}"


class Hunt:
    """Counts what one process has run and keeps what it has found, one case for each place."""

    def __init__(self, target: Target, keep: bool = True) -> None:
        self.target = target
        self.executions = 0
        self.found: dict[str, bytes] = {}
        self._keep = keep

    def one(self, data: bytes) -> None:
        """Try one input."""
        self.executions += 1
        try:
            bounded(self.target, data)
        except Exception as error:
            where = place_of(error)
            if where not in self.found:
                self.found[where] = data
                if self._keep:
                    self._write(data, error)

    def _write(self, data: bytes, error: BaseException) -> None:
        folder = FOUND / self.target.name
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(data).hexdigest()[:16]
        (folder / digest).write_bytes(data)
        text = "".join(traceback.format_exception(error))
        print(f"--- {self.target.name}/{digest}\n{text}", flush=True)


def changed(data: bytes, chance: random.Random) -> bytes:
    """The data with a few random changes: bytes, runs, cuts, repetitions."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(out))
        match chance.randrange(5):
            case 0:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                out[at:at] = chance.randbytes(chance.randint(1, 8))
            case 2:
                del out[at : at + chance.randint(1, 8)]
            case 3 if out:
                out[at:at] = out[max(0, at - chance.randint(1, 16)) : at]
            case _:
                out[at : at + 1] = chance.choice(
                    [b"\0", b"\xff", b"\x7f", b"\x80", b'"', b"\n", b"/"]
                )
    return bytes(out)


def run_seeded(target: Target, executions: int, number: int = 0) -> Iterator[bytes]:
    """Inputs of a short run: the same for the same `number`."""
    chance = random.Random(f"{target.name} {number}")
    pool = [*target.seeds, *(path.read_bytes() for path in cases(target))]
    yield from pool
    for _ in range(executions):
        yield changed(chance.choice(pool), chance)


def try_shapes(
    target: Target, examples: int, one: Callable[[bytes], None], number: int = 0
) -> None:
    """Give `one` so many of the target's shapes, the same for the same `number`."""

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.shapes())
    def generated(data: bytes) -> None:
        one(data)

    generated()
