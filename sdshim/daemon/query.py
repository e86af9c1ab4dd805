"""Calls that change nothing: State, Pids, Connect; answered from memory, at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import sdshim
from sdshim.core.lifecycle import Phase
from sdshim.daemon import exits, pause
from sdshim.daemon.process import Exec, Task
from sdshim.daemon.teardown import set_time
from sdshim.host import cgroup
from sdshim.pb import runc_pb2, task_types_pb2
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import pack

if TYPE_CHECKING:
    from sdshim.core.model import ExitStatus
    from sdshim.core.names import TaskKey
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process

STATUS = {
    Phase.CREATING: task_types_pb2.UNKNOWN,
    Phase.CREATED: task_types_pb2.CREATED,
    Phase.STARTING: task_types_pb2.CREATED,
    Phase.RESTORING: task_types_pb2.CREATED,
    Phase.RUNNING: task_types_pb2.RUNNING,
    Phase.CHECKPOINTING: task_types_pb2.RUNNING,
    Phase.PAUSING: task_types_pb2.PAUSING,
    Phase.PAUSED: task_types_pb2.PAUSED,
    Phase.CHECKPOINTING_PAUSED: task_types_pb2.PAUSED,
    Phase.EXITED: task_types_pb2.STOPPED,
    Phase.DELETED: task_types_pb2.STOPPED,
}


def state(task: Process) -> bytes:
    """StateResponse; the pid stays after the exit (protocol 3.2). Of an exec, `id` is its own id
    and `exec_id` is empty, as stock has it."""
    me = task.identity
    message = pb.StateResponse(
        id=me.exec_id or me.id,
        bundle=me.bundle,
        pid=task.pid,
        status=_status(task),
        stdin=me.stdio.stdin,
        stdout=me.stdio.stdout,
        stderr=me.stdio.stderr,
        terminal=me.stdio.terminal,
        exit_status=task.exit.status if task.exit else 0,
    )
    set_time(message.exited_at, task.exit)
    return message.SerializeToString()


def _status(process: Process) -> Any:
    """An exec, whatever its own state, is paused with its container, as stock has it."""
    task = process.task if isinstance(process, Exec) else process
    if isinstance(task, Task) and pause.is_paused(task):
        return STATUS[Phase.PAUSED if task.phase is Phase.RUNNING else task.phase]
    return STATUS[Phase.RUNNING if process.phase is Phase.PAUSED else process.phase]


def pids(task: Task) -> bytes:
    """PidsResponse: every process in the container's cgroup; init's pid when it has ended, so
    that containerd keeps a stopped task over its own restart (protocol 1.7)."""
    found = [] if exits.is_over(task) else cgroup.pids(task.identity.cgroup)
    processes = [task_types_pb2.ProcessInfo(pid=pid) for pid in found or [task.pid]]
    execs = {child.pid: exec_id for exec_id, child in task.execs.items() if child.pid}
    for process in processes:
        exec_id = execs.get(process.pid)
        if exec_id:
            process.info.CopyFrom(pack(runc_pb2.ProcessDetails(exec_id=exec_id)))
    return pb.PidsResponse(processes=processes).SerializeToString()


def connect(node: Node, key: TaskKey) -> bytes:
    """ConnectResponse; an unknown task is a success with pid 0 (protocol 3.4)."""
    task = node.tasks.get(key)
    message = pb.ConnectResponse(
        shim_pid=os.getpid(), task_pid=task.pid if task else 0, version=sdshim.__version__
    )
    return message.SerializeToString()


async def wait(task: Process) -> bytes:
    """WaitResponse, once the exit is known; any number of times until Delete."""
    await task.exited.wait()
    return wait_response(task.record.life.exit)


def wait_response(exit: ExitStatus | None) -> bytes:
    """WaitResponse of an exit."""
    message = pb.WaitResponse(exit_status=exit.status if exit else 0)
    set_time(message.exited_at, exit)
    return message.SerializeToString()
