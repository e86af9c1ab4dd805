"""The floor: the same container life by the bare steps, without a shim, containerd or records.

    create  StartTransientUnit (mount, runc create, PIDFile) until its job is done
    start   runc start
    wait    pidfd of init
    delete  runc delete, umount, until systemd has forgotten the unit

The script below runs in the host with sdshim's own D-Bus and process code, one life for each line
on its stdin, so that it can take turns with the shims. What a shim takes beyond it is its own
doing: its protocol, its files, its order of things.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Self

from tests.bench.lives import PHASES
from tests.host import HostError
from tests.tools.containerd import SNAPSHOTS, SNAPSHOTTER

if TYPE_CHECKING:
    from types import TracebackType

    from tests.bench.lives import Bench, Life

NAME = "bench-floor"
TOLD = "/run/sdshim-floor.json"

_SCRIPT = """\
import asyncio, json, os, sys, time
lib = "/usr/local/lib/sdshim/"
sys.path[:0] = [lib + os.path.dirname(os.readlink(lib + "sdshim")), lib + "deps"]
sys.path += ["/usr/lib/python3/dist-packages"]
from pathlib import Path
from sdshim.runtime import process
from sdshim.systemd.bus import Bus
from sdshim.systemd.manager import Manager
told = json.load(open("/run/sdshim-floor.json"))
base, unit, slice = Path("/run/sdshim-floor"), "bench-floor.service", "bench.slice"
own = f"/{slice}/{unit}"
spec = told["spec"]
spec["linux"]["cgroupsPath"] = own + "/container"
spec["root"]["path"] = "rootfs"
rootfs, pid_file = base / "rootfs", base / "init.pid"
rootfs.mkdir(parents=True)
(base / "config.json").write_text(json.dumps(spec))
runc = [process.find("runc"), "--root", str(base / "state")]
sup = f"/sys/fs/cgroup{own}/sup" if told["unified"] else ""
line = 'if [ "$1" ]; then mkdir -p $1 && echo 0 >$1/cgroup.procs; fi; shift; exec "$@"'
create = ["/bin/sh", "-c", line.replace("$", "$$"), "sh", sup, *runc, "create", "--bundle",
          str(base), "--pid-file", str(pid_file), "floor"]
mount = ["/bin/mount", "-n", "-i", "-t", "overlay", "-o", told["options"], "overlay", str(rootfs)]
properties = [
    ("Type", "s", "forking"), ("PIDFile", "s", str(pid_file)), ("Slice", "s", slice),
    ("Delegate", "b", True), ("StandardInput", "s", "null"),
    ("Environment", "as", ["LIBMOUNT_FORCE_MOUNT2=always"]),
    ("StandardOutputFileToAppend", "s", str(base / "out")),
    ("StandardErrorFileToAppend", "s", str(base / "out")),
    ("ExecStartPre", "a(sasb)", [(mount[0], mount, False)]),
    ("ExecStart", "a(sasb)", [(create[0], create, False)]),
    ("ExecStopPost", "a(sasb)", [("/bin/true", ["/bin/true"], False)]),
]
async def run(*argv):
    status = await process.run(list(argv), dict(os.environ), base / "out", seconds=60)
    assert status == 0, (argv, (base / "out").read_text())
async def ended(pidfd):
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(pidfd, lambda: future.done() or future.set_result(None))
    await future
    loop.remove_reader(pidfd)
    os.close(pidfd)
async def main():
    bus = Bus()
    await bus.connect()
    manager = Manager(bus)
    await manager.start()
    for _ in sys.stdin:
        marks = [time.perf_counter()]
        job = await manager.start_transient(unit, properties)
        result = await job.wait()
        assert result == "done", (result, (base / "out").read_text())
        marks.append(time.perf_counter())
        pidfd = os.pidfd_open(int(pid_file.read_text()))
        await run(*runc, "start", "floor")
        marks.append(time.perf_counter())
        await ended(pidfd)
        marks.append(time.perf_counter())
        await run(*runc, "delete", "floor")
        await run("/bin/umount", "-n", "-i", str(rootfs))
        await manager.when_removed(unit)
        marks.append(time.perf_counter())
        print(json.dumps([(b - a) * 1000 for a, b in zip(marks, marks[1:])]), flush=True)
    await manager.close()
    await bus.close()
asyncio.run(main())
"""


class Floor:
    """The script, ready to run lives; a context manager."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __enter__(self) -> Self:
        host = self._bench.host
        (mount,) = self._bench.client.prepare(NAME, self._bench.parent)
        told = {
            "spec": self._bench.spec,
            "options": ",".join(mount.options),
            "unified": host.cgroup == "v2",
        }
        host.path(TOLD).write_text(json.dumps(told))
        script = ["/usr/bin/python3", "-I", "-S", "-c", _SCRIPT]
        pipe = subprocess.PIPE
        self._process = host.popen(script, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its stdin is its end
        host = self._bench.host
        host.run(["rm", "-rf", TOLD, "/run/sdshim-floor"])
        self._bench.client.call(SNAPSHOTS, "Remove", snapshotter=SNAPSHOTTER, key=NAME)

    def life(self) -> Life:
        """One container's life by the bare steps."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            raise HostError(f"the floor's script failed:\n{said}")
        life = dict(zip(PHASES, json.loads(line), strict=True))
        return {**life, "life": sum(life.values())}
