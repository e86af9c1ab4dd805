"""Whole lives of containers: exits, signals, short ones, ids used again, orders of Delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.compare.subject import Subject

SIGTERM, SIGUSR1 = 15, 10
TRAP = "trap 'exit 143' TERM; echo up; while :; do sleep 0.01; done"


def _life(s: Subject, *command: str) -> None:
    box = s.container("c", *command)
    box.create()
    box.state()
    end = box.wait()
    box.start()
    end.told()
    box.state()
    box.delete()


def exit_0(s: Subject) -> None:
    _life(s, "true")


def exit_7(s: Subject) -> None:
    _life(s, "sh", "-c", "sleep 0.2; exit 7")


def exit_255(s: Subject) -> None:
    _life(s, "sh", "-c", "exit 255")


def exit_by_sigterm(s: Subject) -> None:
    box = s.container(
        "c", "sh", "-c", "trap 'exit 143' TERM; echo up; while :; do sleep 0.01; done"
    )
    box.create(**box.streams("stdout", "stderr"))
    box.start()
    box.line()
    end = box.wait()
    box.kill(SIGTERM)
    end.told()
    box.state()
    box.delete()


def init_ignores_what_it_does_not_handle(s: Subject) -> None:
    box = s.running()
    box.kill(SIGTERM)
    box.kill(SIGUSR1)
    box.state()


def signals(s: Subject) -> None:
    box = s.running()
    for number in (0, 65, 1000):
        box.kill(number)
    box.state()


def short_lived_and_the_same_record_again(s: Subject) -> None:
    box = s.container("c", "sh", "-c", "exit 7")
    for _ in range(4):
        box.create()
        end = box.wait()
        box.start()
        end.told()
        box.state()
        box.delete()


def wait_before_and_after(s: Subject) -> None:
    box = s.container("c", "sh", "-c", "exit 6")
    box.create()
    waits = [box.wait() for _ in range(3)]
    box.start()
    for end in waits:
        end.told()
    box.waited()
    box.delete()
    box.waited()


def two_containers(s: Subject) -> None:
    one = s.container("one", "sh", "-c", "exit 1")
    two = s.container("two", "sh", "-c", "exit 2")
    for box in (one, two):
        box.create()
    for box in (two, one):
        box.start()
    for box in (one, two):
        box.waited()
    two.delete()
    one.state()
    one.delete()


def delete_with_execs_left(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sh", "-c", "exit 4")
    child.start()
    child.waited()
    fresh = box.exec("fresh", "true")
    box.kill()
    box.waited()
    box.delete()
    child.state()
    fresh.state()
    child.delete()


def shared_pid_namespace(s: Subject) -> None:
    """Init is an ordinary process there: SIGTERM ends it, and its children go with it."""
    script = "sleep 1000 & echo up; wait"
    spaces = [{"type": name} for name in ("ipc", "uts", "mount", "network")]
    box = s.container("c", "sh", "-c", script, linux={"namespaces": spaces})
    box.create(**box.streams("stdout", "stderr"))
    box.start()
    box.line()
    box.kill(SIGTERM)
    box.waited()
    box.output()
    box.delete()
