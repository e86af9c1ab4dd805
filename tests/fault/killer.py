"""The daemon as the tests of crash points run it: it kills itself where it is told to.

Run in a host instead of `sdshim serve` (tests/fault/drill.py). The plan is a file of lines `POINT
MOMENT LIVES`: at the MOMENT-th passing of a point a SIGKILL, and again at its next passing until
LIVES processes have died. A plan of the word `note` has the points passed written down instead.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from sdshim.core.points import POINTS

FOLDER = Path("/run/sdshim-drill")
PLAN, PASSED = "plan", "passed"
NOTE = "note"


class Killer:
    """Called at each point. The plan is read each time, so that a test need not restart us."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._plan = folder / PLAN
        self._passed = folder / PASSED

    def __call__(self, point: str) -> None:
        if point not in POINTS:  # a question on the bus
            return
        try:
            plan = self._plan.read_text()
        except FileNotFoundError:
            return
        if plan == NOTE:
            with self._passed.open("a") as file:
                file.write(f"{point}\n")
            return
        lines, dies = [], False
        for line in plan.splitlines():
            name, moment, lives = line.split()
            left = int(moment) - 1
            if name != point or dies:
                lines.append(line)
            elif left:
                lines.append(f"{name} {left} {lives}")
            else:
                dies = True
                if int(lives) > 1:
                    lines.append(f"{name} 1 {int(lives) - 1}")
        if lines != plan.splitlines():
            replace(self._plan, "".join(f"{line}\n" for line in lines))
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)


def replace(path: Path, text: str) -> None:
    """Write a file in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def main() -> None:
    """Serve, with a Killer."""
    from sdshim.cli.serve import serve
    from sdshim.cli.settings import load_config

    raise SystemExit(serve(load_config(None), Killer()))
