"""`python -m tests.fuzz TARGET --seconds N`: a long run, ended by one line that says what it did.

Half of the time goes to the bytes themselves, half to structured inputs. Everything runs in a pid
namespace of its own where that is possible, so that nothing outside can be signalled. Without
atheris (no wheel for this Python) both halves are random and not guided by coverage, and the line
says so. Exit status 1 when something was found.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.kit import Target

NAMES = ("frames", "requests", "options", "spec", "state", "bus")
LIMIT = [
    "-timeout=60",
    "-rss_limit_mb=1500",
    "-max_len=16384",
    "-print_final_stats=0",
    "-verbosity=0",
]
PARTS = ("bytes", "shapes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return hunt(options.target, options.part, options.seconds, options.report)
    return both(options.target, options.seconds)


def both(name: str, seconds: float) -> int:
    """Run both parts in processes of their own, restarted when libFuzzer ends one."""
    executions, places, ended = 0, set(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            until = time.monotonic() + seconds / 2
            while (left := until - time.monotonic()) > 1:
                report = Path(folder) / "report"
                report.unlink(missing_ok=True)
                words = [name, "--part", part, "--seconds", str(left), "--report", str(report)]
                status = subprocess.run(
                    [*_alone(), sys.executable, "-m", "tests.fuzz", *words],
                    check=False,
                    env={**os.environ, "TMPDIR": folder},
                ).returncode
                done = json.loads(report.read_text()) if report.exists() else {}
                executions += done.get("executions", 0)
                places |= set(done.get("places", ()))
                if status:
                    ended += 1
                    _keep_artifacts(name)
                if not done:
                    break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    guided = "" if importlib.util.find_spec("atheris") else " (not guided: no atheris here)"
    found = len(places) + ended
    print(f"fuzz: target={name} executions={executions} cpu={spent:.0f}s found={found}{guided}")
    return 1 if found else 0


def _alone() -> list[str]:
    if os.geteuid() or not shutil.which("unshare"):
        return []
    words = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    return words if subprocess.run([*words, "true"], check=False).returncode == 0 else []


def _keep_artifacts(name: str) -> None:
    """What libFuzzer writes when it ends a process itself: a hang, or too much memory."""
    from tests.fuzz.engine import FOUND

    for path in itertools.chain(
        *(Path.cwd().glob(f"{kind}-*") for kind in ("timeout", "oom", "crash"))
    ):
        (FOUND / name).mkdir(parents=True, exist_ok=True)
        path.rename(FOUND / name / path.name)
        print(f"--- {name}/{path.name}", flush=True)


def hunt(name: str, part: str, seconds: float, report: Path) -> int:
    """One part, in this process, until the time is over."""
    guided = importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["sdshim"]):
            module = importlib.import_module(f"tests.fuzz.{name}")
    else:
        module = importlib.import_module(f"tests.fuzz.{name}")
    from tests.fuzz.engine import Hunt, cases, changed, try_shapes

    one = Hunt(module.TARGET)
    until = time.monotonic() + seconds

    def tell() -> None:
        report.write_text(json.dumps({"executions": one.executions, "places": list(one.found)}))

    told = [0.0]

    def attempt(data: bytes) -> None:
        one.one(data)
        clock()

    def clock() -> None:
        now = time.monotonic()
        if now - told[0] > 1:
            told[0] = now
            tell()
        if now > until:
            tell()
            sys.stdout.flush()
            os._exit(0)

    if not guided:
        chance = random.Random()
        pool = [*module.TARGET.seeds, *(path.read_bytes() for path in cases(module.TARGET))]
        while True:
            if part == "shapes":
                try_shapes(module.TARGET, 1000, attempt, chance.randrange(1 << 30))
            else:
                attempt(changed(chance.choice(pool), chance))
    _guided(module.TARGET, part, attempt, clock)
    return 0


def _guided(
    target: Target, part: str, attempt: Callable[[bytes], None], clock: Callable[[], None]
) -> None:
    """Hand over to libFuzzer, which does not come back: `clock` ends the process."""
    import atheris
    from hypothesis import HealthCheck, given, settings

    from tests.fuzz.engine import cases

    run: Any = attempt
    corpus = tempfile.mkdtemp()
    if part == "shapes":

        @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(target.shapes())
        def generated(data: bytes) -> None:
            attempt(data)

        fuzz_one_input = cast("Any", generated).hypothesis.fuzz_one_input

        def run(data: bytes) -> None:
            fuzz_one_input(data)
            clock()  # too short a buffer is no example

        for number in range(50):  # choices enough for a start
            (Path(corpus) / str(number)).write_bytes(random.randbytes(100 * number))
    else:
        for number, data in enumerate([*target.seeds, *(p.read_bytes() for p in cases(target))]):
            (Path(corpus) / str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], *LIMIT, corpus], run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
