"""A node of the daemon without what lies below it: no systemd, no OCI runtime, nothing is run.

The rooms between are the real ones: dispatcher, operations, store, recovery. Whatever writes
outside of the world's folder is refused, and is a Fault, unless the input itself named the path (a
log file, a checkpoint's folder). So is every attempt to run a program or to signal a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sdshim.core import names, spans
from sdshim.core.config import Config
from sdshim.core.lifecycle import Life, Phase
from sdshim.core.model import ExitStatus, Identity, RuntimeOptions, Stdio
from sdshim.core.record import Record
from sdshim.core.unitspec import HostFacts
from sdshim.daemon.node import Node
from sdshim.daemon.process import Exec, Task
from sdshim.daemon.publisher import Publisher
from sdshim.host.store import PROCESS_SPEC, Store
from sdshim.runtime.criu import Criu
from sdshim.runtime.oci import OciRuntime
from sdshim.systemd.errors import SYSTEMD, NoSuchUnit, UnitExists
from sdshim.systemd.questions import NOT_FOUND, MainExit
from sdshim.systemd.wire import typed
from tests.fuzz.kit import Fault, HurriedLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sdshim.core.unitspec import Property
    from sdshim.ttrpc.calls import Reply

NO_PID = 1 << 22
"""Just above every pid that Linux gives."""
SPEC = {
    "ociVersion": "1.0.2",
    "process": {"args": ["true"], "env": ["A=b"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "annotations": {"io.kubernetes.cri.image-name": "img"},
    "linux": {
        "namespaces": [{"type": "pid"}],
        "cgroupsPath": "",
        "resources": {"memory": {"limit": 1 << 26}},
    },
}
PROCESS = b'{"args": ["true"], "cwd": "/", "terminal": false}'
TOKEN = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
KEY = names.TaskKey("fuzz", "a")
GOOD = names.TaskKey("fuzz", "good")

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATH_EVENTS = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "shutil.rmtree": (0,),
}
_REFUSED = ("os.kill", "os.killpg", "os.posix_spawn", "os.exec", "os.fork", "subprocess.Popen")


class _Guard:
    """The audit hook, on while an input is worked on."""

    def __init__(self) -> None:
        self.root = ""
        self.named = b""
        self.escapes: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root:
            return
        if event in _REFUSED:
            self._refuse(f"{event} {arguments!r}"[:300], named=False)
        if event == "open":
            path, _mode, flags = arguments
            writes = isinstance(flags, int) and flags & _WRITES
            if writes and not isinstance(path, int):
                self._look(event, path)
        for index in _PATH_EVENTS.get(event, ()):
            relative = event in ("os.mkdir", "os.remove", "os.rmdir")
            self._look(event, arguments[index], arguments[-1] if relative else -1)

    def _look(self, event: str, path: object, folder: int = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        base = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""  # noqa: PTH115
        plain = os.path.abspath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH100, PTH118
        if plain.startswith(self.root) or plain == "/dev/null" or plain.startswith("/dev/shm/"):
            return
        if plain.startswith(("/proc/self/", "/tmp/pytest")):
            return
        self._refuse(f"{event} {plain}", named=os.fsencode(plain) in self.named)

    def _refuse(self, what: str, *, named: bool) -> None:
        if not named:
            self.escapes.append(what)
        raise PermissionError(1, "refused by the fuzzer", what)


@functools.cache
def guard() -> _Guard:
    """The one of this process: an audit hook stays for good."""
    return _Guard()


@dataclass(frozen=True, slots=True)
class _Job:
    result: str

    async def wait(self) -> str:
        return self.result


class Manager:
    """systemd as the operations see it; starts succeed, and leave what the unit would leave."""

    losses = 0

    def __init__(self, *, fails: bool = False) -> None:
        self.units: dict[str, dict[str, Any]] = {}
        self.fails = fails

    async def start_transient(self, unit: str, properties: Sequence[Property]) -> _Job:
        if unit in self.units:
            raise UnitExists(f"{SYSTEMD}.UnitExists", "exists", unit)
        typed(properties)
        known = {name: value for name, _, value in properties}
        self.units[unit] = known
        if self.fails:
            return _Job("failed")
        lines = known.get("ExecStartEx") or known["ExecStart"]
        argv = lines[0][1]
        if argv[0].endswith("/create"):
            (Path(argv[1]) / "init.pid").write_text(str(NO_PID))
        elif argv[0].endswith("/exec"):
            for name in ("exec.pid", "main.pid"):
                (Path(argv[1]) / name).write_text(str(NO_PID))
        return _Job("done")

    async def stop(self, unit: str) -> _Job:
        if unit not in self.units:
            raise NoSuchUnit(f"{SYSTEMD}.NoSuchUnit", "none", unit)
        return _Job("done")

    async def starting(self, unit: str) -> _Job | None:
        return _Job("done") if unit in self.units else None

    async def environment(self, unit: str) -> list[str]:
        return list(self.units.get(unit, {}).get("Environment", ()))

    async def load_state(self, unit: str) -> str:
        return "loaded" if unit in self.units else NOT_FOUND

    async def get_unit_property(self, unit: str, interface: str, name: str) -> object:
        if name.startswith("Exec"):
            return []
        if name.startswith("Allowed"):
            return b""
        return "inactive" if name.endswith("State") else 0

    async def main_exit(self, unit: str) -> MainExit | None:
        return MainExit(1, 7, NO_PID, 1) if unit in self.units else None

    async def main_pid(self, unit: str) -> int:
        return 0

    async def ref(self, unit: str) -> None:
        if unit not in self.units:
            raise NoSuchUnit(f"{SYSTEMD}.NoSuchUnit", "none", unit)

    async def unref(self, unit: str) -> None:
        self.units.pop(unit, None)

    async def kill(self, unit: str, whom: str, number: int) -> None:
        return

    async def reset_failed(self, unit: str) -> None:
        return

    async def thaw(self, unit: str) -> None:
        return

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        typed(properties)

    async def collect(self, unit: str) -> None:
        self.units.pop(unit, None)

    async def when_removed(self, unit: str) -> None:
        return

    async def when_stopping(self, unit: str) -> None:
        await asyncio.Event().wait()


class _Criu(Criu):
    async def check(self, path: str, folder: Path) -> None:
        return

    async def version(self, path: str, folder: Path) -> tuple[int, int]:
        return (4, 0)


class _NoCopies:
    @contextlib.asynccontextmanager
    async def lend(self, binary: str) -> AsyncIterator[None]:
        yield None

    def adopt(self, name: str, fd: int) -> bool:
        return False


class Runtime(OciRuntime):
    """Every command of the OCI runtime succeeds at once, criu works."""

    def __init__(self, programs: Path) -> None:
        super().__init__({}, 30.0, cast("Any", _Keeper()), programs)
        self.criu = _Criu({}, 30.0)
        self.sealed = cast("Any", _NoCopies())

    async def _run(self, *arguments: Any, **more: Any) -> None:
        return

    def waits_for_start(self, me: Identity) -> bool:
        return False


class _Keeper:
    def keep(self, name: str, *fds: int, poll: bool = True) -> Any:
        kept = asyncio.get_running_loop().create_future()
        kept.set_result(None)
        return kept

    def remove(self, name: str) -> None:
        return

    def notify_for(self, pid: int, state: str) -> None:
        return

    async def demand(self, more: int) -> None:
        return


class Replies:
    """Where the dispatcher's replies go instead of a server."""

    def __init__(self) -> None:
        self.found: list[Reply] = []

    def reply(self, key: tuple[int, int], reply: Reply, note: bytes = b"") -> None:
        self.found.append(reply)


class World:
    """A folder with a bundle, FIFOs and a state folder; `node()` is a daemon's start on it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sdshim-fuzz-"))
        self.bundle = self.root / "bundle"
        self.run_dir = self.root / "run"
        self.loop = HurriedLoop()

    def reset(self) -> None:
        """As it was at the beginning."""
        for entry in self.root.iterdir():
            shutil.rmtree(entry)
        (self.bundle / "rootfs").mkdir(parents=True)
        (self.run_dir / "c").mkdir(parents=True)
        (self.bundle / "config.json").write_text(json.dumps(SPEC))
        for name in ("in", "out", "err"):
            os.mkfifo(self.bundle / name)

    def node(self, manager: Manager) -> Node:
        """A daemon that has just started, before it has taken over."""
        store = Store(self.run_dir / "t")
        keeper = cast("Any", _Keeper())
        return Node(
            config=Config(run_dir=str(self.run_dir)),
            facts=HostFacts(257, True, "/launcher"),
            manager=cast("Any", manager),
            runtime=Runtime(self.run_dir / "programs"),
            store=store,
            keeper=keeper,
            tracer=spans.NULL_TRACER,
            publisher=Publisher(self.run_dir / "e", keeper, spans.NULL_TRACER, store.reserve),
            run_dir=self.run_dir,
        )

    def identity(self, key: names.TaskKey = KEY, token: str = TOKEN) -> Identity:
        """Of a task of this world."""
        unit = names.init_unit(key)
        return Identity(
            namespace=key.namespace,
            id=key.id,
            token=token,
            bundle=str(self.bundle),
            unit=unit,
            slice=names.namespace_slice(key.namespace),
            cgroup=f"/sdshim.slice/sdshim-{key.namespace}.slice/{unit}/container",
            owns_cgroup=True,
            containerd="/nowhere",
            runtime=RuntimeOptions(binary="true", root=str(self.root / "runtime")),
            stdio=Stdio(),
            create_call=(1, 1),
        )

    def put(self, node: Node, manager: Manager, phase: Phase, me: Identity | None = None) -> Task:
        """A task in a phase, on disk, in memory, and its unit in systemd."""
        me = me or self.identity()
        ended = ExitStatus(7, 1) if phase is Phase.EXITED else None
        task = Task(node, Record(me, Life(phase, NO_PID, ended)))
        node.store.make(me)
        node.store.write(task.record)
        node.store.put(me, "init.pid", str(NO_PID).encode())
        node.tasks[task.key] = task
        manager.units[me.unit] = {"Environment": [f"SDSHIM_TOKEN={me.token}"]}
        return task

    def put_exec(self, node: Node, task: Task, phase: Phase, *, terminal: bool = False) -> Exec:
        """An exec of a task."""
        me = replace(
            task.identity,
            exec_id="e",
            token=OTHER,
            task_token=task.identity.token,
            unit=names.exec_unit(task.key, "e"),
            stdio=Stdio(terminal=terminal),
        )
        pid = 0 if phase is Phase.CREATED else NO_PID
        child = Exec(node, Record(me, Life(phase, pid)), task)
        node.store.make(me)
        node.store.put(me, PROCESS_SPEC, PROCESS)
        node.store.write(child.record)
        task.execs["e"] = child
        return child

    def close(self) -> None:
        """Remove the folder."""
        self.loop.close()
        shutil.rmtree(self.root)

    def watched(self, data: bytes) -> _Watch:
        """A `with` block in which nothing may be written elsewhere."""
        return _Watch(self, data)


class _Watch:
    def __init__(self, world: World, data: bytes) -> None:
        self._world, self._data = world, data

    def __enter__(self) -> None:
        one = guard()
        one.named, one.escapes = self._data, []
        one.root = f"{self._world.root}"

    def __exit__(self, *exc: object) -> None:
        one = guard()
        one.root = ""
        if one.escapes:
            raise Fault(f"out of its folder: {one.escapes[0]}")


@functools.cache
def world() -> World:
    """The one of this process."""
    return World()


def close() -> None:
    """The world is no longer needed."""
    world().close()
    world.cache_clear()


def tree(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, mode) of everything in a folder."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder)), path.lstat().st_mode
