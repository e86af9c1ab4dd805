"""Daemons under other conditions than usual: another unit, a start that is held back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.system.doctor.kit import drop_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host import Host


@contextlib.contextmanager
def limited(host: Host, line: str) -> Iterator[Path]:
    """A daemon with a line of its own in [Service]; the file with it."""
    restart = "systemctl daemon-reload; systemctl restart sdshim.service"
    with drop_in(host, "sdshim.service", f"[Service]\n{line}\n") as path:
        host.run(["sh", "-c", restart])
        yield host.path(path)
    host.run(["sh", "-c", restart])


@contextlib.contextmanager
def next_daemon_waits(host: Host) -> Iterator[Path]:
    """The daemon after this one starts when the file is there. (No drop-in can be taken away while
    /run is full: systemd does not reload then.)"""
    folder, go = host.path("/etc/systemd/system/sdshim.service.d"), "/tmp/go"
    folder.mkdir(parents=True, exist_ok=True)
    wait = f"until [ -e {go} ]; do sleep 0.02; done"
    (folder / "wait.conf").write_text(f"[Service]\nExecStartPre=/bin/sh -c '{wait}'\n")
    host.run(["systemctl", "daemon-reload"])
    try:
        yield host.path(go)
    finally:
        host.path(go).touch()
        (folder / "wait.conf").unlink()
        host.run(["systemctl", "daemon-reload"])
        host.path(go).unlink()
