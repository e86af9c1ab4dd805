"""Options of a checkpoint, each with a container that needs it; restores of what others made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.checkpoints import COUNT, WRITABLE, images, options, say
from tests.system.taskclient import Rig, eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Bundle

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(60),
    pytest.mark.roots("trixie", "forky"),  # where criu works on every kernel
]

UNKNOWN = 2
OPEN_TCP = """
server = socket.create_server(("127.0.0.1", 9900))
a = socket.create_connection(("127.0.0.1", 9900))
b, _ = server.accept()
def work(data):
    a.sendall(data)
    return b.recv(99)
"""
FILE_LOCKS = """
a = open("/dev/lock", "w")
fcntl.flock(a, fcntl.LOCK_EX)
def work(data):
    try:
        fcntl.flock(open("/dev/lock"), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return data
    return b"no lock"
"""
UNIX_SOCKETS = """
a = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
a.connect("/run/systemd/journal/dev-log")
def work(data):
    a.send(b"<14>checkpoint: " + data)
    return data
"""
ECHO = """
import fcntl, socket, sys
{}
for line in sys.stdin.buffer:
    print(work(line).decode(), end="", flush=True)
"""


@pytest.fixture
def folder(host: Host) -> Iterator[str]:
    with images(host) as path:
        yield path


def _start(rig: Rig, id_: str, spec: dict[str, Any], **fields: Any) -> Bundle:
    bundle = rig.bundle(id_, spec={**spec, "root": WRITABLE})
    names = ("stdin", "stdout") if fields.get("terminal") else ("stdin", "stdout", "stderr")
    streams = {name: bundle.fifo(name) for name in names}
    rig.call("Create", id=id_, bundle=bundle.path, **streams, **fields)
    rig.call("Start", id=id_)
    return bundle


def _python(script: str) -> dict[str, Any]:
    """A container with the host's Python, network and journal."""
    spec = spec_of("/usr/bin/python3", "-I", "-S", "-c", ECHO.format(script))
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "network"]
    for place in ("/usr", "/lib", "/lib64", "/run/systemd/journal"):
        mount = {"destination": place, "type": "bind", "options": ["rbind", "ro"]}
        source = f"/usr{place}" if place.startswith("/lib") else place
        spec["mounts"].append({**mount, "source": source})
    return spec


def _echoes(bundle: Bundle, line: bytes) -> None:
    say(bundle, line)
    assert bundle.read_line("stdout") == line


@pytest.mark.parametrize(
    ("option", "script", "said"),
    [
        # criu 4.1 cannot dump any TCP socket on Linux 6.16 and newer
        pytest.param(
            "open_tcp",
            OPEN_TCP,
            "Connected TCP socket, consider using --tcp-established option",
            marks=pytest.mark.roots("forky"),
        ),
        ("file_locks", FILE_LOCKS, "Some file locks are hold by dumping tasks!"),
        ("external_unix_sockets", UNIX_SOCKETS, "External socket is used."),
    ],
)
def test_what_needs_an_option_fails_without_it_and_comes_back_with_it(
    rig: Rig, folder: str, option: str, script: str, said: str
) -> None:
    old = _start(rig, "old", _python(script))
    _echoes(old, b"one\n")
    code, text = rig.refused("Checkpoint", id="old", path=folder)
    assert code == UNKNOWN
    assert f"/criu-dump.log (hint: criu: {said}" in text.replace("inet: ", "").replace("unix: ", "")
    assert (old.outside / "criu-dump.log").exists()
    _echoes(old, b"two\n")  # it has gone on
    wish = options(exit=True, **{option: True})
    rig.call("Checkpoint", id="old", path=folder, options=wish)
    rig.call("Delete", id="old")
    new = _start(rig, "new", _python(script), checkpoint=folder)
    _echoes(new, b"three\n")


@pytest.mark.parametrize("option", [True, False])
def test_a_terminal_comes_back(rig: Rig, folder: str, *, option: bool) -> None:
    loop = "i=0; while read -r x; do i=$((i+1)); echo $x $i; done; exit 3"
    spec = spec_of("sh", "-c", loop)
    spec["process"]["terminal"] = True
    pts = {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
    spec["mounts"].append({**pts, "options": ["newinstance", "ptmxmode=0666", "mode=0620"]})
    old = _start(rig, "old", spec, terminal=True)
    say(old, b"one\n")
    assert (old.read_line("stdout"), old.read_line("stdout")) == (b"one\r\n", b"one 1\r\n")
    wish = options(exit=True, terminal=option)
    rig.call("Checkpoint", id="old", path=folder, options=wish)
    rig.call("Delete", id="old")
    new = _start(rig, "new", spec, terminal=True, checkpoint=folder)
    say(new, b"two\n")
    assert (new.read_line("stdout"), new.read_line("stdout")) == (b"two\r\n", b"two 2\r\n")
    say(new, b"\x04")
    assert rig.call("Wait", id="new").exit_status == 3


def test_a_container_with_a_log_file_comes_back(rig: Rig, host: Host, folder: str) -> None:
    spec = {**spec_of("sh", "-c", COUNT), "root": WRITABLE}
    log = host.path("/tmp/taskclient/count.log")
    uri = "file:///tmp/taskclient/count.log"

    def start(id_: str, **fields: Any) -> None:
        bundle = rig.bundle(id_, spec=spec)
        rig.call("Create", id=id_, bundle=bundle.path, stdout=uri, stderr=uri, **fields)
        rig.call("Start", id=id_)

    start("old")
    eventually(lambda: log.read_bytes().count(b"\n") > 3, "it counts")
    rig.call("Checkpoint", id="old", path=folder, options=options(exit=True))
    rig.call("Delete", id="old")
    before = log.read_text().split()
    start("new", checkpoint=folder)
    eventually(lambda: log.read_bytes().count(b"\n") > len(before) + 3, "it counts on")
    rig.call("Kill", id="new", signal=9)
    rig.call("Wait", id="new")
    rig.call("Delete", id="new")
    counted = log.read_text().split()
    assert counted == [str(n + 1) for n in range(len(counted))]
    log.unlink()


@pytest.mark.cgroup("v2")  # runc alone, without a cgroup path, takes one of the test machine's
def test_a_checkpoint_made_without_us_is_restored(rig: Rig, host: Host, folder: str) -> None:
    spec = {**spec_of("sh", "-c", COUNT), "root": WRITABLE}
    plain = host.path("/tmp/plain")
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(spec))
    (plain / "out").touch()
    runc = ["runc", "--root", "/run/plain"]
    run = f"cd /tmp/plain; {' '.join(runc)} run -d plain </dev/null 2>&1 | cat >out"
    pipeline = host.popen(["sh", "-c", run])
    try:
        eventually(lambda: (plain / "out").read_bytes().count(b"\n") > 3, "it counts")
        # the test machine's v1 hierarchies stand beside the host's v2, with other hosts in them
        (plain / "criu.conf").write_text('cgroup-dump-controller ""\n')
        environment = {"CRIU_CONFIG_FILE": "/tmp/plain/criu.conf"}
        host.run([*runc, "checkpoint", "--image-path", folder, "plain"], env=environment)
    finally:
        host.run([*runc, "delete", "-f", "plain"], check=False)
        host.run(["rm", "-rf", "/run/plain", "/tmp/plain"])
        assert pipeline.wait(10) == 0
    new = _start(rig, "new", spec, checkpoint=folder)
    first = int(new.read_line("stdout"))
    assert first > 3
    assert int(new.read_line("stdout")) == first + 1
