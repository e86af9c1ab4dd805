"""Operations to die in: each prepared, done with the daemon dying meanwhile, judged, cleaned up.

A scene is a function of a Stage (stage.py). What it does after `stage.curtain()` may meet a dying
daemon; after `stage.call(…)` everything must be as if nothing had happened.
"""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import ShimError
from sdshim.pb import task_types_pb2 as pb
from sdshim.pb import types_pb2
from tests.fault.drill import up
from tests.fault.stage import PATIENCE
from tests.system.checkpoints import HELD_FAILS, begin_restore, counting, fake_criu, images, say
from tests.system.checkpoints import options as checkpoint_options
from tests.system.taskclient import ROOTFS, eventually, exec_spec, spec_of
from tests.system.test_update import _any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.fault.stage import Stage

FRAME = 3 << 20
"""Bytes of the large request."""
EXEC_LOST = "exec that loses its terminal"
LIFE = ["create", "start", "exit"]


def _create(stage: Stage) -> None:
    bundle = stage.bundle("sh", "-c", "read x; echo got $x; echo err >&2; exit 7")
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    stage.curtain()
    made = stage.call("Create", bundle=bundle.path, **streams)
    assert made.pid > 0
    state = stage.call("State")
    assert (state.status, state.pid, state.bundle) == (pb.CREATED, made.pid, bundle.path)
    stage.call("Start")
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    os.write(bundle.ends["stdin"], b"it\n")
    assert bundle.read_line("stdout") == b"got it\n"
    stage.end(7)
    assert (bundle.read("stdout"), bundle.read("stderr")) == (b"", b"err\n")


def _create_mounts(stage: Stage) -> None:
    bundle = stage.bundle("sh", "-c", "exit 7", root={"path": "rootfs"})
    mount = types_pb2.Mount(type="bind", source=ROOTFS, options=["rbind", "ro"])
    stage.curtain()
    stage.call("Create", bundle=bundle.path, rootfs=[mount])
    stage.call("Start")
    stage.end(7)
    assert not list((bundle.outside / "rootfs").iterdir())


def _create_fails(stage: Stage) -> None:
    bundle = stage.bundle("/no/such/program")
    stage.curtain()
    code, text = stage.fails("Create", bundle=bundle.path)
    assert code == 2
    assert text.startswith("OCI runtime create failed: "), text
    assert "no such file or directory" in text
    assert stage.fails("State")[0] == 5
    stage.told()


def _terminal_spec(*command: str) -> dict[str, Any]:
    spec = spec_of(*command)
    spec["process"]["terminal"] = True
    kind = {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
    spec["mounts"].append({**kind, "options": ["newinstance", "ptmxmode=0666", "mode=0620"]})
    return spec


def _terminal(stage: Stage) -> None:
    bundle = stage.rig.bundle(
        stage.id, spec=_terminal_spec("sh", "-c", "stty -echo; read x; stty size; exit 7")
    )
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    stage.curtain()
    stage.call("Create", bundle=bundle.path, terminal=True, **streams)
    stage.call("Start")
    stage.call("ResizePty", width=91, height=33)
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    os.write(bundle.ends["stdin"], b"go\n")
    said = b""
    while b"33 91" not in said:
        said += bundle.read_line("stdout", PATIENCE)
    stage.end(7)


def _start(stage: Stage) -> None:
    stage.create("sh", "-c", "exit 7")
    end = stage.begin("Wait")
    stage.curtain()
    stage.call("Start")
    assert end.result(PATIENCE).exit_status == 7
    stage.end(7)


def _start_lasting(stage: Stage) -> None:
    stage.create()
    stage.curtain()
    stage.call("Start")
    stage.status(pb.RUNNING)
    stage.end(137)


def _exec(stage: Stage) -> None:
    bundle = stage.run()
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    spec = exec_spec("sh", "-c", "read x; echo got $x; exit 9")
    stage.curtain()
    stage.call("Exec", exec_id="e", spec=spec, **streams)
    assert stage.call("Start", exec_id="e").pid > 0
    stage.status(pb.RUNNING, exec_id="e")
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    os.write(bundle.ends["stdin"], b"it\n")
    assert bundle.read_line("stdout", PATIENCE) == b"got it\n"
    assert stage.call("Wait", exec_id="e").exit_status == 9
    assert stage.call("Delete", exec_id="e").exit_status == 9
    assert stage.fails("State", exec_id="e")[0] == 5
    stage.end(137, between=("exec-added", "exec-started", "exit"))


def _exec_short(stage: Stage) -> None:
    stage.run()
    stage.call("Exec", exec_id="e", spec=exec_spec("sh", "-c", "exit 9"))
    end = stage.begin("Wait", exec_id="e")
    stage.curtain()
    stage.call("Start", exec_id="e")
    assert end.result(PATIENCE).exit_status == 9
    assert stage.call("Delete", exec_id="e").exit_status == 9
    stage.end(137, between=("exec-added", "exec-started", "exit"))


def _exec_fails(stage: Stage) -> None:
    stage.run()
    stage.call("Exec", exec_id="e", spec=exec_spec("/no/such/program"))
    stage.curtain()
    code, text = stage.fails("Start", exec_id="e")
    assert code == 2
    assert text.startswith("OCI runtime exec failed: "), text
    stage.call("Delete", exec_id="e")
    stage.end(137, between=("exec-added",))


def _start_exec(stage: Stage) -> None:
    assert stage.call("Start", exec_id="e").pid > 0


def _start_again(stage: Stage) -> None:
    """A daemon that dies between accept() and the fd store takes the terminal along, and the
    process, which runs by then, ends by SIGHUP: an error, after which it can be started again."""
    for _ in range(9):
        error = stage.begin("Start", exec_id="e").exception(PATIENCE)
        if error is None:
            return
        assert re.search(r"^the terminal of .* is lost", str(error)), error
        stage.status(pb.CREATED, exec_id="e")
    raise AssertionError("it never has a terminal")


def _exec_terminal(stage: Stage, start: Callable[[Stage], None] = _start_exec) -> None:
    spec = _terminal_spec("sh", "-c", "stty -echo; read x; stty size; exit 9")
    sleeps = spec | {"process": spec_of("sleep", "1000")["process"]}
    bundle = stage.rig.bundle(stage.id, spec=sleeps)
    stage.call("Create", bundle=bundle.path)
    stage.call("Start")
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    process = exec_spec(*spec["process"]["args"])
    stage.curtain()
    stage.call("Exec", exec_id="e", spec=process, terminal=True, **streams)
    stage.call("ResizePty", exec_id="e", width=91, height=33)
    start(stage)
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    os.write(bundle.ends["stdin"], b"go\n")
    said = b""
    while b"33 91" not in said:
        said += bundle.read_line("stdout", PATIENCE)
    assert stage.call("Wait", exec_id="e").exit_status == 9
    stage.call("Delete", exec_id="e")
    stage.end(137, between=("exec-added", "exec-started", "exit"))


def _large(stage: Stage) -> None:
    stage.run()
    spec = exec_spec("sh", "-c", "exit 9", env=["PATH=/bin", "FILL=" + "x" * FRAME])
    ends = [stage.begin("Wait") for _ in range(3)]
    stage.curtain()
    call = stage.begin("Exec", exec_id="big", spec=spec)
    behind = stage.begin("State")
    call.result(PATIENCE)
    assert behind.result(PATIENCE).status == pb.RUNNING
    stage.call("Delete", exec_id="big")
    stage.end(137, between=("exec-added",))
    assert [end.result(PATIENCE).exit_status for end in ends] == [137] * 3


def _kill(stage: Stage) -> None:
    stage.run()
    end = stage.begin("Wait")
    stage.curtain()
    stage.call("Kill", signal=signal.SIGKILL)
    assert end.result(PATIENCE).exit_status == 137
    deleted = stage.call("Delete")
    assert deleted.exit_status == 137
    stage.told(*LIFE, "delete")


def _kill_all(stage: Stage) -> None:
    stage.run("sh", "-c", "sleep 1000 & wait")
    stage.curtain()
    stage.call("Kill", signal=signal.SIGKILL, all=True)
    assert stage.call("Wait").exit_status == 137
    stage.call("Delete")
    stage.told(*LIFE, "delete")


def _kill_exec(stage: Stage) -> None:
    stage.run()
    stage.call("Exec", exec_id="e", spec=exec_spec("sleep", "1000"))
    stage.call("Start", exec_id="e")
    stage.curtain()
    stage.call("Kill", exec_id="e", signal=signal.SIGKILL)
    assert stage.call("Wait", exec_id="e").exit_status == 137
    stage.call("Delete", exec_id="e")
    stage.status(pb.RUNNING)
    stage.end(137, between=("exec-added", "exec-started", "exit"))


def _delete(stage: Stage) -> None:
    bundle = stage.create("sh", "-c", "exit 7")
    stage.call("Exec", exec_id="e", spec=exec_spec("true"))
    stage.call("Start")
    waited = stage.call("Wait")
    stage.curtain()
    deleted = stage.call("Delete")
    assert (deleted.exit_status, deleted.exited_at) == (7, waited.exited_at)
    assert stage.fails("Delete")[0] == 5
    assert not stage.rig.unit_exists(stage.id)
    stage.told("create", "exec-added", "start", "exit", "delete")
    assert stage.rig.give_up(bundle).exit_status == 7  # containerd's, after each Delete
    again = stage.bundle("sh", "-c", "exit 3")  # the id can be used again
    stage.call("Create", bundle=again.path)
    stage.call("Start")
    stage.end(3, "create", "exec-added", "start", "exit", "delete", *LIFE, "delete")


def _delete_unstarted(stage: Stage) -> None:
    stage.create()
    stage.curtain()
    assert stage.call("Delete").exit_status == 137
    stage.told("create", "exit", "delete")


def _pause(stage: Stage) -> None:
    stage.run()
    stage.curtain()
    stage.call("Pause")
    stage.status(pb.PAUSED)
    stage.call("Resume")
    stage.status(pb.RUNNING)
    stage.end(137, between=("paused", "resumed"))


def _resume(stage: Stage) -> None:
    stage.run()
    stage.call("Pause")
    stage.curtain()
    stage.call("Resume")
    stage.status(pb.RUNNING)
    stage.end(137, between=("paused", "resumed"))


def _update(stage: Stage) -> None:
    stage.run()
    limits = {"pids": {"limit": 20}} if stage.host.cgroup == "v1" else {}
    stage.curtain()
    stage.call("Update", resources=_any(limits))
    if limits:
        show = ["systemctl", "show", "-P", "TasksMax", f"sdshim-default-{stage.id}.service"]
        eventually(lambda: stage.host.run(show).stdout.strip() == "20", "the unit's limit")
    stage.end(137)


def _checkpoint(stage: Stage) -> None:
    with images(stage.host) as folder:
        bundle = counting(stage.rig, stage.id)
        stage.curtain()
        stage.call("Checkpoint", path=folder)
        stage.status(pb.RUNNING)
        number = int(bundle.read_line("stdout", PATIENCE))
        assert int(bundle.read_line("stdout", PATIENCE)) == number + 1
        stage.end(137, between=("checkpointed",))


def _checkpoint_ends(stage: Stage) -> None:
    """criu ends the container when it has written it down."""
    with images(stage.host) as folder:
        counting(stage.rig, stage.id)
        end = stage.begin("Wait")
        stage.curtain()
        stage.call("Checkpoint", path=folder, options=checkpoint_options(exit=True))
        assert end.result(PATIENCE).exit_status == 137
        stage.status(pb.STOPPED)
        assert stage.call("Delete").exit_status == 137
        stage.told("create", "start", "checkpointed", "exit", "delete")


def _restore(stage: Stage) -> None:
    with images(stage.host) as folder:
        old = f"{stage.id}-old"
        counting(stage.rig, old, "i=0; while read -r x; do i=$((i+1)); echo $x $i; done; exit 5")
        stage.rig.call("Checkpoint", id=old, path=folder, options=checkpoint_options(exit=True))
        stage.rig.call("Delete", id=old)
        stage.curtain()
        new, call = begin_restore(stage.rig, stage.id, folder)
        assert call.result(PATIENCE).pid == 0
        stage.status(pb.CREATED)
        pid = stage.call("Start").pid
        state = stage.call("State")
        assert (state.pid, state.status) == (pid, pb.RUNNING)
        say(new, b"it\n")
        assert new.read_line("stdout", PATIENCE) == b"it 1\n"
        stage.call("CloseIO", stdin=True)
        os.close(new.ends.pop("stdin"))
        stage.end(5)
        assert not list((new.outside / "rootfs").iterdir())


def _checkpoint_fails(stage: Stage) -> None:
    with fake_criu(stage.host, HELD_FAILS) as options, images(stage.host) as folder:
        bundle = stage.bundle("sh", "-c", "while :; do sleep 0.1; done")
        stage.call("Create", bundle=bundle.path, options=options)
        stage.call("Start")
        stage.curtain()
        code, text = stage.fails("Checkpoint", path=folder)
    assert code == 2
    assert text.startswith("runc did not terminate successfully: "), text
    stage.status(pb.RUNNING)
    stage.end(137)


def _close_io(stage: Stage) -> None:
    bundle = stage.bundle("sh", "-c", "cat; exit 7")
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    stage.call("Create", bundle=bundle.path, **streams)
    stage.call("Start")
    stdin = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    os.write(stdin, b"last words\n")
    stage.curtain()
    stage.call("CloseIO", stdin=True)
    os.close(stdin)
    assert bundle.read("stdout", PATIENCE) == b"last words\n"
    stage.end(7)


def _wait(stage: Stage) -> None:
    """The exit comes while daemons die: its time and status are told by systemd or the hook."""
    bundle = stage.bundle("sh", "-c", "read x; exit 7")
    stage.call("Create", bundle=bundle.path, stdin=bundle.fifo("stdin"))
    stage.call("Start")
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    end = stage.begin("Wait")
    stage.curtain()
    os.write(bundle.ends["stdin"], b"go\n")
    assert end.result(PATIENCE).exit_status == 7
    stage.end(7)


def _questions(stage: Stage) -> None:
    stage.run()
    pid = stage.call("State").pid
    stage.curtain()
    stage.status(pb.RUNNING)
    assert [one.pid for one in stage.call("Pids").processes] == [pid]
    assert stage.call("Connect").task_pid == pid
    assert stage.call("Stats").HasField("stats")
    stage.call("Shutdown")
    stage.end(137)


def _give_up(stage: Stage) -> None:
    """The launcher's `delete`, which asks the daemon: nothing more is told of the task."""
    bundle = stage.run()
    end = stage.begin("Wait")
    stage.rig.events.until(stage.id, "start")
    stage.curtain()
    assert stage.rig.give_up(bundle).exit_status == 137
    assert end.exception(PATIENCE) or end.result().exit_status == 137
    up(stage.host)
    eventually(lambda: not stage.rig.unit_exists(stage.id), "its unit is gone")
    stage.told("create", "start")


def _give_up_ended(stage: Stage) -> None:
    """The same when it has ended by itself: its own exit status is told."""
    bundle = stage.run("sh", "-c", "exit 7")
    assert stage.call("Wait").exit_status == 7
    stage.rig.events.until(stage.id, "exit")
    stage.curtain()
    assert stage.rig.give_up(bundle).exit_status == 7
    up(stage.host)
    eventually(lambda: not stage.rig.unit_exists(stage.id), "its unit is gone")
    stage.told(*LIFE)


def _listen(stage: Stage) -> None:
    """A namespace that is new to the daemon."""
    namespace = f"drill-{stage.id}"
    stage.curtain()
    assert stage.rig.listen(namespace) == f"unix:///run/sdshim/s/{namespace}"
    line = stage.rig.connect(namespace)
    error = line.begin("State", id="none").exception(PATIENCE)
    assert isinstance(error, ShimError)
    assert int(error.code) == 5


def _connect(stage: Stage) -> None:
    """A connection is lost only if the daemon dies between accept() and the fd store."""
    stage.run()
    stage.curtain()
    for _ in range(20):
        line = stage.rig.connect()
        error = line.begin("State", id=stage.id).exception(PATIENCE)
        if error is None:
            break
        assert "closed" in str(error)
    else:
        raise AssertionError("no connection lives")
    stage.end(137)


SCENES: Mapping[str, Callable[[Stage], None]] = MappingProxyType(
    {
        "connect": _connect,
        "create": _create,
        "create with mounts": _create_mounts,
        "create that fails": _create_fails,
        "create with a terminal": _terminal,
        "start": _start,
        "start of what lasts": _start_lasting,
        "exec": _exec,
        "exec that is short": _exec_short,
        "exec that fails": _exec_fails,
        "exec with a terminal": _exec_terminal,
        EXEC_LOST: partial(_exec_terminal, start=_start_again),
        "a request of 3 MiB": _large,
        "kill": _kill,
        "kill all": _kill_all,
        "kill of an exec": _kill_exec,
        "delete": _delete,
        "delete of what never ran": _delete_unstarted,
        "pause": _pause,
        "resume": _resume,
        "update": _update,
        "checkpoint": _checkpoint,
        "checkpoint that ends the container": _checkpoint_ends,
        "checkpoint that fails": _checkpoint_fails,
        "restore": _restore,
        "close stdin": _close_io,
        "wait": _wait,
        "questions": _questions,
        "delete by the launcher": _give_up,
        "delete by the launcher of what has ended": _give_up_ended,
        "listen": _listen,
    }
)
NEED_CRIU = ("checkpoint", "checkpoint that ends the container", "restore")
"""Those that are played where criu works only (docs/checkpoint.md)."""
