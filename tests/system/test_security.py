"""Who may read what, and what is told to whom (docs/security.md)."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.core.errors import Code
from sdshim.pb import runc_pb2
from tests.system.taskclient import HOME, exec_spec, spec_of

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = pytest.mark.system

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
SCORE = 9.6
"""Of systemd-analyze; it may become better. What is open, and why, stands in PAGE."""
SECRETS = ("canary-of-create", "canary-of-exec", "canary-without-equals", "canary\nof lines")


def test_everything_below_run_is_for_root_only_while_containers_of_all_kinds_live(
    host: Host, rig: Rig
) -> None:
    rig.running("plain", "sleep", "1000")
    logged = rig.bundle("logged", "sleep", "1000")
    rig.call("Create", id="logged", bundle=logged.path, stdout=f"file://{HOME}/logged.log")
    rig.call("Start", id="logged")
    spec = spec_of("sleep", "1000")
    spec["process"]["terminal"] = True
    pts = {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
    spec["mounts"].append({**pts, "options": ["newinstance", "ptmxmode=0666"]})
    rig.call("Create", id="tty", bundle=rig.bundle("tty", spec=spec).path, terminal=True)
    rig.call("Exec", id="plain", exec_id="e", spec=exec_spec("sleep", "1000"))
    rig.call("Start", id="plain", exec_id="e")
    top = host.path("/run/sdshim")
    entries = [top, *top.rglob("*")]
    assert len(entries) > 20
    for path in entries:
        facts = path.lstat()
        assert (facts.st_uid, facts.st_gid) == (0, 0), path
        assert not facts.st_mode & 0o022 or stat.S_ISLNK(facts.st_mode), path
        # what a shell or the OCI runtime writes has their umask, below folders that are root's
        written = stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode)
        ours = path.suffix == ".json" or path.name.startswith(("calls", "ready"))
        if ours or not written:
            assert not facts.st_mode & 0o077, (path, oct(facts.st_mode))


def test_no_environment_value_is_told_whatever_the_runtime_prints(rig: Rig, host: Host) -> None:
    spec = spec_of("sleep", "1000")
    spec["process"]["env"] += [f"SECRET={SECRETS[0]}", f"LINES={SECRETS[3]}"]
    rig.running("box", spec=spec)
    told = []
    environment = ["PATH=/bin", f"SECRET={SECRETS[1]}"]
    for exec_id, more in (
        ("missing", {"env": environment}),
        ("odd", {"env": [*environment, SECRETS[2]]}),
    ):
        command = "/no/such/program" if exec_id == "missing" else "true"
        rig.call("Exec", id="box", exec_id=exec_id, spec=exec_spec(command, **more))
        answer = rig.begin("Start", id="box", exec_id=exec_id).exception(20)
        told.append(str(answer))
    rig.call("Pause", id="box")
    rig.call("Resume", id="box")
    for program, words in (
        ("teller", "cat config.json >&2; exit 1"),
        ("logger", 'for a; do case $p in --log) cat config.json >"$a";; esac; p=$a; done; exit 1'),
    ):
        path = host.path(f"{HOME}/{program}")
        path.write_text(f"#!/bin/sh\ncd {HOME}/b/default/{program}\n{words}\n")
        path.chmod(0o755)
        options = runc_pb2.Options(binary_name=f"{HOME}/{program}")
        kind = "containerd.runc.v1.Options"
        wished = AnyMessage(type_url=kind, value=options.SerializeToString())
        bundle = rig.bundle(program, spec=spec)
        code, text = rig.refused("Create", id=program, bundle=bundle.path, options=wished)
        assert code == Code.UNKNOWN
        told.append(text)
    rig.call("Kill", id="box", signal=9)
    rig.call("Wait", id="box")
    rig.call("Delete", id="box")
    # of the daemon and of systemd; what the runtime writes to the container's own stderr is output
    journal = host.run(["journalctl", "--no-pager", "-u", "sdshim", "-u", "init.scope"]).stdout
    assert "Create: default/teller: " in journal
    for secret in SECRETS:
        assert secret not in journal
        assert not [text for text in told if secret in text], secret
    units = host.run(["systemctl", "show", "--all", "sdshim-*"]).stdout
    assert not [secret for secret in SECRETS if secret in units]


def test_no_word_of_a_client_becomes_a_line_of_the_units_file(rig: Rig, host: Host) -> None:
    evil = "\nExecStopPost=/bin/touch /tmp/evil\n%n ${HOME} $$ %%"
    spec = spec_of("sleep", "1000")
    spec["process"]["env"] += [f"A={evil}", f"B%n$HOME{evil}=c"]
    spec["annotations"] = {"io.kubernetes.cri.container-name": evil, f"x{evil}": evil}
    fifo = f"{HOME}/a%n$HOME\nExecStopPost=touch x"
    host.run(["mkfifo", fifo])
    bundle = rig.bundle("odd", spec=spec)
    rig.call("Create", id="odd", bundle=bundle.path, stdout=fifo)
    host.run(["systemctl", "daemon-reload"])
    unit = "sdshim-default-odd.service"

    def shown(key: str) -> str:
        return host.run(["systemctl", "show", "--value", "-p", key, unit]).stdout

    assert shown("LoadState") == "loaded\n"
    assert "touch" not in shown("ExecStopPost")
    for key in ("Environment", "ExecStartPre", "ExecStopPost"):
        assert "evil" not in shown(key)
    assert shown("Description").count("\n") == 1
    assert rig.call("State", id="odd").pid


@pytest.mark.roots("self", "trixie", "forky")
def test_the_daemons_unit_is_as_hard_as_the_page_says(host: Host) -> None:
    done = host.run(["systemd-analyze", "security", "--no-pager", "sdshim.service"]).stdout
    found = re.search(r"Overall exposure level for sdshim\.service: ([0-9.]+)", done)
    assert found
    assert float(found[1]) <= SCORE
    page = PAGE.read_text(encoding="utf-8")
    for line in done.splitlines():
        if line.startswith("✗"):
            for key in re.findall(r"([A-Za-z]+)=", line.split()[1]):
                assert f"`{key}=`" in page, f"{key}= is open and docs/security.md does not say why"
