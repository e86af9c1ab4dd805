"""Processes that live a millisecond, through containerd's API: is their exit ever lost or wrong?

`make exits N=2000 ROOT=… CGROUP=…`: N containers and N execs that `exit 7`, each half one at a time
and half eight at once. Ends with `exits: containers=… execs=… wrong=…`; exit status 0 only when
nothing was wrong.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2

from tests.bench.lives import OURS, Bench
from tests.host import Host
from tests.tools.containerd import TASKS, Containerd

if TYPE_CHECKING:
    from collections.abc import Callable

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
CODE = 7
COMMAND = ("/bin/sh", "-c", f"exit {CODE}")
AT_ONCE = 8
ANVIL_SECONDS = "100000"


class Exits:
    """Brief processes on one host, and what was wrong with them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._call = bench.client.call
        self._numbers = count()
        self.wrong: list[str] = []

    def container(self, _: int) -> None:
        """One container's life."""
        name, mounts = self._bench.make(OURS, *COMMAND)
        self._call(TASKS, "Create", container_id=name, rootfs=mounts)
        waiting = self._bench.client.begin(TASKS, "Wait", container_id=name)
        self._call(TASKS, "Start", container_id=name)
        self._judge(name, waiting.result(), self._call(TASKS, "Delete", container_id=name))
        self._bench.client.remove_container(name)

    def exec(self, anvil: str, process: dict[str, Any]) -> Callable[[int], None]:
        """A function that runs one exec in a container."""

        def run(_: int) -> None:
            name = f"e{next(self._numbers)}"
            one: dict[str, Any] = {"container_id": anvil, "exec_id": name}
            spec = any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode())
            self._call(TASKS, "Exec", spec=spec, **one)
            waiting = self._bench.client.begin(TASKS, "Wait", **one)
            self._call(TASKS, "Start", **one)
            exited = waiting.result()
            self._judge(name, exited, self._call(TASKS, "DeleteProcess", **one))

        return run

    def _judge(self, name: str, exited: Any, deleted: Any) -> None:
        if (exited.exit_status, deleted.exit_status) != (CODE, CODE):
            self.wrong.append(f"{name}: Wait {exited.exit_status}, Delete {deleted.exit_status}")


def _many(what: str, one: Callable[[int], None], number: int) -> None:
    """Half one at a time, half eight at once."""
    half = number // 2
    begun = time.monotonic()
    for n in range(number - half):
        one(n)
        if n % 100 == 99:
            print(f"  {what}: {n + 1} one at a time, {time.monotonic() - begun:.0f} s", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(half)))
    print(f"{what}: {number} in {time.monotonic() - begun:.0f} s", flush=True)


def run(host: Host, number: int) -> int:
    """The whole run on a booted host; the number of wrong exits."""
    socket = str(host.path("/run/containerd/containerd.sock"))
    with Containerd(socket) as client:
        bench = Bench(host, client)
        exits = Exits(bench)
        _many("containers", exits.container, number)
        anvil, mounts = bench.make(OURS, "sleep", ANVIL_SECONDS)
        client.call(TASKS, "Create", container_id=anvil, rootfs=mounts)
        client.call(TASKS, "Start", container_id=anvil)
        process = {**copy.deepcopy(bench.spec["process"]), "args": list(COMMAND)}
        _many("execs", exits.exec(anvil, process), number)
        client.call(TASKS, "Kill", container_id=anvil, signal=9)
        client.call(TASKS, "Wait", container_id=anvil)
        client.call(TASKS, "Delete", container_id=anvil)
        client.remove_container(anvil)
    for text in exits.wrong[:20]:
        print(f"wrong: {text}")
    print(f"exits: containers={number} execs={number} wrong={len(exits.wrong)}")
    return len(exits.wrong)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="self", choices=("self", "trixie", "forky"))
    parser.add_argument("--cgroup", default="v2", choices=("v2", "v1"))
    parser.add_argument("-n", "--number", type=int, default=200, help="of each kind")
    options = parser.parse_args()
    with Host(root=options.root, cgroup=options.cgroup) as host:
        print(f"systemd {host.systemd_version}, root {options.root}, cgroup {options.cgroup}")
        try:
            return 1 if run(host, options.number) else 0
        except grpc.RpcError as error:
            print(f"exits: failed: {error}\n{host.log_tail(80)}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main())
