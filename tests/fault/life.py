"""One container's life through containerd's API, as planned, judged call by call."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2

from tests.bench.exits import PROCESS_TYPE
from tests.bench.lives import OURS
from tests.fault.field import FOLDER
from tests.tools.containerd import TASKS
from tests.tools.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fault.field import Field
    from tests.fault.plan import End, Plan

ANSWER = 10.0
"""Seconds after which a call counts as hung."""
CREATED, RUNNING, STOPPED = 1, 2, 3
TYPED = b"hello\n"
CALLS = "/run/sdshim/calls"
CLOSED = re.compile(r"ttrpc: closed|connection reset|EOF")


class Fault(Exception):
    """Something is wrong with a life; `kind` as the tally has it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Cut(Exception):
    """The connection of a task that is being made was closed before the daemon had read anything:
    it died between accept and systemd's fd store."""


class NotMade(Exception):
    """containerd went while it made the task, and no task has come of it. containerd 1.6 keeps an
    entry for it all the same, as it would of any shim (protocol 1.7): only Delete removes that."""


@dataclass(slots=True)
class Expected:
    """What containerd must have told of a life."""

    name: str
    begun: float
    ended: float
    exits: dict[str, tuple[int, int, Any]]
    """Exec id (or nothing for init) → pid, status and time of its end, in the order of the ends."""


class Life:
    """One container; `run` returns what events it must have had, or None after a fault."""

    def __init__(self, field: Field, plan: Plan) -> None:
        self._field = field
        self._client = field.client
        self._plan = plan
        self.name = ""
        self._exits: dict[str, tuple[int, int, Any]] = {}
        self._streams: list[Streams] = []

    def run(self) -> Expected | None:
        """From Create to Delete."""
        begun = time.monotonic()
        tally = self._field.tally
        try:
            self._live()
        except Cut as error:
            tally.count("cut")
            print(f"  cut: {self.name}: {error}", flush=True)
            self._abandon()
        except NotMade:
            self._abandon()
        except Fault as error:
            tally.fault(error.kind, f"{self.name}: {error}")
            self._abandon()
        else:
            tally.count("containers")
            return Expected(self.name, begun, time.monotonic(), self._exits)
        finally:
            for streams in self._streams:
                streams.close()
            if self.name:
                shutil.rmtree(self._field.host.path(f"{FOLDER}/{self.name}"), ignore_errors=True)
        return None

    # --- steps

    def _live(self) -> None:
        plan = self._plan
        me = {"container_id": self._make()}
        streams = self._fifos("init", plan.terminal)
        pid = self._create(me, streams)
        waiting = self._wait(me)
        self._call("Start", done=self._at_least(me, RUNNING), **me)
        if plan.terminal:
            self._type(streams)
        for number, end in enumerate(plan.execs):
            self._exec(f"e{number}", end)
        if plan.stats:
            self._stats()
        if plan.init.signal:
            self._check_running(pid)
            self._await_output(streams)
            fields = {**me, "signal": plan.init.signal, "all": plan.kill_all}
            self._call("Kill", done=self._at_least(me, STOPPED), **fields)
        self._ended(me, "", pid, plan.init, waiting)
        self._judge_output("init", streams, plan.init)
        self._containers_own(self._remove)

    def _make(self) -> str:
        """A container without a task, and its folder."""
        init = self._plan.init
        command = init.command
        if self._plan.terminal:
            command = ["sh", "-c", f'read -r line; echo "got $line"; exit {init.code}']

        def make(again: bool) -> None:  # by another name then
            self.name, self._mounts = self._field.bench.make(
                OURS, *command, terminal=self._plan.terminal
            )

        self._containers_own(make)
        self._field.host.path(f"{FOLDER}/{self.name}").mkdir()
        return self.name

    def _create(self, me: dict[str, str], streams: Streams) -> int:
        fields: dict[str, Any] = {**me, "rootfs": self._mounts, **self._paths(streams)}
        try:
            created = self._call("Create", done=self._made(me), **fields)
        except grpc.RpcError as error:
            if not self._was_cut(error):
                raise self._fault("Create", error) from error
            raise Cut(error.details()) from error
        return int(created.pid)

    def _was_cut(self, error: grpc.RpcError) -> bool:
        """The connection was closed, and no call for this task was ever read from it."""
        if not CLOSED.search(error.details() or ""):
            return False
        name = self.name.encode()
        read = b"Create.{4}default.{4}\n" + re.escape(bytes([len(name)]) + name)
        return not re.search(read, self._field.host.path(CALLS).read_bytes(), re.DOTALL)

    def _exec(self, exec_id: str, end: End) -> None:
        one = {"container_id": self.name, "exec_id": exec_id}
        process = {**self._field.bench.spec["process"], "args": end.command, "terminal": False}
        spec = any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode())
        streams = self._fifos(exec_id, terminal=False)
        made = self._at_least(one, CREATED)
        self._call("Exec", done=made, spec=spec, **self._paths(streams), **one)
        waiting = self._wait(one)
        started = self._call("Start", done=self._at_least(one, RUNNING), **one)
        if end.signal:
            self._await_output(streams)  # its handlers are the default ones once it speaks
            self._call("Kill", done=self._at_least(one, STOPPED), signal=end.signal, **one)
        self._ended(one, exec_id, int(started.pid), end, waiting)
        self._judge_output(exec_id, streams, end)
        self._field.tally.count("execs")

    def _ended(
        self, one: dict[str, str], exec_id: str, pid: int, end: End, waiting: Callable[[], Any]
    ) -> None:
        """Wait, State and Delete tell the same end, the planned one."""
        who = exec_id or "init"
        exited = waiting()
        if exited.exit_status != end.code:
            raise Fault("wrong", f"{who}: Wait {exited.exit_status}, not {end.code}")
        self._exits[exec_id] = (pid, end.code, exited.exited_at)
        method = "DeleteProcess" if exec_id else "Delete"
        deleted = self._call(method, done=self._gone(one), **one)
        if deleted is not None and (deleted.exit_status, deleted.exited_at) != (
            exited.exit_status,
            exited.exited_at,
        ):
            raise Fault("wrong", f"{who}: Delete tells {deleted}, Wait told {exited}")

    def _check_running(self, pid: int) -> None:
        """containerd waits 2 s for a State (its `task.state`), then it says that it knows none."""
        until = time.monotonic() + ANSWER
        while True:
            state = self._call("Get", container_id=self.name).process
            if state.status or time.monotonic() > until:
                break
            self._field.tally.count("repeated")
        if (state.status, state.pid) != (RUNNING, pid):
            raise Fault("wrong", f"State {state.status} of pid {state.pid}, not {pid} running")

    def _stats(self) -> None:
        found = self._call("Metrics", filters=[f"id=={self.name}"])
        if len(found.metrics) != 1:
            raise Fault("wrong", f"{len(found.metrics)} stats of one container")

    # --- streams

    def _fifos(self, who: str, terminal: bool) -> Streams:
        path = f"{FOLDER}/{self.name}/{who}"
        streams = Streams(path, self._field.host.path(path))
        streams.outside.mkdir()
        self._streams.append(streams)
        streams.fifo("stdout")
        if terminal:
            streams.fifo("stdin")
        return streams

    def _paths(self, streams: Streams) -> dict[str, Any]:
        if not (streams.outside / "stdin").exists():
            return {"stdout": f"{streams.path}/stdout"}
        return {
            "stdin": f"{streams.path}/stdin",
            "stdout": f"{streams.path}/stdout",
            "terminal": True,
        }

    def _type(self, streams: Streams) -> None:
        fd = os.open(streams.outside / "stdin", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, TYPED)
        finally:
            os.close(fd)

    def _await_output(self, streams: Streams) -> None:
        try:
            said = streams.read_line("stdout", ANSWER)
        except AssertionError as error:
            raise Fault("lost", f"output of {streams.path}: {error}") from error
        if said != b"one\n":
            raise Fault("wrong", f"output of {streams.path}: {said!r}")

    def _judge_output(self, who: str, streams: Streams, end: End) -> None:
        try:
            said = streams.read("stdout", ANSWER)
        except AssertionError as error:
            raise Fault("lost", f"output of {who}: {error}") from error
        wanted = b"" if end.signal else end.output
        if self._plan.terminal:
            wanted = b"hello\r\ngot hello\r\n"
        if said != wanted:
            raise Fault("wrong", f"output of {who}: {said!r}, not {wanted!r}")

    # --- calls

    def _wait(self, one: dict[str, str]) -> Callable[[], Any]:
        """Wait, begun now; the function gives its answer, which must come within 10 s of then."""
        epoch = self._field.containerd_is_there()
        call = self._client.begin(TASKS, "Wait", timeout=600, **one)

        def answer() -> Any:
            nonlocal epoch, call
            while True:
                try:
                    return call.result(ANSWER)
                except grpc.FutureTimeoutError:
                    call.cancel()
                    raise Fault("hung", f"Wait of {one}") from None
                except grpc.RpcError as error:
                    if epoch == self._field.epoch:
                        raise self._fault("Wait", error) from error
                epoch = self._field.containerd_is_there()
                call = self._client.begin(TASKS, "Wait", timeout=600, **one)

        return answer

    def _call(self, method: str, *, done: Callable[[], Any] | None = None, **fields: Any) -> Any:
        """One call. When containerd went meanwhile `done` looks whether it was done nevertheless
        (what it returns stands for the answer); if not it is made again."""
        while True:
            epoch = self._field.containerd_is_there()
            begun = time.monotonic()
            try:
                return self._client.call(TASKS, method, timeout=ANSWER, **fields)
            except grpc.RpcError as error:
                if epoch == self._field.epoch:
                    if method == "Create":
                        raise
                    raise self._fault(method, error) from error
            self._field.containerd_is_there()
            self._field.tally.count("repeated")
            found = done() if done else (False, None)
            if found[0]:
                return found[1]
            print(f"  {method} of {self.name} again, after {time.monotonic() - begun:.1f} s")

    def _at_least(self, one: dict[str, str], status: int) -> Callable[[], tuple[bool, Any]]:
        """The process has come so far; its state."""

        def look() -> tuple[bool, Any]:
            state = self._state(one)
            return (state is not None and state.status >= status, state)

        return look

    def _made(self, me: dict[str, str]) -> Callable[[], tuple[bool, Any]]:
        """The task that a cut Create has made, or still makes."""

        def look() -> tuple[bool, Any]:
            deadline = time.monotonic() + ANSWER
            while (state := self._state(me)) is not None and state.status < CREATED:
                if time.monotonic() > deadline:
                    raise Fault("hung", "Create, after containerd had gone")
                time.sleep(0.02)
            if state is None:
                raise NotMade
            return True, state

        return look

    def _gone(self, one: dict[str, str]) -> Callable[[], tuple[bool, Any]]:
        return lambda: (self._state(one) is None, None)

    def _state(self, one: dict[str, str]) -> Any:
        try:
            return self._client.call(TASKS, "Get", timeout=ANSWER, **one).process
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise self._fault("Get", error) from error

    def _remove(self, again: bool) -> None:
        self._client.remove_container(self.name, again=again)

    def _containers_own(self, work: Callable[[bool], None]) -> None:
        """containerd's part, without a shim: again when containerd went meanwhile."""
        again = False
        while True:
            epoch = self._field.containerd_is_there()
            try:
                return work(again)
            except grpc.RpcError as error:
                if epoch == self._field.epoch:
                    raise self._fault("containerd's own call", error) from error
            self._field.tally.count("repeated")
            again = True

    def _fault(self, method: str, error: Any) -> Fault:
        code, text = error.code(), f"{method}: {error.code().name}: {error.details()}"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return Fault("hung", text)
        lost = code == grpc.StatusCode.NOT_FOUND or CLOSED.search(error.details() or "")
        return Fault("lost" if lost else "wrong", text)

    def _abandon(self) -> None:
        """After a fault: nothing of it may disturb the others."""
        me = {"container_id": self.name}
        for method, fields in (("Kill", {"signal": 9, "all": True}), ("Wait", {}), ("Delete", {})):
            with suppress(grpc.RpcError, TimeoutError):
                self._field.containerd_is_there()
                self._client.call(TASKS, method, timeout=5, **me, **fields)
        with suppress(grpc.RpcError):
            self._remove(again=True)
