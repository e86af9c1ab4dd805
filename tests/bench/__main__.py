"""`python -m tests.bench`: see the package. Prints figures and their budgets, judges nothing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import floor, launcher, lives, memory, report
from tests.host import Host, HostError
from tests.host.roots import ROOTS
from tests.tools.containerd import Containerd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SOCKET = "/run/containerd/containerd.sock"
WARM_UP = 3
PARALLEL = 8
CPU_BLOCKS = 4
CPU_SIZE = 16
CONTAINERS = (1, 20)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="sdshim against io.containerd.runc.v2 on one booted host, interleaved.",
    )
    parser.add_argument("--root", choices=[root.name for root in ROOTS], default="self")
    parser.add_argument("--cgroup", choices=["v2", "v1"], default="v2", help="v1 is the hybrid")
    parser.add_argument("--rounds", type=int, default=20, help="of one life of each shim")
    parser.add_argument("--json", type=Path, help="also write every figure there")
    return parser


def _versions(host: Host) -> dict[str, str]:
    runc = re.search(r"version (\S+)", host.run(["runc", "--version"]).stdout)
    return {
        "systemd": str(host.systemd_version),
        "containerd": ".".join(map(str, host.containerd_version)),
        "runc": runc[1] if runc else "?",
        "python": ".".join(map(str, host.python_version)),
        "kernel": platform.release(),
    }


def _beat(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _print(lines: Iterable[str]) -> None:
    _beat("")
    print(*lines, sep="\n", end="\n\n", flush=True)


def _shims(bench: lives.Bench, parallel: int) -> dict[str, Callable[[], list[lives.Life]]]:
    return {name: partial(bench.lives, name, parallel) for name in lives.RUNTIMES}


def _run(host: Host, bench: lives.Bench, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"versions": _versions(host), "load before": os.getloadavg()[0]}
    words = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    _print([f"{host.root.name}, cgroup {host.cgroup}, {os.cpu_count()} CPUs: {words}"])
    bench.life(lives.OURS)  # the daemon has what it imports late
    daemon = memory.shim_pids(host, lives.OURS)
    idle = memory.pss(daemon), memory.pss(daemon, "Rss")

    with floor.Floor(bench) as bare:
        alone = lives.take_turns(
            {**_shims(bench, 1), "floor": lambda: [bare.life()]}, rounds, WARM_UP, _beat
        )
    _print(report.lives_table("One at a time", alone, "1"))
    _print(report.floor_lines(alone))
    crowd = lives.take_turns(_shims(bench, PARALLEL), max(3, rounds // 4), 1, _beat)
    _print(report.lives_table(f"{PARALLEL} at once", crowd, str(PARALLEL)))
    cpu = {n: lives.cpu(bench, CPU_BLOCKS, CPU_SIZE, n, _beat) for n in (1, PARALLEL)}
    _print(report.cpu_line(found, parallel) for parallel, found in cpu.items())
    true, start = launcher.measure(host)
    _print([report.launcher_line(true, start)])
    held = {name: memory.with_containers(bench, name, CONTAINERS) for name in lives.RUNTIMES}
    after = memory.pss(memory.shim_pids(host, lives.OURS))
    _print(report.memory_lines(idle, after, held))
    return {
        **figures,
        "alone ms": alone,
        "crowd ms": crowd,
        "cpu ms per life": cpu,
        "pss MiB": held,
        "daemon MiB": {"idle pss": idle[0], "idle rss": idle[1], "after pss": after},
        "launcher ms": {"true": true, "start": start},
    }


def main() -> int:
    """Boot, measure, print."""
    arguments = _parser().parse_args()
    begun = time.monotonic()
    try:
        with (
            Host(arguments.root, arguments.cgroup) as host,
            Containerd(str(host.path(SOCKET))) as client,
        ):
            figures = _run(host, lives.Bench(host, client), max(2, arguments.rounds))
    except HostError as error:
        print(f"tests.bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{time.monotonic() - begun:.0f} s; other work on the machine: load {os.getloadavg()[0]}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
