"""Ends that somebody else makes: the runtime's state removed, strangers' signals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.compare.subject import Subject


def _runc(s: Subject, *arguments: str) -> None:
    s.host.run(["runc", "--root", f"/run/containerd/runc/{s.namespace}", *arguments])


def _stranger_kills(s: Subject, pid: int) -> None:
    s.host.run(["kill", "-9", str(pid)])


def runc_delete_behind_our_back(s: Subject) -> None:
    box = s.running()
    end = box.wait()
    _runc(s, "delete", "-f", box.id)
    end.told()
    box.kill()
    box.state()
    box.pids()
    box.exec("x", "true")
    box.delete()


def runc_delete_of_a_created_one(s: Subject) -> None:
    box = s.container("c")
    box.create()
    end = box.wait()
    _runc(s, "delete", "-f", box.id)
    end.told()
    box.kill()
    box.state()
    box.start()
    box.delete()


def runc_delete_with_an_exec(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    child.start()
    ends = [child.wait(), box.wait()]
    _runc(s, "delete", "-f", box.id)
    for end in ends:
        end.told()
    child.kill()
    child.state()
    child.delete()
    box.delete()


def runtime_state_removed(s: Subject) -> None:
    box = s.running()
    end = box.wait()
    s.host.run(["rm", "-rf", f"/run/containerd/runc/{s.namespace}/{box.id}"])
    box.state()
    box.exec("x", "true").start()
    box.pids()
    box.kill()
    end.told(seconds=3)
    box.state()
    box.delete()


def a_strangers_sigkill(s: Subject) -> None:
    box = s.running()
    end = box.wait()
    _stranger_kills(s, s.pid("c"))
    end.told()
    box.kill()
    box.state()
    box.delete()


def a_strangers_sigkill_of_an_exec(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    child.start()
    end = child.wait()
    _stranger_kills(s, s.pid("c:x"))
    end.told()
    child.kill()
    child.state()
    box.state()
    child.delete()


def runc_kill_and_pause(s: Subject) -> None:
    box = s.running()
    _runc(s, "pause", box.id)
    box.state()
    _runc(s, "resume", box.id)
    end = box.wait()
    _runc(s, "kill", box.id, "KILL")
    end.told()
    box.delete()
