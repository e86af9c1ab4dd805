"""Every call in every state of an init process and of an exec (protocol 3.4).

Calls that a state refuses, or that change nothing, share a container; the others have one each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.compare.subject import Container, Process, Subject

SIGTERM = 15


def _asked(process: Process) -> None:
    """What may be asked in every state."""
    process.state()
    process.resize()
    process.close_io()


def _created(s: Subject, *command: str) -> Container:
    box = s.container("c", *command)
    box.create()
    return box


def _paused(s: Subject) -> Container:
    box = s.running()
    box.pause()
    return box


def _stopped(s: Subject) -> Container:
    box = s.running("c", "sh", "-c", "exit 3")
    box.waited()
    return box


# --- init


def unknown(s: Subject) -> None:
    box = s.container("c")
    _asked(box)
    box.start()
    box.kill()
    box.pause()
    box.resume()
    box.checkpoint()
    box.update({})
    box.pids()
    box.stats()
    box.waited()
    box.exec("x", "true")
    box.delete()


def created(s: Subject) -> None:
    box = _created(s)
    end = box.wait()
    _asked(box)
    box.pause()
    box.resume()
    box.checkpoint()
    box.pids()
    box.stats()
    end.blocks()
    box.create()
    box.state()
    box.start()
    box.state()


def created_exec(s: Subject) -> None:
    box = _created(s)
    child = box.exec("x", "true")
    child.state()
    child.delete()
    box.state()


def created_exec_start(s: Subject) -> None:
    box = _created(s)
    child = box.exec("x", "sh", "-c", "exit 5")
    child.start()
    child.waited()
    child.state()
    child.delete()
    box.state()


def created_update(s: Subject) -> None:
    box = _created(s)
    box.update({})
    box.state()


def created_kill(s: Subject) -> None:
    box = _created(s)
    end = box.wait()
    box.kill()
    end.told()
    box.state()
    box.start()
    box.delete()


def created_kill_all(s: Subject) -> None:
    box = _created(s)
    end = box.wait()
    box.kill(all=True)
    end.told()
    box.delete()


def created_delete(s: Subject) -> None:
    box = _created(s)
    end = box.wait()
    box.delete()
    end.told()
    box.state()


def running(s: Subject) -> None:
    box = s.running()
    end = box.wait()
    _asked(box)
    box.start()
    box.delete()
    box.resume()
    box.pids()
    box.stats()
    box.update({})
    end.blocks()
    box.create()
    box.state()


def running_pause(s: Subject) -> None:
    box = s.running()
    box.pause()
    box.state()
    box.resume()
    box.state()


def running_kill(s: Subject) -> None:
    box = s.running()
    end = box.wait()
    box.kill()
    end.told()
    box.state()
    box.delete()


def paused(s: Subject) -> None:
    box = _paused(s)
    end = box.wait()
    _asked(box)
    box.start()
    box.delete()
    box.exec("x", "true")
    box.pause()
    box.pids()
    box.stats()
    box.update({})
    end.blocks()
    box.create()
    box.state()
    box.resume()
    box.state()


def paused_kill(s: Subject) -> None:
    box = _paused(s)
    end = box.wait()
    box.kill()
    end.told()
    box.state()
    box.delete()


def paused_kill_all(s: Subject) -> None:
    box = _paused(s)
    end = box.wait()
    box.kill(all=True)
    end.told()
    box.delete()


def paused_signal(s: Subject) -> None:
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
    box = s.container("c", "sh", "-c", script)
    box.create(**box.streams("stdout", "stderr"))
    box.start()
    box.line()
    box.pause()
    box.kill(SIGTERM)
    box.state()
    box.resume()
    box.waited()


def stopped(s: Subject) -> None:
    box = _stopped(s)
    _asked(box)
    box.start()
    box.exec("x", "true")
    box.kill()
    box.kill(all=True)
    box.pause()
    box.resume()
    box.update({})
    box.checkpoint()
    box.pids()
    box.stats()
    box.waited()
    box.waited()
    box.create()
    box.state()
    box.delete()
    box.state()
    box.delete()
    box.waited()


# --- exec


def exec_unknown(s: Subject) -> None:
    box = s.running()
    child = box.added("x")
    _asked(child)
    child.start()
    child.kill()
    child.waited()
    child.delete()


def exec_created(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    end = child.wait()
    _asked(child)
    child.kill()
    box.exec("x", "true")
    end.blocks()
    child.delete()
    child.state()
    child.delete()


def exec_created_start(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    child.start()
    child.state()


def exec_running(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    child.start()
    end = child.wait()
    _asked(child)
    child.delete()
    box.exec("x", "true")
    box.pids()
    end.blocks()
    child.kill()
    end.told()
    child.state()


def exec_running_start(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sleep", "1000")
    child.start()
    child.start()
    child.state()


def exec_paused(s: Subject) -> None:
    s.at_once()  # the killed one may end before or, on v1, only after Resume
    box = s.running()
    fresh = box.exec("fresh", "true")
    child = box.exec("x", "sleep", "1000")
    ended = box.exec("ended", "true")
    ended.start()
    ended.waited()
    child.start()
    end = child.wait()
    box.pause()
    for one in (fresh, child, ended):
        _asked(one)
    ended.start()
    child.delete()
    end.blocks()
    child.kill()
    box.resume()
    end.told()
    child.state()


def exec_paused_delete(s: Subject) -> None:
    box = s.running()
    fresh = box.exec("fresh", "true")
    ended = box.exec("ended", "true")
    ended.start()
    ended.waited()
    box.pause()
    fresh.delete()
    ended.delete()


def exec_paused_start(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "true")
    box.pause()
    child.start()
    child.state()
    box.resume()
    child.state()
    child.start()
    child.waited()


def exec_stopped(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "sh", "-c", "exit 4")
    child.start()
    child.waited()
    _asked(child)
    child.start()
    child.kill()
    child.kill(all=True)
    child.waited()
    child.waited()
    box.exec("x", "true")
    child.delete()
    child.state()
    child.delete()
    child.waited()
