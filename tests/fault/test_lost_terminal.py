"""A terminal that was lost between a daemon's accept() and systemd's fd store."""

from __future__ import annotations

import ctypes
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import ShimError
from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import pack
from tests.fault.strikes import daemon_pid
from tests.system.conftest import rig
from tests.system.jobs import Job
from tests.system.taskclient import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]

pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(120)]

SLOW = "/tmp/taskclient/slow"
SCRIPT = f"""#!/bin/sh
runc "$@" || exit
case " $* " in *" --console-socket "*)
    [ -e {SLOW}.go ] || touch {SLOW}.sent
    until [ -e {SLOW}.go ]; do sleep 0.05; done
esac
"""
PIDFD_GETFD = 438


@pytest.fixture
def slow(rig: Rig) -> Iterator[Path]:
    """An OCI runtime that has sent the terminal and does not end before it may."""
    path = rig.host.path(SLOW)
    path.write_text(SCRIPT)
    path.chmod(0o755)
    yield path
    for name in ("slow.sent", "slow.go"):  # (the rig still needs the program)
        path.with_name(name).unlink(missing_ok=True)


def _lose(host: Host, slow: Path) -> None:
    """What a daemon does that is killed right after its accept()."""
    eventually(slow.with_name("slow.sent").exists, "a terminal on its way")
    pid = daemon_pid(host)
    table = Path(f"/proc/{pid}/net/unix").read_text()
    inodes = re.findall(r"^\S+: (?:\S+ ){5} *(\d+) /run/sdshim/c/", table, re.M)
    holder = os.pidfd_open(pid)
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if str(link.readlink()) in [f"socket:[{inode}]" for inode in inodes]:
            taken = ctypes.CDLL(None).syscall(PIDFD_GETFD, holder, int(link.name), 0)
            with socket.socket(fileno=taken) as listener, listener.accept()[0]:
                break
    else:
        raise AssertionError(f"no console socket: {table}")
    os.close(holder)
    os.kill(pid, 9)
    slow.with_name("slow.go").touch()


def test_a_container_is_made_again(rig: Rig, host: Host, slow: Path) -> None:
    options = pack(runc_pb2.Options(binary_name=SLOW))
    job = Job(rig, "init", "sh", "-c", "stty size; exit 4", terminal=True, options=options)
    job.fifos("stdin", "stdout")
    method, fields = job.first()
    begun = rig.begin(method, **fields)
    _lose(host, slow)
    assert begun.result(15).pid
    job.call("ResizePty", width=90, height=33)
    job.go()
    assert job.bundle.read("stdout") == b"33 90\r\n"
    assert job.wait() == 4
    job.call("Delete")


def test_an_exec_has_run_by_then_and_is_an_error(rig: Rig, host: Host, slow: Path) -> None:
    slow.with_name("slow.go").touch()
    options = pack(runc_pb2.Options(binary_name=SLOW))
    job = Job(rig, "exec", "sleep", "1000", terminal=True, options=options)
    slow.with_name("slow.go").unlink()
    job.fifos("stdin", "stdout")
    method, fields = job.first()
    begun = rig.begin(method, **fields)
    _lose(host, slow)
    with pytest.raises(ShimError, match=r"^the terminal of .* is lost"):
        begun.result(15)
    assert len(rig.call("Pids", id="box").processes) == 1
    job.call("Delete")
