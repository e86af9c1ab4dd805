"""What the demo shows, step by step; each step checks what it has shown."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from typing import TYPE_CHECKING

from tests.demo.stage import IMAGE, DemoFailed, Stage
from tests.tools import spantree

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator

RUNTIME = "io.containerd.systemd.v1"
CONTAINER = "hello"
SCRIPT = 'echo "hello from process $$ of a container"; sleep 1 & wait; echo bye; exit 7'
EXPECTED = 7
SPANS = (
    "Task/Create",
    "systemd.StartTransientUnit",
    "rootfs.mount",
    "runc.create",
    "Task/Start",
    "runc.start",
    "task.exit",
    "Task/Delete",
    "runc.delete",
)
"""Ends of names that the traces of one container's life must have."""
SPANS_TIMEOUT = 10.0


def tell(stage: Stage) -> None:
    """The whole story. Raises DemoFailed where it is not as told."""
    print(f"On {stage.title}: {', '.join(_versions(stage))}")
    unit = unit_name(stage.namespace, CONTAINER)
    limits = stage.limits
    argv = ["ctr", "-n", stage.namespace] if stage.namespace != "default" else ["ctr"]
    argv += ["run", "--rm", "--runtime", RUNTIME, *limits, IMAGE, CONTAINER, "sh", "-c", SCRIPT]
    heading("A container, run by containerd's own client", argv)
    process = stage.popen(argv)
    try:
        _running(stage, process, unit)
        heading("The container's end, told by ctr", None)
        _ending(process)
    finally:
        process.kill()
        process.communicate()
    _journal(stage, unit)
    _clean(stage)
    _trace(stage)


def unit_name(namespace: str, container: str) -> str:
    """As in the table of names: a dash of the namespace is written as a colon."""
    return f"sdshim-{namespace.replace('-', ':')}-{container}.service"


def heading(text: str, argv: list[str] | None) -> None:
    """A step's title and the command it runs."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}")
    if argv:
        print(f"$ {shlex.join(argv)}")
    sys.stdout.flush()


def show(lines: Iterable[str]) -> None:
    """What a command printed, indented, cut at the terminal's width (100 where there is none)."""
    width = shutil.get_terminal_size((100, 0)).columns - 2
    for line in lines:
        print(f"  {line if len(line) <= width else line[: width - 1] + '…'}".rstrip())
    sys.stdout.flush()


def _versions(stage: Stage) -> Iterator[str]:
    yield "systemd " + stage.output("systemctl", "--version").split()[1]
    for program in ("containerd", "runc"):
        found = re.search(r"\sv?(\d+\.[\d.]*\d)", stage.output(program, "--version"))
        yield f"{program} {found[1] if found else '?'}"


def _running(stage: Stage, process: subprocess.Popen[str], unit: str) -> None:
    assert process.stdout is not None
    first = process.stdout.readline().rstrip()
    show([first])
    if "hello from process 1 " not in first:
        rest, _ = process.communicate(timeout=30)
        raise DemoFailed(f"the container printed nothing: {first} {rest}".strip())
    argv = ["systemctl", "status", "--no-pager", "--full", unit]
    heading("Meanwhile: it is a unit, its processes are the unit's", argv)
    status = stage.output(*argv, check=False)
    show(status.splitlines())
    for wanted in ("Active: active (running)", "sleep 1", 'sh -c "echo'):
        if wanted not in status:
            raise DemoFailed(f"systemctl status does not show `{wanted}`")


def _ending(process: subprocess.Popen[str]) -> None:
    rest, _ = process.communicate(timeout=30)
    show([*rest.splitlines(), f"exit status {process.returncode}"])
    if rest.split() != ["bye"]:
        raise DemoFailed("the container's last line is not `bye`")
    if process.returncode != EXPECTED:
        raise DemoFailed(f"the exit status is {process.returncode}, it should be {EXPECTED}")


def _journal(stage: Stage, unit: str) -> None:
    argv = ["journalctl", "--no-pager", "-o", "cat", "-u", "sdshim", "-n", "12"]
    heading("The daemon's log", argv)
    said = stage.output(*argv)
    show(said.splitlines())
    if CONTAINER not in said:
        raise DemoFailed(f"the daemon's log does not name the container {CONTAINER!r}")


def _clean(stage: Stage) -> None:
    pattern = unit_name(stage.namespace, "*")
    argv = ["systemctl", "list-units", "--all", "--no-pager", "--no-legend", pattern]
    heading("What is left of it: no unit", argv)
    left = stage.output(*argv)
    show(left.splitlines() or ["(nothing)"])
    if CONTAINER in left:
        raise DemoFailed("the container's unit is still there")


def _trace(stage: Stage) -> None:
    heading(
        "Its traces: begin and duration in ms (> a call that came in, < one that went out)", None
    )
    groups = _await_spans(stage)
    told = [group for group in groups if len(group) > 1]
    for group in told:
        show(spantree.render(group))
    names = [group[0]["name"].rpartition("/")[2] for group in groups if len(group) == 1]
    if names:
        listed = ", ".join(sorted(set(names)))
        print(f"  and {len(names)} calls without anything inside ({listed})")


def _await_spans(stage: Stage) -> list[list[spantree.Record]]:
    """The container's traces, once the daemon has sent all of them."""
    deadline = time.monotonic() + SPANS_TIMEOUT
    while True:
        with stage.spans.open(encoding="utf-8") as lines:
            groups = spantree.traces(spantree.load(lines), container=CONTAINER)
        names = [span["name"] for group in groups for span in group]
        missing = [end for end in SPANS if not any(name.endswith(end) for name in names)]
        events = names.count("event.forward")
        if not missing and events >= 4:  # create, start, exit, delete
            return groups
        if time.monotonic() > deadline:
            raise DemoFailed(f"no spans of {', '.join(missing) or 'all four events'} came")
        time.sleep(0.05)
