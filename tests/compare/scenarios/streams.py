"""Streams and terminals: what State tells of them, their bytes, CloseIO and ResizePty."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.taskclient import spec_of

if TYPE_CHECKING:
    from tests.compare.subject import Container, Subject

SIZE = "until [ \"$(stty size 2>/dev/null)\" = '30 100' ]; do sleep 0.01; done; echo 30 100"
MOUNTS = [
    *spec_of()["mounts"],
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
]
THREE = ("stdin", "stdout", "stderr")


def _terminal(s: Subject, *command: str) -> Container:
    return s.container("c", process={"args": list(command), "terminal": True}, mounts=MOUNTS)


def three_streams(s: Subject) -> None:
    box = s.container("c", "sh", "-c", "echo out; echo err >&2; exit 2")
    box.create(**box.streams(*THREE))
    box.state()
    box.start()
    box.waited()
    box.output("stdout")
    box.output("stderr")
    box.state()
    box.delete()


def stdin_ends_by_close_io(s: Subject) -> None:
    box = s.container("c", "cat")
    box.create(**box.streams("stdin", "stdout", "stderr"))
    box.start()
    end = box.wait()
    box.type(b"hello\n")
    box.line()
    end.blocks()
    box.close_io()
    box.close_io()
    end.told()
    box.output()


def close_io_before_start(s: Subject) -> None:
    box = s.container("c", "cat")
    box.create(**box.streams("stdin", "stdout", "stderr"))
    box.close_io()
    box.start()
    box.waited()
    box.output()


def exec_streams(s: Subject) -> None:
    box = s.running()
    child = box.added("x")
    child.add(
        {**box.spec["process"], "args": ["sh", "-c", "cat; echo err >&2; exit 2"]},
        **child.streams(*THREE),
    )
    child.start()
    child.state()
    child.type(b"hello\n")
    child.line()
    child.close_io()
    child.waited()
    child.output("stdout")
    child.output("stderr")
    child.state()
    child.delete()


def terminal(s: Subject) -> None:
    box = _terminal(s, "sh", "-c", "tty; exit 2")
    box.create(terminal=True, **box.streams("stdin", "stdout"))
    box.state()
    box.start()
    box.line()
    box.waited()
    box.output()
    box.state()
    box.delete()


def terminal_resized_before_start(s: Subject) -> None:
    box = _terminal(s, "sh", "-c", "stty size")
    box.create(terminal=True, **box.streams("stdin", "stdout"))
    box.resize(100, 30)
    box.start()
    box.line()
    box.waited()
    box.resize(90, 20)
    box.state()


def terminal_resized_while_it_runs(s: Subject) -> None:
    box = _terminal(s, "sh", "-c", SIZE)
    box.create(terminal=True, **box.streams("stdin", "stdout"))
    box.start()
    box.resize(100, 30)
    box.line()
    box.waited()


def terminal_input(s: Subject) -> None:
    box = _terminal(s, "sh", "-c", "read line; echo got $line; exit 4")
    box.create(terminal=True, **box.streams("stdin", "stdout"))
    box.start()
    box.type(b"hello\n")
    box.line()
    box.line()
    box.waited()


def terminal_of_an_exec(s: Subject) -> None:
    box = s.running("c", "sleep", "1000", mounts=MOUNTS)
    child = box.added("x")
    process = {**box.spec["process"], "args": ["sh", "-c", SIZE], "terminal": True}
    child.add(process, terminal=True, **child.streams("stdin", "stdout"))
    child.state()
    child.resize(50, 10)
    child.start()
    child.state()
    child.resize(100, 30)
    child.line()
    child.waited()
    child.resize(90, 20)
    child.state()
    child.delete()


def terminal_only_in_the_spec(s: Subject) -> None:
    box = _terminal(s, "true")
    box.create()
    box.state()
    box.delete()


def terminal_only_in_the_request(s: Subject) -> None:
    box = s.container("c", "sh", "-c", "tty; exit 2", mounts=MOUNTS)
    box.create(terminal=True, **box.streams("stdin", "stdout"))
    box.state()
    box.start()
    box.waited()
    box.state()


def terminal_with_a_shell_that_leaves_a_child(s: Subject) -> None:
    box = _terminal(s, "sh", "-c", "sleep 1000 & echo bye; exit 5")
    box.create(terminal=True, **box.streams("stdin", "stdout"))
    box.start()
    box.line()
    box.waited()
    box.output()
    box.delete()
