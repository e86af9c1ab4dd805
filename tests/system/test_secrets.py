"""No environment value of a container is told: whatever is done, whatever fails, at the most
talkative level, with spans (docs/security.md, "What is not told")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.core.errors import ShimError
from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import PROCESS_URL, pack
from tests.system.checkpoints import options as checkpoint_options
from tests.system.taskclient import HOME, Rig, eventually, exec_spec, spec_of
from tests.system.traces import OUT, traced_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Bundle

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.roots("self"),
    pytest.mark.cgroup("v1"),
]

CANARY = "canary"
"""Every value has it, so one search finds them all."""
WRAPPER = f"{HOME}/talker"
TELL = f"{HOME}/tell"
"""Names of commands in which the runtime fails and prints what it was given."""
TALKER = f"""#!/bin/sh
for word; do
    case $word in
        create | start | exec | update | checkpoint | delete | pause | resume | state)
            verb=$word
            break
            ;;
    esac
done
grep -qx "$verb" {TELL} || exec runc "$@"
for word; do
    [ "$last" != --log ] || log=$word
    [ "$last" != --process ] || cat "$word" >&2
    last=$word
done
[ -e {TELL}.printed ] || printf '{{"level":"error","msg":"%s","time":"2026-01-01T00:00:00Z"}}\\n' \\
    "$(tr -d '"{{}}' <{HOME}/b/default/box/config.json)" >"$log"
cat {HOME}/b/default/box/config.json >&2
exit 1
"""
QUIET = {"stdout": "/dev/null", "stderr": "/dev/null"}
"""What a runtime writes to the container's own stderr is the container's output."""
READABLE = ("/run", "/etc", "/tmp")
UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture(scope="module")
def talkative(host: Host) -> Iterator[Host]:
    """A traced host whose daemon logs all."""
    with traced_host(host) as booted:
        booted.run(["mkdir", "-p", "/etc/sdshim"])
        booted.path("/etc/sdshim/config.toml").write_text('log_level = "debug"\n')
        booted.run(["systemctl", "restart", "sdshim.service"])
        yield booted


@pytest.fixture
def wired(talkative: Host) -> Iterator[Rig]:
    """A containerd of ours on it."""
    with Rig(talkative) as rig:
        path = talkative.path(WRAPPER)
        path.write_text(TALKER)
        path.chmod(0o755)
        talkative.path(TELL).write_text("")
        talkative.path(f"{TELL}.printed").unlink(missing_ok=True)
        yield rig


class Ear:
    """Makes calls, and keeps what they were told."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.told: list[str] = []
        self.failed: list[str] = []

    def fails(self, method: str, **fields: Any) -> None:
        """A call that must fail."""
        _, text = self.rig.refused(method, **fields)
        self._heard(method, text)

    def tries(self, method: str, **fields: Any) -> None:
        """A call that fails on some hosts."""
        try:
            self.told.append(str(self.rig.call(method, **fields)))
        except ShimError as error:
            self._heard(method, str(error))

    def _heard(self, method: str, text: str) -> None:
        self.failed.append(method)
        self.told.append(f"{method}: {text}")


def _spec(*command: str) -> dict[str, Any]:
    spec = spec_of(*command)
    spec["process"]["env"] += [f"SECRET={CANARY}-of-create", f'LINES=of\n{CANARY} "ä"']
    return spec


def _process(*command: str) -> AnyMessage:
    return exec_spec(*command, env=["PATH=/bin", f"SECRET={CANARY}-of-exec"])


def _resources(pids: int) -> AnyMessage:
    kind = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    return AnyMessage(type_url=kind, value=json.dumps({"pids": {"limit": pids}}).encode())


def _box(rig: Rig, id_: str = "box") -> Bundle:
    """A running container of the talkative runtime."""
    bundle = rig.bundle(id_, spec=_spec("sleep", "1000"))
    options = pack(runc_pb2.Options(binary_name=WRAPPER))
    rig.call("Create", id=id_, bundle=bundle.path, options=options, **QUIET)
    rig.call("Start", id=id_)
    return bundle


def _lives(ear: Ear) -> None:
    """Every operation that succeeds."""
    rig = ear.rig
    for name, command in (("works", "true"), ("missing", "/no/such/program")):
        rig.call("Exec", id="box", exec_id=name, spec=_process(command), **QUIET)
        (rig.call if name == "works" else ear.fails)("Start", id="box", exec_id=name)
    for method in ("Pause", "Resume", "Pids", "Stats", "State", "Connect"):
        ear.told.append(str(rig.call(method, id="box")))
    resources = _resources(100)
    ear.tries("Update", id="box", resources=resources, annotations={"a": "b"})
    ear.tries("Checkpoint", id="box", path="/no/such/place", options=checkpoint_options())
    ear.tries("Kill", id="box", exec_id="works", signal=15)


def _bad_requests(ear: Ear) -> None:
    """Requests and specs that carry a value where none is looked for."""
    process = {"args": ["true"], "cwd": "/", "env": {"SECRET": f"{CANARY}-in-a-table"}}
    bad = [
        b'{"args":["true"],"cwd":"/","env":["SECRET=%s-torn' % CANARY.encode(),
        json.dumps(process).encode(),
        json.dumps({**process, "env": f"SECRET={CANARY}-as-text"}).encode(),
        json.dumps({**process, "env": [{"SECRET": f"{CANARY}-in-a-list"}]}).encode(),
        b"\xff\xfe" + CANARY.encode(),
    ]
    for number, value in enumerate(bad):
        spec = AnyMessage(type_url=PROCESS_URL, value=value)
        exec_id = f"bad{number}"
        ear.tries("Exec", id="box", exec_id=exec_id, spec=spec, **QUIET)
        ear.tries("Start", id="box", exec_id=exec_id)
    spec = AnyMessage(type_url="types.containerd.io/none", value=bad[1])
    ear.tries("Exec", id="box", exec_id="kind", spec=spec, **QUIET)
    ear.tries("Exec", id="nobody", exec_id="x", spec=_process("true"), **QUIET)
    for number, value in enumerate([*bad, b'{"process":' + bad[1] + b"}"]):
        id_ = f"corrupt{number}"
        bundle = ear.rig.bundle(id_, spec=value)
        ear.tries("Create", id=id_, bundle=bundle.path, **QUIET)


def _failing_runtime(ear: Ear) -> None:
    """Every command of the runtime fails, and prints the container's configuration."""
    rig, tell = ear.rig, ear.rig.host.path(TELL)
    tell.write_text("exec\n")
    rig.call("Exec", id="box", exec_id="told", spec=_process("true"), **QUIET)
    ear.fails("Start", id="box", exec_id="told")
    resources = _resources(90)
    tell.write_text("update\npause\nresume\ncheckpoint\nkill\n")
    ear.tries("Update", id="box", resources=resources)
    ear.tries("Pause", id="box")
    ear.tries("Resume", id="box")
    tell.write_text("checkpoint\n")
    ear.tries("Checkpoint", id="box", path=f"{HOME}/image", options=checkpoint_options())
    tell.write_text("")
    options = pack(runc_pb2.Options(binary_name=WRAPPER))
    for verb in ("start", "create"):
        bundle = rig.bundle(f"no-{verb}", spec=_spec("true"))
        tell.write_text("create\n" if verb == "create" else "")
        fields: dict[str, Any] = {
            "id": f"no-{verb}",
            "bundle": bundle.path,
            "options": options,
            **QUIET,
        }
        if verb == "create":
            ear.fails("Create", **fields)
        else:
            rig.call("Create", **fields)
            tell.write_text("start\n")
            ear.fails("Start", id=f"no-{verb}")
    tell.write_text("delete\n")
    rig.call("Kill", id="box", signal=9)
    rig.call("Wait", id="box")
    ear.tries("Delete", id="box")
    told = rig.launcher(rig.bundle("again", spec=_spec("true")), "delete")
    ear.told.append(told.decode("latin-1"))
    tell.write_text("")
    ear.tries("Delete", id="box")


def _shown(host: Host) -> dict[str, str]:
    """What anybody, or an operator, can see of all that."""
    argv = {
        "the journal": ["journalctl", "--no-pager", "-o", "export"],
        "systemctl show": ["systemctl", "show", "--all", "sdshim*"],
        "systemctl status": ["systemctl", "status", "--no-pager", "-l", "sdshim*"],
        "systemctl cat": ["sh", "-c", "systemctl cat $(ls /run/systemd/transient)"],
        "ps": ["sdshim", "ps", "--json"],
        "inspect": ["sdshim", "inspect", "keeps", "--json"],
        "doctor": ["sdshim", "doctor", "--json"],
        "processes": ["sh", "-c", "cat /proc/[0-9]*/cmdline"],
        "files": [*UNPRIVILEGED, "grep", "-rsl", "-Dskip", CANARY, *READABLE],
    }
    return {name: host.run(words, check=False).stdout for name, words in argv.items()}


def _nothing_told(places: dict[str, str]) -> None:
    for place, text in places.items():
        assert text or place in ("files", "errors"), f"{place} is empty"
        lines = [line[:2000] for line in text.splitlines() if CANARY in line]
        assert not lines, (place, lines[:5])


def test_no_value_is_told_by_what_succeeds_or_is_refused(wired: Rig, talkative: Host) -> None:
    ear = Ear(wired)
    _box(wired)
    _box(wired, "keeps")
    _lives(ear)
    _bad_requests(ear)
    assert len(ear.failed) > 8
    _nothing_told({"errors": "\n".join(ear.told), **_shown(talkative)})


@pytest.mark.parametrize("how", ["logged", "printed"])
def test_no_value_is_told_when_the_runtime_fails_and_tells_them_all(
    wired: Rig, talkative: Host, how: str
) -> None:
    ear = Ear(wired)
    if how == "printed":
        talkative.path(f"{TELL}.{how}").touch()
    _box(wired)
    _box(wired, "keeps")
    _failing_runtime(ear)
    assert {"Start", "Create"} <= set(ear.failed)
    spans = talkative.path(OUT)
    eventually(lambda: "no-create" in spans.read_text(), "the spans have come")
    places = _shown(talkative)
    _nothing_told({"errors": "\n".join(ear.told), "spans": spans.read_text(), **places})
