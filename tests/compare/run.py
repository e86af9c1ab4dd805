"""Running the scenarios against both shims side by side, in a namespace of containerd each."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.compare.differences import Difference, compare
from tests.compare.subject import HOME, OURS, ROOTFS, Subject
from tests.tools.containerd import Containerd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.compare.tape import Tape
    from tests.host import Host

SHIMS = {"stock": "io.containerd.runc.v2", "ours": OURS}


def run(
    host: Host, scenarios: Mapping[str, Callable[[Subject], None]], *, tape: bool = False
) -> list[Difference]:
    """Every scenario against both shims; the differences, in order."""
    script = (
        f"mkdir -p {ROOTFS}/bin {ROOTFS}/proc {ROOTFS}/dev && cp /bin/busybox {ROOTFS}/bin/"
        f" && chroot {ROOTFS} /bin/busybox --install -s /bin"
    )
    host.run(["sh", "-c", script])
    found: list[Difference] = []
    socket = str(host.path("/run/containerd/containerd.sock"))
    with ExitStack() as stack:
        clients = {n: stack.enter_context(Containerd(socket, f"compare-{n}")) for n in SHIMS}
        events = stack.enter_context(clients["stock"].events())
        pair = [
            Subject(host, clients[name], events, runtime, f"compare-{name}")
            for name, runtime in SHIMS.items()
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(pair)))
        for name, scenario in scenarios.items():
            begun = time.monotonic()
            stock, ours = pool.map(_tape, pair, [scenario] * len(pair))
            found += compare(name, stock.answers, ours.answers)
            if tape:
                print(f"{name}: {time.monotonic() - begun:.1f} s")
                _print(ours)
    # stock cannot remove the cgroup of a container whose runtime state is gone
    cgroups = "find /sys/fs/cgroup -depth -type d -path '*/compare-stock/*' -exec rmdir {} +"
    host.run(["sh", "-c", f"rm -rf {HOME}; {cgroups}"])
    return found


def _tape(subject: Subject, scenario: Callable[[Subject], None]) -> Tape:
    """A run; what breaks it off (no end of file in time …) is its last answer."""
    try:
        return subject.run(scenario)
    except Exception as error:
        why = subject.tape.text(f"{type(error).__name__}: {error}")
        subject.tape.put("(broken off)", {"": why})
        return subject.tape


def _print(tape: Tape) -> None:
    for step, answer in tape.answers.items():
        print(f"    {step}: {' '.join(f'{k}={v}' for k, v in answer.items() if v)}")
