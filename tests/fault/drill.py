"""A host whose daemon dies at the crash points that a test names."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fault import killer
from tests.fault.killer import NOTE, PASSED, PLAN, replace
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.host import Host

FOLDER = str(killer.FOLDER)
DROP_IN = "/run/systemd/system/sdshim.service.d/drill.conf"
PROGRAM = "/usr/local/bin/sdshim"

Death = tuple[str, int, int]
"""A point, the how-manieth passing of it, and how many lives in a row end there."""


class Drill:
    """What the daemon is told; `host` runs tests/fault/killer.py."""

    def __init__(self, host: Host) -> None:
        self._plan = host.path(FOLDER) / PLAN
        self._passed = host.path(FOLDER) / PASSED

    def note(self) -> None:
        """Have the points written down that are passed from now on."""
        self._passed.unlink(missing_ok=True)
        replace(self._plan, NOTE)

    def passed(self) -> list[str]:
        """They, in order; no more of them."""
        self.disarm()
        return self._passed.read_text().split() if self._passed.exists() else []

    def arm(self, deaths: Iterable[Death]) -> None:
        """Have the daemon die at these points."""
        replace(self._plan, "".join(f"{point} {n} {lives}\n" for point, n, lives in deaths))

    def left(self) -> list[Death]:
        """The deaths that have not come yet."""
        lines = self._plan.read_text().splitlines() if self._plan.exists() else []
        split = (line.split() for line in lines)
        return [(point, int(moment), int(lives)) for point, moment, lives in split]

    def disarm(self) -> None:
        """No more deaths, and nothing more is written down."""
        self._plan.unlink(missing_ok=True)


@contextmanager
def drilled(host: Host, *, zygote: bool = False) -> Iterator[Drill]:
    """The daemon is run with a Killer in this block, and as it is shipped after it. zygote: it has
    its imports from one (zygote.py)."""
    folder, drop_in = host.path(FOLDER), host.path(DROP_IN)
    head = host.path(PROGRAM).read_text().partition("from sdshim.")[0]
    head += f"sys.path.insert(0, {FOLDER!r})\n"
    folder.mkdir()
    for name in ("killer", "zygote", "starter"):
        shutil.copyfile(Path(killer.__file__).with_name(f"{name}.py"), folder / f"{name}.py")
    for program, name in (("sdshim", "killer"), ("sdshim-zygote", "zygote")):
        (folder / program).write_text(f"{head}import {name}\n{name}.main()\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    drop_in.parent.mkdir()
    # A crash loop is what is wanted here; the shipped unit has no limit of starts.
    program = "starter.py" if zygote else "sdshim"
    drop_in.write_text(f"[Service]\nExecStart=\nExecStart={FOLDER}/{program} serve\n")
    with ExitStack() as stack:
        if zygote:
            parent = host.popen([f"{FOLDER}/sdshim-zygote"])
            stack.callback(parent.wait)
            stack.callback(parent.terminate)
            eventually((folder / "zygote.sock").exists, "a zygote")
        restart(host)
        try:
            yield Drill(host)
        finally:
            shutil.rmtree(drop_in.parent)
            (folder / PLAN).unlink(missing_ok=True)
            restart(host)
            shutil.rmtree(folder)


def restart(host: Host) -> None:
    """Have systemd read its units again, and start the daemon anew."""
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "reset-failed", "sdshim.service"], check=False)
    host.run(["systemctl", "restart", "sdshim.service"])


def up(host: Host) -> None:
    """Wait for a daemon that serves."""
    ready = host.path("/run/sdshim/ready")
    show = ["systemctl", "show", "-P", "SubState", "sdshim.service"]
    eventually(lambda: ready.exists() and "running" in host.run(show).stdout, "a daemon", 20)
