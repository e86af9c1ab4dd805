"""One shim under comparison: every call of containerd's API and its answer go on a tape.

    box = subject.container("c", "sh", "-c", "exit 7")
    box.create()
    end = box.wait()
    box.start()
    end.told()

A scenario is such a function. It says nothing of what is right: that is what the other shim does,
or a reason in differences.toml. What it leaves is ended and deleted, and the events are taped last.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import time
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2

from sdshim.pb import metrics_v1_pb2, metrics_v2_pb2, runc_pb2, task_types_pb2
from sdshim.pb.wellknown import PROCESS_URL, RESOURCES_URL, SPEC_URL
from tests.compare.tape import Tape
from tests.system.taskclient import spec_of
from tests.tools.containerd import CONTAINERS, TASKS, Containerd
from tests.tools.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host
    from tests.tools.events import Event, Mailbox

HOME = "/tmp/compare"
ROOTFS = f"{HOME}/rootfs"
OURS = "io.containerd.systemd.v1"
SIGKILL = 9
PATIENCE = 12.0
"""Seconds within which every call is answered."""
METRICS = {m.DESCRIPTOR.full_name: m for m in (metrics_v1_pb2.Metrics, metrics_v2_pb2.Metrics)}


class Pending:
    """A call under way."""

    def __init__(self, subject: Subject, step: str, future: Any) -> None:
        self._subject = subject
        self._step = step
        self._future = future

    def blocks(self) -> None:
        """Tape whether it still is under way."""
        self._subject.tape.put(f"{self._step} blocks", {"blocks": str(not self._future.done())})

    def told(self, seconds: float = PATIENCE) -> Any:
        """Tape its answer, or that it has not come."""
        return self._subject.answered(self._step, self._future, seconds)


class Process(Streams):
    """A container's init process, or an exec: the calls that both know."""

    def __init__(self, subject: Subject, container: str, exec_id: str = "") -> None:
        name = f"{container}:{exec_id}" if exec_id else container
        path = f"{HOME}/{subject.namespace}/{name}"
        super().__init__(path, subject.host.path(path))
        self.subject = subject
        self.name = subject.tape.text(name)
        self.ids: dict[str, Any] = {"container_id": container} | (
            {"exec_id": exec_id} if exec_id else {}
        )
        self.outside.mkdir(parents=True, exist_ok=True)  # a second handle of one exec is fine

    def call(self, method: str, **fields: Any) -> Any:
        """Tape a call and its answer; returns the answer, None for an error."""
        return self.begin(method, **fields).told()

    def begin(self, method: str, **fields: Any) -> Pending:
        """The same for a call that may take its time."""
        begun = self.subject.client.begin(TASKS, method, timeout=PATIENCE, **self.ids, **fields)
        return Pending(self.subject, f"{method} {self.name}", begun)

    def start(self) -> None:
        self.call("Start")

    def state(self) -> Any:
        return self.call("Get")

    def kill(self, number: int = SIGKILL, **fields: Any) -> None:
        self.call("Kill", signal=number, **fields)

    def wait(self) -> Pending:
        return self.begin("Wait")

    def waited(self) -> None:
        self.wait().told()

    def resize(self, width: int = 100, height: int = 30) -> None:
        self.call("ResizePty", width=width, height=height)

    def close_io(self) -> None:
        self.call("CloseIO", stdin=True)

    def delete(self) -> None:
        self.call("DeleteProcess" if "exec_id" in self.ids else "Delete")

    def streams(self, *names: str) -> dict[str, Any]:
        """FIFOs for Create or Exec, as fields of the request."""
        return {name: self.fifo(name) for name in names}

    def type(self, data: bytes) -> None:
        """What a client writes to its stdin; it leaves then. Tapes whether somebody reads."""
        fd, deadline = -1, time.monotonic() + PATIENCE
        while fd < 0 and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # nobody has opened the other end yet
                fd = os.open(self.outside / "stdin", os.O_WRONLY | os.O_NONBLOCK)
        if fd >= 0:
            os.write(fd, data)
            os.close(fd)
        self.subject.tape.put(f"stdin {self.name}", {"taken": str(fd >= 0)})

    def output(self, stream: str = "stdout") -> None:
        """Tape what it writes up to the end of file."""
        self.subject.tape.put(f"{stream} {self.name}", {"bytes": repr(self.read(stream))})

    def line(self, stream: str = "stdout") -> str:
        """Tape the next line it writes, which is also returned."""
        line = self.read_line(stream).decode().strip()
        self.subject.tape.put(f"{stream} {self.name}", {"line": line})
        return line


class Exec(Process):
    """A process that is put into a container."""

    def add(self, process: Any, *, url: str = PROCESS_URL, **fields: Any) -> None:
        """Exec; `process` is an OCI Process, or bytes in its place."""
        data = process if isinstance(process, bytes) else json.dumps(process).encode()
        self.call("Exec", spec=any_pb2.Any(type_url=url, value=data), **fields)


class Container(Process):
    """A container, with the calls that only its init process knows."""

    def __init__(self, subject: Subject, container: str, spec: dict[str, Any]) -> None:
        super().__init__(subject, container)
        self.spec = spec
        self.execs: list[Exec] = []
        record = {
            "id": container,
            "runtime": {"name": subject.runtime},
            "spec": any_pb2.Any(type_url=SPEC_URL, value=json.dumps(spec).encode()),
        }
        subject.client.call(CONTAINERS, "Create", container=record)

    @property
    def id(self) -> str:
        """Its id for containerd, whatever the scenario calls it."""
        return str(self.ids["container_id"])

    def create(self, **fields: Any) -> Any:
        """Create, with the read-only busybox as rootfs."""
        mounts = [{"type": "bind", "source": ROOTFS, "options": ["rbind", "ro"]}]
        return self.call("Create", **{"rootfs": mounts, **fields})

    def exec(self, exec_id: str, *command: str, more: Any = None, **fields: Any) -> Exec:
        """Exec of a command; `more` are further keys of its OCI Process."""
        made = self.added(exec_id)
        made.add({**self.spec["process"], "args": list(command), **(more or {})}, **fields)
        return made

    def added(self, exec_id: str) -> Exec:
        """An exec that containerd knows nothing of yet."""
        made = Exec(self.subject, self.ids["container_id"], exec_id)
        self.execs.append(made)
        return made

    def pause(self) -> None:
        self.call("Pause")

    def resume(self) -> None:
        self.call("Resume")

    def checkpoint(self, **wished: Any) -> None:
        options = runc_pb2.CheckpointOptions(**wished)
        url = options.DESCRIPTOR.full_name
        value = any_pb2.Any(type_url=url, value=options.SerializeToString())
        self.call("Checkpoint", options=value)

    def update(self, resources: Any, url: str = RESOURCES_URL) -> None:
        data = resources if isinstance(resources, bytes) else json.dumps(resources).encode()
        self.call("Update", resources=any_pb2.Any(type_url=url, value=data))

    def pids(self) -> None:
        """Tape whose processes there are, in the order of the names."""
        future = self.begin("ListPids")
        future.told()

    def stats(self) -> None:
        """Tape which messages and which limits the metrics have."""
        self.subject.stats(self)


class Subject:
    """A shim in a containerd namespace of its own."""

    def __init__(
        self, host: Host, client: Containerd, events: Mailbox, runtime: str, namespace: str
    ) -> None:
        self.host = host
        self.client = client
        self.runtime = runtime
        self.namespace = namespace
        self._events = events
        self._containers: list[Container] = []
        self._scenario = 0
        self._at_once = False
        self.tape = Tape({})

    def run(self, scenario: Callable[[Subject], None]) -> Tape:
        """Run a scenario, end what it leaves, and tape the events."""
        self._scenario += 1
        self._at_once = False
        self.tape = Tape({self.namespace: "NS", self.runtime: "RUNTIME", self._suffix: ""})
        self._containers = []
        before = len(self._events.seen)
        try:
            scenario(self)
        finally:
            for container in self._containers:
                self._end(container)
        self._tape_events(before)
        return self.tape

    @property
    def _suffix(self) -> str:
        """Of all ids of a scenario: what one has left behind does not spoil the next."""
        return f".s{self._scenario}"

    def container(self, name: str, *command: str, **spec: Any) -> Container:
        """A container that is not created yet; `spec` replaces keys of its OCI spec."""
        whole = spec_of(*(command or ("sleep", "1000")))
        whole["root"] = {"path": "rootfs", "readonly": True}
        id_ = name + self._suffix
        whole["linux"]["cgroupsPath"] = f"/{self.namespace}/{id_}"
        for key, value in copy.deepcopy(spec).items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
        made = Container(self, id_, whole)
        self._containers.append(made)
        return made

    def running(self, id_: str = "c", *command: str, **spec: Any) -> Container:
        """One that runs."""
        made = self.container(id_, *command, **spec)
        made.create()
        made.start()
        return made

    def at_once(self) -> None:
        """The scenario's processes run beside each other: only the order of each one's events is
        compared."""
        self._at_once = True

    def pid(self, name: str) -> int:
        """The pid of a container's init, or of an exec (`c:x`)."""
        return next(number for number, found in self.tape.pids.items() if found == name)

    def answered(self, step: str, future: Any, seconds: float) -> Any:
        """Tape the answer of a call under way, and return it; None for an error."""
        try:
            answer = future.result(timeout=seconds)
        except grpc.RpcError as error:
            said = {"code": error.code().name, "text": self.tape.text(error.details() or "")}
            self.tape.put(step, said)
            return None
        except (NotYet, grpc.FutureTimeoutError):
            self.tape.put(step, {"code": "no answer"})
            return None
        return self._tape_answer(step, answer)

    def _tape_answer(self, step: str, answer: Any) -> Any:
        if step.startswith("Create "):
            self.tape.pids[answer.pid] = step.removeprefix("Create ")
        elif step.startswith("Start "):
            self.tape.pids.setdefault(answer.pid, step.removeprefix("Start "))
        told = {"code": "OK"}
        if step.startswith("ListPids "):
            told["processes"] = ", ".join(sorted(self._process_of(p) for p in answer.processes))
        else:
            told |= self.tape.flat(answer)
        if "process.status" in told:
            told["process.status"] = task_types_pb2.Status.Name(answer.process.status)
        self.tape.put(step, told)
        return answer

    def _process_of(self, found: Any) -> str:
        details = runc_pb2.ProcessDetails.FromString(found.info.value)
        word = self.tape.pid(found.pid)
        return f"{word} ({found.info.type_url} {details.exec_id})" if details.exec_id else word

    def stats(self, container: Container) -> None:
        """Tape which messages of a container's metrics are there, and its limits."""
        future = self.client.begin(TASKS, "Metrics", filters=[f"id=={container.id}"])
        step = f"Metrics {container.name}"
        try:
            (metric,) = future.result(timeout=PATIENCE).metrics or (None,)
        except grpc.RpcError as error:
            self.tape.put(step, {"code": error.code().name, "text": error.details() or ""})
            return
        if metric is None:
            self.tape.put(step, {"code": "OK", "metrics": "none"})
            return
        message = METRICS[metric.data.type_url].FromString(metric.data.value)
        there = dict.fromkeys(_messages(message, ""), "there")
        self.tape.put(step, {"code": "OK", "type": metric.data.type_url, **there})

    # --- the end of a scenario

    def _end(self, container: Container) -> None:
        """What a scenario leaves is killed and deleted, without a word on the tape."""
        ids = container.ids
        call = self.client.call
        try:
            state = call(TASKS, "Get", **ids).process
            if state.status == task_types_pb2.PAUSED:
                call(TASKS, "Resume", **ids)  # on v1 the frozen do not die
            if state.status != task_types_pb2.STOPPED:
                # by its pid: stock loses a container whose runtime state was removed
                self.host.run(["kill", "-9", str(state.pid)], check=False)
                call(TASKS, "Wait", **ids, timeout=PATIENCE)
            call(TASKS, "Delete", **ids)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        call(CONTAINERS, "Delete", id=ids["container_id"])
        for process in (container, *container.execs):
            process.close()
            shutil.rmtree(process.outside, ignore_errors=True)

    def _tape_events(self, before: int) -> None:
        for container in self._containers:
            id_ = container.id
            seen = self._until_deleted(id_, before)
            order = [_topic(event) for event in seen]
            if self._at_once:  # stable: each one's own order stays
                order.sort(key=lambda topic: topic.partition(":")[2])
            self.tape.put(self.tape.text(f"events {id_}"), {"order": " ".join(_settled(order))})
            for event in seen:
                self.tape.put(
                    self.tape.text(f"event {_topic(event)} of {id_}"), self.tape.flat(event.body)
                )

    def _until_deleted(self, id_: str, before: int) -> list[Event]:
        def mine() -> list[Event]:
            seen = self._events.seen[before:]
            return [e for e in seen if (e.namespace, e.body.container_id) == (self.namespace, id_)]

        def done() -> bool:
            topics = [event.topic for event in mine()]
            return topics.count("/tasks/create") <= topics.count("/tasks/delete")

        # stock may leave before its last event is out: waiting longer does not help
        self._events.wait_for(done, PATIENCE if self.runtime == OURS else 1.0)
        return mine()


def _topic(event: Event) -> str:
    """`exit`, or `exit:x1` of an exec."""
    body = event.body
    name = getattr(body, "exec_id", "") or getattr(body, "id", "")
    who = f":{name}" if name and name != body.container_id else ""
    return event.topic.removeprefix("/tasks/") + who


def _settled(order: list[str]) -> list[str]:
    """Execs that end together do so in any order: neighbours of that kind are sorted."""
    made: list[str] = []
    run: list[str] = []
    for topic in [*order, ""]:
        if topic.startswith("exit:"):
            run.append(topic)
            continue
        made += sorted(run)
        run = []
        made += [topic] if topic else []
    return made


def _messages(message: Any, prefix: str) -> list[str]:
    """Names of the messages that are set in a message, and of its limits that are."""
    found = []
    for one, value in message.ListFields():
        name = prefix + one.name
        if one.message_type and hasattr(value, "ListFields"):
            found += [name, *_messages(value, f"{name}.")]
        elif one.message_type:
            found.append(f"{name}[]")
        elif "limit" in one.name:
            found.append(f"{name}={value}")
    return found
