"""A container that says itself when it is ready: its unit is activating until READY=1, and all that
containerd asks of it works before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import options_pb2, task_types_pb2
from sdshim.pb.wellknown import pack
from tests.system.taskclient import Rig, dead_daemon, eventually, exec_spec, no_daemon, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host
    from tests.system.taskclient import Bundle

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

BOX, UNIT = "box", "sdshim-default-box.service"
RUNNING, CREATED = task_types_pb2.RUNNING, task_types_pb2.CREATED
INVALID = 3
NOTES = {"io.sdshim.notify": "true"}
SAYER = """\
import os, socket, sys
def say(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(s, [text.encode()], fds)
def barrier():
    read, write = os.pipe()
    say("BARRIER=1", write)
    os.close(write)
    os.read(read, 1)
print("up", flush=True)
for line in sys.stdin:
    words = line.strip()
    if words.startswith("exit "):
        sys.exit(int(words[5:]))
    if words.startswith("child "):
        if not os.fork():
            say(words[6:])
            os._exit(0)
        os.wait()
    else:
        say(words.replace("|", chr(10)))
    barrier()
    print("said", flush=True)
"""
"""Says each line of its stdin, `|` for a line's end, and tells when systemd has dealt with it."""


def _spec(notes: dict[str, str] | None = NOTES, **linux: Any) -> dict[str, Any]:
    spec = spec_of("/usr/bin/python3", "-I", "-c", SAYER)
    for place in ("/usr", "/lib", "/lib64"):
        source = f"/usr{place}" if place.startswith("/lib") else place
        mount = {"destination": place, "type": "bind", "source": source}
        spec["mounts"].append({**mount, "options": ["rbind", "ro"]})
    # What clients mount on /run is not to be in the way.
    spec["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs"})
    spec["linux"] |= linux
    return {**spec, "annotations": notes or {}}


def _created(rig: Rig, spec: dict[str, Any], id_: str = BOX, **fields: Any) -> Bundle:
    bundle = rig.bundle(id_, spec=spec)
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    rig.call("Create", id=id_, bundle=bundle.path, **streams, **fields)
    # Ours, so that it does not end with what systemd keeps for the daemon (252, stop).
    bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    return bundle


def _up(rig: Rig, spec: dict[str, Any] | None = None, **fields: Any) -> Bundle:
    """A container that runs, waits to be told what to say, and has not said anything."""
    bundle = _created(rig, spec or _spec(), **fields)
    rig.call("Start", id=BOX)
    assert bundle.read_line("stdout") == b"up\n", bundle.read("stderr")
    return bundle


def _say(bundle: Bundle, text: str) -> None:
    _tell(bundle, text)
    assert bundle.read_line("stdout") == b"said\n", bundle.read("stderr")


def _tell(bundle: Bundle, text: str) -> None:
    os.write(bundle.ends["stdin"], f"{text}\n".encode())


def _shown(host: Host, *names: str) -> list[str]:
    return [host.run(["systemctl", "show", "-P", name, UNIT]).stdout.strip() for name in names]


def _state(host: Host) -> str:
    return _shown(host, "ActiveState")[0]


def _ended(rig: Rig, bundle: Bundle, status: int = 4) -> None:
    """It ends as it is told, its events are whole, nothing of it is left."""
    line = rig.connect()
    _tell(bundle, f"exit {status}")
    assert line.call("Wait", id=BOX).exit_status == status
    assert line.call("Delete", id=BOX).exit_status == status
    rig.events.until(BOX, "delete")
    assert rig.events.of(BOX) == ["create", "start", "exit", "delete"]
    assert not rig.unit_exists(BOX)


@pytest.mark.parametrize("asked", ["annotation", "option", "toml with crun"])
def test_the_unit_is_active_when_the_container_has_said_so(
    rig: Rig, host: Host, asked: str
) -> None:
    options = None
    if asked == "option":
        options = pack(options_pb2.Options(notify=True))
    elif asked != "annotation":
        from sdshim.pb import runtimeoptions_pb2

        body = b"notify = true\noci_runtime = 'crun'\n"
        options = pack(runtimeoptions_pb2.Options(config_body=body))
    bundle = _up(rig, _spec(NOTES if asked == "annotation" else None), options=options)
    assert _shown(host, "Type", "ActiveState", "SubState") == ["notify", "activating", "start"]
    assert rig.call("State", id=BOX).status == RUNNING
    _say(bundle, "STATUS=loading|X_ANYTHING=1")
    assert _shown(host, "ActiveState", "StatusText") == ["activating", "loading"]
    _say(bundle, "READY=1|STATUS=serving")
    assert _shown(host, "ActiveState", "StatusText") == ["active", "serving"]
    assert "serving" in host.run(["systemctl", "status", UNIT]).stdout
    _ended(rig, bundle)


def test_without_being_asked_for_there_is_no_socket(rig: Rig, host: Host) -> None:
    bundle = _created(rig, _spec(None))
    rig.call("Start", id=BOX)
    assert _shown(host, "Type", "ActiveState") == ["forking", "active"]
    _tell(bundle, "READY=1")
    assert b"KeyError: 'NOTIFY_SOCKET'" in bundle.read("stderr")


MAPPED = [{"containerID": 0, "hostID": 100_000, "size": 65536}]


@pytest.mark.parametrize("place", ["user namespace", "foreign cgroup"])
def test_readiness_comes_from_wherever_the_container_lives(
    rig: Rig, host: Host, place: str
) -> None:
    spec = _spec()
    if place == "user namespace":
        spec["linux"] |= {"uidMappings": MAPPED, "gidMappings": MAPPED}
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    else:
        spec["linux"]["cgroupsPath"] = "/elsewhere/box"
    bundle = _up(rig, spec, options=_owner(place == "user namespace"))
    assert _state(host) == "activating"
    _say(bundle, "child READY=1")  # by any process of it
    assert _state(host) == "active"
    _ended(rig, bundle)
    if place != "user namespace":
        for root in ("", "*/"):
            for left in host.path("/sys/fs/cgroup").glob(f"{root}elsewhere"):
                left.rmdir()


def _owner(mapped: bool) -> Any:
    from sdshim.pb import runc_pb2

    return pack(runc_pb2.Options(io_uid=101_000, io_gid=101_000)) if mapped else None


def test_what_is_not_about_readiness_is_not_passed_on(rig: Rig, host: Host) -> None:
    bundle = _up(rig)
    before = _shown(host, "MainPID", "WatchdogUSec", "NFileDescriptorStore")
    for word in ("MAINPID=1", "RELOADING=1", "STOPPING=1", "WATCHDOG=trigger", "FDSTORE=1"):
        _say(bundle, word)
    _say(bundle, "STATUS=\x1b[31mred\x07 " + "x" * 1000)
    assert _shown(host, "MainPID", "WatchdogUSec", "NFileDescriptorStore") == before
    assert _state(host) == "activating"
    status = _shown(host, "StatusText")[0]
    assert status.startswith("?[31mred? xxx")
    assert len(status) < 300
    _say(bundle, "READY=1")
    for word in ("RELOADING=1", "STOPPING=1", "WATCHDOG=trigger"):
        _say(bundle, word)
    assert _state(host) == "active"
    _ended(rig, bundle)


def test_a_container_that_never_gets_ready_is_no_different_for_containerd(
    rig: Rig, host: Host
) -> None:
    bundle = _created(rig, _spec())
    assert rig.call("State", id=BOX).status == CREATED
    rig.call("Start", id=BOX)
    assert bundle.read_line("stdout") == b"up\n"
    rig.call("Exec", id=BOX, exec_id="x", spec=exec_spec("sh", "-c", "exit 6"))
    rig.call("Start", id=BOX, exec_id="x")
    assert rig.call("Wait", id=BOX, exec_id="x").exit_status == 6
    rig.call("Delete", id=BOX, exec_id="x")
    rig.call("Pause", id=BOX)
    rig.call("Resume", id=BOX)
    assert len(rig.call("Pids", id=BOX).processes) == 1
    shown = host.run(["sdshim", "ps"]).stdout
    assert "running" in shown
    assert _state(host) == "activating"
    rig.call("Kill", id=BOX, signal=9)
    assert rig.call("Wait", id=BOX).exit_status == 137
    assert rig.call("Delete", id=BOX).exit_status == 137
    assert not rig.unit_exists(BOX)


def test_a_container_may_take_longer_to_get_ready_than_a_create(
    rig: Rig, host: Host, configured: Callable[[str], None]
) -> None:
    configured("create_timeout = 1.0\n")
    bundle = _up(rig)
    rig.call("Exec", id=BOX, exec_id="x", spec=exec_spec("sleep", "1.5"))
    rig.call("Start", id=BOX, exec_id="x")
    rig.call("Wait", id=BOX, exec_id="x")
    rig.call("Delete", id=BOX, exec_id="x")
    assert _shown(host, "ActiveState", "SubState") == ["activating", "start"]
    _say(bundle, "READY=1")
    assert _state(host) == "active"
    assert rig.call("State", id=BOX).status == RUNNING


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_before_ready_is_the_containers_exit(rig: Rig, host: Host, status: int) -> None:
    bundle = _up(rig)
    _ended(rig, bundle, status)


def test_systemctl_stop_of_one_that_is_not_ready_asks_it_to_end(rig: Rig, host: Host) -> None:
    spec = _spec()
    spec["process"]["args"] = [
        "sh",
        "-c",
        "trap 'exit 5' TERM; echo up; while :; do sleep .01; done",
    ]
    _up(rig, spec)
    host.run(["systemctl", "stop", UNIT])
    assert rig.call("Wait", id=BOX).exit_status == 5
    assert rig.call("Delete", id=BOX).exit_status == 5
    rig.events.until(BOX, "delete")
    assert rig.events.of(BOX) == ["create", "start", "exit", "delete"]


@pytest.mark.parametrize("way", ["killed", "restarted", "stopped and started"])
def test_the_word_reaches_systemd_through_a_daemon_that_goes_away(
    rig: Rig, host: Host, way: str
) -> None:
    bundle = _up(rig)
    if way == "restarted":
        host.run(["systemctl", "restart", "sdshim.service"])
        _tell(bundle, "READY=1")
    elif way == "killed":
        with dead_daemon(host):
            _tell(bundle, "READY=1")  # it waits in the socket
            assert _state(host) == "activating"
    else:  # on 252 the socket is lost, and made anew
        with no_daemon(host):
            assert _state(host) == "activating"
        _tell(bundle, "READY=1")
    assert bundle.read_line("stdout") == b"said\n"
    assert _state(host) == "active"
    _ended(rig, bundle)


def test_a_daemon_that_dies_while_the_unit_is_activating_loses_no_exit(
    rig: Rig, host: Host
) -> None:
    bundle = _created(rig, _spec())
    with dead_daemon(host):
        pass
    rig.call("Start", id=BOX)
    assert bundle.read_line("stdout") == b"up\n"
    with dead_daemon(host):
        _tell(bundle, "exit 9")
        eventually(lambda: _state(host) == "failed", "it has ended")
    assert rig.call("Wait", id=BOX).exit_status == 9
    assert rig.call("Delete", id=BOX).exit_status == 9
    rig.events.until(BOX, "delete")
    assert rig.events.of(BOX) == ["create", "start", "exit", "delete"]


def test_one_that_is_not_ready_can_be_given_up_without_the_daemon(rig: Rig, host: Host) -> None:
    bundle = _up(rig)
    with no_daemon(host):
        assert rig.give_up(bundle).exit_status == 137
    assert not rig.unit_exists(BOX)


def test_a_runtime_that_fails_is_the_error_of_create(rig: Rig) -> None:
    spec = _spec()
    spec["process"]["args"] = ["/nothing/there"]
    bundle = rig.bundle(BOX, spec=spec)
    _, text = rig.refused("Create", id=BOX, bundle=bundle.path)
    assert text.startswith("OCI runtime create failed: ")
    assert "/nothing/there" in text
    assert not rig.unit_exists(BOX)


def test_a_wish_that_cannot_be_read_is_refused(rig: Rig) -> None:
    bundle = rig.bundle(BOX, spec=_spec({"io.sdshim.notify": "perhaps"}))
    code, text = rig.refused("Create", id=BOX, bundle=bundle.path)
    assert code == INVALID
    assert "io.sdshim.notify 'perhaps' is neither true nor false" in text


def test_a_container_that_never_stops_talking_delays_nobody(rig: Rig, host: Host) -> None:
    talk = SAYER.partition("print")[0] + 'print("up", flush=True)\nwhile 1: say("STATUS=more")\n'
    spec = _spec()
    spec["process"]["args"][-1] = talk
    _up(rig, spec)
    rig.running("other")
    for _ in range(50):
        assert rig.call("State", id="other").status == RUNNING
    assert _shown(host, "StatusText") == ["more"]
