"""Shared by the tests of `sdshim doctor`: run it, and make faults for real that go away again."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.system.taskclient import HOME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host import Host
    from tests.system.taskclient import Bundle, Rig

STATE = "/run/sdshim/t/default"
BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/default"
UNITS = "/etc/systemd/system"
LEFT = "sdshim-default-left.service"
FINE, WARNINGS, FAULTS, CANNOT_TELL = range(4)


class Told:
    """What doctor found."""

    def __init__(self, document: dict[str, Any], status: int) -> None:
        assert document["exit_status"] == status
        self.status = status
        self.findings: list[dict[str, Any]] = document["findings"]
        self.repairs: list[dict[str, Any]] = document["repairs"]

    @property
    def checks(self) -> set[str]:
        return {finding["check"] for finding in self.findings}

    def of(self, check: str) -> dict[str, Any]:
        """The one finding of a check."""
        found = [finding for finding in self.findings if finding["check"] == check]
        assert len(found) == 1, self.findings
        return found[0]


def doctor(host: Host, *options: str, env: dict[str, str] | None = None) -> Told:
    done = host.run(["sdshim", "doctor", "--json", *options], check=False, timeout=60, env=env)
    assert done.stderr == ""
    return Told(json.loads(done.stdout), done.returncode)


def is_fine(host: Host) -> None:
    done = host.run(["sdshim", "doctor"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (FINE, "", "")


def has_failed(host: Host, unit: str) -> bool:
    return show(host, unit, "ActiveState") == "failed"


def show(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "-P", name, unit]).stdout.strip()


@contextmanager
def config(host: Host, **values: str) -> Iterator[str]:
    """A configuration file for one run of doctor."""
    path = "/tmp/doctor.toml"
    text = "".join(f'{key} = "{value}"\n' for key, value in values.items())
    host.path(path).write_text(text)
    yield path
    host.path(path).unlink()


@contextmanager
def drop_in(host: Host, unit: str, text: str) -> Iterator[str]:
    folder = f"{UNITS}/{unit}.d"
    host.path(folder).mkdir(exist_ok=True)
    path = host.path(f"{folder}/doctor.conf")
    path.write_text(text)
    try:
        yield f"{folder}/doctor.conf"
    finally:
        path.unlink()
        host.run(["systemctl", "daemon-reload"])


@contextmanager
def made(path: Path) -> Iterator[Path]:
    """A folder that is nobody's, taken away if doctor leaves it."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        os.system(f"rm -rf '{path}'")


def known_to_real(rig: Rig, id_: str, spec: Any = None, **fields: Any) -> Bundle:
    """A container whose events go to the host's containerd, which has no such task."""
    bundle = rig.bundle(id_, "sleep", "1000", spec=spec)
    note = bundle.outside / "sdshim.start"
    real = "/run/containerd/containerd.sock.ttrpc"
    note.write_text(note.read_text().replace(f"{HOME}/events.sock", real))
    rig.call("Create", id=id_, bundle=bundle.path, **fields)
    return bundle
