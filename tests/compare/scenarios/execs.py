"""Lives of execs: exits, ids used again, signals, pids, many at once, what they may say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.compare.subject import Subject

SIGTERM = 15


def exits(s: Subject) -> None:
    box = s.running()
    for number, command in enumerate(("exit 0", "exit 7", "kill -9 $$", "kill -15 $$")):
        child = box.exec(f"x{number}", "sh", "-c", command)
        end = child.wait()
        child.start()
        end.told()
        child.state()
        child.delete()


def an_id_used_again(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sh", "-c", "exit 1")
    for code in (1, 2, 3):
        child.start()
        child.waited()
        child.delete()
        child.add({**box.spec["process"], "args": ["sh", "-c", f"exit {code + 1}"]})
    child.delete()


def the_id_of_its_container(s: Subject) -> None:
    box = s.running()
    child = box.exec("c", "sh", "-c", "exit 5")
    child.start()
    child.waited()
    child.state()
    box.state()
    child.delete()


def signals(s: Subject) -> None:
    box = s.running()
    for number in (SIGTERM, 9, 0, 65):
        child = box.exec(f"x{number}", "sleep", "1000")
        child.start()
        child.kill(number)
        if number in (SIGTERM, 9):
            child.waited()
        child.state()


def kill_all_of_an_exec_is_for_the_exec_alone(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    other = box.exec("y", "sleep", "1000")
    child.start()
    other.start()
    child.kill(all=True)
    child.waited()
    other.state()
    box.state()


def pids_carry_the_ids_of_execs(s: Subject) -> None:
    box = s.running()
    for name in ("x1", "x2"):
        child = box.exec(name, "sleep", "1000")
        box.pids()
        child.start()
    box.pids()
    parent = box.added("p")
    command = ["sh", "-c", "sleep 1000 & echo up; wait"]
    parent.add({**box.spec["process"], "args": command}, **parent.streams("stdout", "stderr"))
    parent.start()
    parent.line()
    box.pids()
    parent.kill()
    parent.waited()
    box.pids()


def many_at_once(s: Subject) -> None:
    s.at_once()
    box = s.running()
    children = [box.exec(f"x{n}", "sh", "-c", f"exit {n}") for n in range(6)]
    ends = [child.wait() for child in children]
    starts = [child.begin("Start") for child in children]
    for one in (*starts, *ends):
        one.told()
    for child in children:
        child.delete()


def a_child_that_stays_does_not_delay_the_exit(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sh", "-c", "sleep 1000 & exit 3")
    child.start()
    child.waited()
    child.delete()
    box.state()
    box.pids()


def leftovers_are_killed_with_init(s: Subject) -> None:
    box = s.running()
    ends = []
    for name in ("x1", "x2"):
        child = box.exec(name, "sleep", "1000")
        child.start()
        ends.append(child.wait())
    end = box.wait()
    box.kill()
    for one in (end, *ends):
        one.told()
    box.delete()


def leftovers_in_a_shared_pid_namespace(s: Subject) -> None:
    spaces = [{"type": name} for name in ("ipc", "uts", "mount", "network")]
    box = s.running("c", "sleep", "1000", linux={"namespaces": spaces})
    ends = []
    for name in ("x1", "x2"):
        child = box.exec(name, "sleep", "1000")
        child.start()
        ends.append(child.wait())
    end = box.wait()
    box.kill()
    for one in (end, *ends):
        one.told()
    box.delete()


def after_the_end_of_init(s: Subject) -> None:
    box = s.running()
    fresh = box.exec("fresh", "true")
    child = box.exec("x", "sleep", "1000")
    child.start()
    box.kill()
    box.waited()
    child.state()
    child.kill()
    child.waited()
    fresh.start()
    fresh.state()
    box.exec("late", "true")
    child.delete()
    fresh.delete()
    box.delete()
