"""Who may speak to the daemon: the kernel's word on each peer, and what the disk lets others do."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from sdshim.pb import task_v2_pb2 as pb
from sdshim.ttrpc.frames import FrameType, Request, encode_frame, encode_request
from tests.system.taskclient import V2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.roots("self"), pytest.mark.cgroup("v2")]

SOCKET = "/run/sdshim/s/default"
NOBODY = "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)"
SPEAK = """
def speak(line):
    line.settimeout(10)
    try:
        line.sendall(bytes.fromhex(sys.argv[2]))
        print(len(line.recv(4096)), flush=True)
    except (BrokenPipeError, ConnectionResetError):
        print(0, flush=True)
def connect():
    line = socket.socket(socket.AF_UNIX)
    line.connect(sys.argv[1])
    return line
"""
CONNECTS = f"import os, socket, sys\n{SPEAK}\n{NOBODY}\nspeak(connect())"
IS_PASSED_ONE = f"""
import os, socket, sys
{SPEAK}
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork():
    line = connect()
    socket.send_fds(ours, [b"x"], [line.fileno()])
    os.wait()
else:
    {NOBODY}
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    speak(socket.socket(fileno=fds[0]))
"""
PASSES_ONE = f"""
import os, socket, sys
{SPEAK}
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork():
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    speak(socket.socket(fileno=fds[0]))
    os.wait()
else:
    {NOBODY}
    line = connect()
    socket.send_fds(theirs, [b"x"], [line.fileno()])
"""


def _call() -> str:
    """A State request as it goes over the wire, in hex."""
    payload = pb.StateRequest(id="none").SerializeToString()
    request = encode_request(Request(V2, "State", payload))
    return encode_frame(1, FrameType.REQUEST, request).hex()


def _answered(host: Host, script: str) -> int:
    """Bytes of the answer that a script got."""
    return int(host.run(["python3", "-c", script, SOCKET, _call()]).stdout)


@pytest.fixture
def opened(host: Host, rig: Rig) -> Iterator[None]:
    """The namespace's socket and the folders above it, as if somebody had opened them to all."""
    rig.listen("default")
    modes = {"/run/sdshim": "755", "/run/sdshim/s": "755", SOCKET: "666"}
    before = {path: stat.S_IMODE(host.path(path).stat().st_mode) for path in modes}
    for path, mode in modes.items():
        host.run(["chmod", mode, path])
    yield
    for path, kept in before.items():
        host.run(["chmod", f"{kept:o}", path])


def test_another_user_cannot_even_connect(host: Host, rig: Rig) -> None:
    rig.listen("default")
    done = host.run(["python3", "-c", CONNECTS, SOCKET, _call()], check=False)
    assert "PermissionError" in done.stderr


@pytest.mark.usefixtures("opened")
def test_another_user_is_not_served_by_a_socket_that_was_opened_to_all(host: Host) -> None:
    assert _answered(host, CONNECTS) == 0
    said = host.run(["journalctl", "-u", "sdshim", "-o", "cat", "--no-pager"]).stdout
    assert "uid 65534, gid 65534" in said


@pytest.mark.usefixtures("opened")
def test_a_connection_of_another_user_that_root_holds_is_not_served(host: Host) -> None:
    assert _answered(host, PASSES_ONE) == 0


def test_a_connection_that_root_has_made_and_given_away_is_roots_word(host: Host, rig: Rig) -> None:
    """SO_PEERCRED tells who has connected (unix(7)): passing that on lets somebody else speak."""
    rig.listen("default")
    assert _answered(host, IS_PASSED_ONE) > 0


def test_what_is_installed_and_what_systemd_keeps_is_roots_to_change(host: Host, rig: Rig) -> None:
    rig.running("box")
    found = host.run(
        [
            "find",
            *("/usr/local/bin", "/usr/local/lib/sdshim", "/usr/local/lib/systemd", "/etc/systemd"),
            *(
                "/run/systemd/transient",
                "/run/systemd/system",
                "/usr/local/share/zsh",
                "/usr/local/share/bash-completion",
            ),
            *("!", "-type", "l", "(", "-perm", "/022", "-o", "!", "-user", "root", ")"),
        ]
    ).stdout
    assert found == ""
    unit = host.path("/run/systemd/transient/sdshim-default-box.service").read_text()
    assert "SDSHIM_TOKEN=" in unit
    assert "PATH=/bin" not in unit  # the container's environment
