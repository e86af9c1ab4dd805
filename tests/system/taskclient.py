"""A containerd of ours: bundles by hand, the launcher, ttrpc calls from outside, an Events server.

    with Rig(host) as rig:
        box = rig.bundle("box", "sleep", "1000")
        rig.call("Create", id=box.id, bundle=box.path)
        end = rig.begin("Wait", id=box.id)         # a future
        rig.call("Start", id=box.id)

Calls run in an event loop in a thread of their own, so tests stay plain functions. What a test
leaves is ended as containerd would: by the launcher's `delete` for each bundle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.core.errors import ShimError
from sdshim.pb import control_pb2
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import PROCESS_URL
from sdshim.ttrpc.client import Client
from tests.system.eventserver import EventServer
from tests.tools.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from concurrent.futures import Future

    from tests.host import Host

V2, V3 = "containerd.task.v2.Task", "containerd.task.v3.Task"
CONTROL = "sdshim.v1.Control"
HOME = "/tmp/taskclient"
ROOTFS = f"{HOME}/rootfs"
EVENTS = f"{HOME}/events.sock"
ZERO_SECONDS = -62135596800
LAUNCHER = "containerd-shim-systemd-v1"

MESSAGES: dict[str, tuple[type[Any], type[Any] | None]] = {
    "State": (pb.StateRequest, pb.StateResponse),
    "Create": (pb.CreateTaskRequest, pb.CreateTaskResponse),
    "Start": (pb.StartRequest, pb.StartResponse),
    "Delete": (pb.DeleteRequest, pb.DeleteResponse),
    "Pids": (pb.PidsRequest, pb.PidsResponse),
    "Pause": (pb.PauseRequest, None),
    "Resume": (pb.ResumeRequest, None),
    "Checkpoint": (pb.CheckpointTaskRequest, None),
    "Kill": (pb.KillRequest, None),
    "Exec": (pb.ExecProcessRequest, None),
    "ResizePty": (pb.ResizePtyRequest, None),
    "CloseIO": (pb.CloseIORequest, None),
    "Update": (pb.UpdateTaskRequest, None),
    "Wait": (pb.WaitRequest, pb.WaitResponse),
    "Stats": (pb.StatsRequest, pb.StatsResponse),
    "Connect": (pb.ConnectRequest, pb.ConnectResponse),
    "Shutdown": (pb.ShutdownRequest, None),
}


def spec_of(*command: str) -> dict[str, Any]:
    """A minimal OCI spec: busybox below ROOTFS, namespaces of its own, no limits."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": ROOTFS, "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")]
        },
    }


def exec_spec(*args: str, **more: Any) -> AnyMessage:
    """The spec of an exec: an OCI Process with `more` keys."""
    process = {**spec_of(*args)["process"], **more}
    return AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode())


@dataclass(slots=True)
class Bundle(Streams):
    """A bundle's folder, with the streams of its task."""

    namespace: str
    id: str

    def write_spec(self, spec: Any) -> None:
        """config.json anew; bytes go in as they are."""
        data = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        (self.outside / "config.json").write_bytes(data)


class Connection:
    """One ttrpc connection of a Rig."""

    def __init__(self, rig: Rig, client: Client) -> None:
        self._rig = rig
        self._client = client

    def begin(
        self,
        method: str,
        *,
        service: str = V2,
        metadata: dict[str, str] | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Future[Any]:
        """Send a call; the future has the decoded reply or the error that came."""
        kind, answer = MESSAGES[method]
        return self.send(service, method, kind(**fields).SerializeToString(), answer, metadata)

    def send(
        self,
        service: str,
        method: str,
        payload: bytes,
        answer: type[Any] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Future[Any]:
        """The same with a payload of the caller's."""

        async def run() -> Any:
            pairs = list((metadata or {}).items())
            data = await self._client.call(service, method, payload, metadata=pairs)
            return answer.FromString(data) if answer else data

        return self._rig.submit(run())

    def call(self, method: str, **arguments: Any) -> Any:
        """A call and its reply."""
        return self.begin(method, **arguments).result(15)

    def fails(self, method: str, **arguments: Any) -> tuple[int, str]:
        """(code, text) of a call that must fail."""
        with pytest.raises(ShimError) as caught:
            self.call(method, **arguments)
        return int(caught.value.code), str(caught.value)

    def close(self) -> None:
        """Leave, whatever is under way."""
        self._rig.do(self._close())

    async def _close(self) -> None:
        self._client.close()


class Rig:
    """Everything containerd does around a shim, on a booted host, for as long as a test runs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskclient")
        self._bundles: list[Bundle] = []
        self._connections: dict[str, Connection] = {}
        self._all: list[Connection] = []

    def __enter__(self) -> Rig:
        self._thread.start()
        home = self.host.path(HOME)
        home.mkdir(exist_ok=True)
        if not self.host.path(ROOTFS).exists():
            script = (
                f"mkdir -p {ROOTFS}/bin {ROOTFS}/proc {ROOTFS}/dev && cp /bin/busybox {ROOTFS}/bin/"
                f" && chroot {ROOTFS} /bin/busybox --install -s /bin"
            )
            self.host.run(["sh", "-c", script])
        path = self.host.path(EVENTS)
        path.unlink(missing_ok=True)
        self.events = EventServer(str(path))
        self.do(self.events.start())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for bundle in reversed(self._bundles):
                if bundle.outside.exists():
                    self.give_up(bundle)
                bundle.close()
            self._take_the_last_events()
        finally:
            for connection in self._all:
                connection.close()
            self.do(self.events.stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _take_the_last_events(self) -> None:
        """A record stays until its events are taken: nobody takes them when we have left."""
        kept = [self.host.path(f"/run/sdshim/t/{b.namespace}/{b.id}") for b in self._bundles]
        deadline = time.monotonic() + 2
        while any(path.exists() for path in kept) and time.monotonic() < deadline:
            time.sleep(0.01)

    # --- the loop

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the rig's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The same, to its end."""
        return self.submit(work).result(15)

    # --- what containerd does on disk

    def bundle(
        self, id_: str, *command: str, namespace: str = "default", spec: Any = None
    ) -> Bundle:
        """Make a bundle and run the launcher's `start` for it."""
        path = f"{HOME}/b/{namespace}/{id_}"
        bundle = Bundle(path, self.host.path(path), namespace, id_)
        bundle.outside.mkdir(mode=0o700, parents=True)
        self._bundles.append(bundle)
        bundle.write_spec(spec_of(*command) if spec is None else spec)
        assert self.launcher(bundle, "start") == f"unix:///run/sdshim/s/{namespace}".encode()
        return bundle

    def launcher(
        self, bundle: Bundle, action: str, within: float = 10, **environment: str
    ) -> bytes:
        """Run the launcher for a bundle as containerd does, which kills it after some time (in
        seconds); what it printed."""
        argv = ["timeout", "--signal=KILL", str(within)]
        argv += ["env", "-C", bundle.path, LAUNCHER, "-namespace", bundle.namespace]
        argv += ["-address", f"{HOME}/grpc.sock", "-publish-binary", "/usr/bin/containerd"]
        argv += ["-id", bundle.id, *(["-bundle", bundle.path] if action == "delete" else [])]
        made = {"TTRPC_ADDRESS": EVENTS, **environment}
        process = self.host.popen(
            [*argv, action],
            env=made,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(timeout=within + 10)
        assert process.returncode == 0 and not err, (process.returncode, out, err)
        return bytes(out)

    def give_up(self, bundle: Bundle) -> Any:
        """What containerd does when a task is over for it; what the launcher's `delete` told."""
        told = pb.DeleteResponse.FromString(self.launcher(bundle, "delete"))
        shutil.rmtree(bundle.outside)
        return told

    # --- calls

    def connect(self, namespace: str = "default") -> Connection:
        """A connection of its own to the namespace's socket."""
        path = str(self.host.path(f"/run/sdshim/s/{namespace}"))
        connection = Connection(self, self.do(Client.connect(path)))
        self._all.append(connection)
        return connection

    def connect_main(self) -> Connection:
        """A connection to the daemon's main socket, where the launcher asks."""
        path = str(self.host.path("/run/sdshim/sdshim.sock"))
        connection = Connection(self, self.do(Client.connect(path)))
        self._all.append(connection)
        return connection

    def listen(self, namespace: str) -> str:
        """What the launcher asks first: a socket for a namespace."""
        request = control_pb2.ListenRequest(namespace=namespace).SerializeToString()
        answer = self.connect_main().send(CONTROL, "Listen", request, control_pb2.ListenResponse)
        return str(answer.result(15).address)

    def _shared(self, namespace: str) -> Connection:
        if namespace not in self._connections:
            self._connections[namespace] = self.connect(namespace)
        return self._connections[namespace]

    def begin(self, method: str, *, namespace: str = "default", **arguments: Any) -> Future[Any]:
        """A call on the namespace's shared connection."""
        return self._shared(namespace).begin(method, **arguments)

    def call(self, method: str, *, namespace: str = "default", **arguments: Any) -> Any:
        """The same, with its reply."""
        return self._shared(namespace).call(method, **arguments)

    def refused(
        self, method: str, *, namespace: str = "default", **arguments: Any
    ) -> tuple[int, str]:
        """(code, text) of a call that must fail."""
        return self._shared(namespace).fails(method, **arguments)

    # --- whole steps

    def created(self, id_: str, *command: str, spec: Any = None) -> Bundle:
        """A task that waits for Start."""
        bundle = self.bundle(id_, *(command or ("sleep", "1000")), spec=spec)
        self.call("Create", id=id_, bundle=bundle.path)
        return bundle

    def running(self, id_: str, *command: str, spec: Any = None) -> Bundle:
        """A task that runs."""
        bundle = self.created(id_, *command, spec=spec)
        self.call("Start", id=id_)
        return bundle

    def stopped(self, id_: str, *command: str) -> Bundle:
        """A task that has ended, with 7 by default."""
        bundle = self.running(id_, *(command or ("sh", "-c", "exit 7")))
        self.call("Wait", id=id_)
        return bundle

    def deleted(self, id_: str) -> Bundle:
        """A task that was deleted; its bundle is still there."""
        bundle = self.stopped(id_)
        self.call("Delete", id=id_)
        return bundle

    def daemon_pid(self) -> int:
        """MainPID of the daemon, as the host counts."""
        shown = self.host.run(["systemctl", "show", "-P", "MainPID", "sdshim.service"])
        return int(shown.stdout)

    def unit_exists(self, id_: str, namespace: str = "default") -> bool:
        """Whether systemd has the unit of a task in memory."""
        unit = f"sdshim-{namespace.replace('-', ':')}-{id_}.service"
        listed = self.host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", unit])
        return bool(listed.stdout.strip())


@contextlib.contextmanager
def no_traceback(host: Host) -> Iterator[None]:
    """The daemon's log has no traceback of the block's time: nothing came unexpected."""
    cursor = _journal(host, "-n0", "--show-cursor").rpartition("cursor: ")[2].strip()
    yield
    said = _journal(host, f"--after-cursor={cursor}")
    assert "Traceback" not in said, said


def _journal(host: Host, *arguments: str) -> str:
    argv = ["journalctl", "-u", "sdshim.service", "-o", "cat", "--no-pager", *arguments]
    return str(host.run(argv, check=False).stdout)


@contextlib.contextmanager
def no_daemon(host: Host) -> Iterator[None]:
    """The daemon is stopped for the block, and nothing starts it."""
    units = ["sdshim.socket", "sdshim.service"]
    host.run(["systemctl", "stop", *units])
    try:
        yield
    finally:
        host.run(["systemctl", "reset-failed", *units], check=False)  # tests start it often
        host.run(["systemctl", "start", *units])


def eventually(condition: Callable[[], bool], what: str, timeout: float = 10) -> None:
    """Ask again until it is so, where nothing tells when."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def dead_daemon(host: Host) -> Iterator[None]:
    """The daemon is dead in this block, by SIGKILL: what systemd keeps for it is kept. The next one
    is started after the block."""
    drop_ins = host.path("/run/systemd/system/sdshim.service.d")
    drop_ins.mkdir()
    (drop_ins / "late.conf").write_text("[Service]\nRestartSec=1h\n")
    host.run(["systemctl", "daemon-reload"])
    try:
        host.run(["systemctl", "kill", "--signal=KILL", "sdshim.service"])
        state = ["systemctl", "show", "-P", "SubState", "sdshim.service"]
        eventually(lambda: "auto-restart" in host.run(state).stdout, "it waits for its restart")
        yield
    finally:
        shutil.rmtree(drop_ins)
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "start", "sdshim.service"])
