"""`sdshim doctor` on the node: versions, cgroup trees, containers that reach out, drop-ins."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import pack
from tests.system.doctor.kit import (
    CANNOT_TELL,
    FAULTS,
    Told,
    config,
    doctor,
    drop_in,
    is_fine,
    known_to_real,
)
from tests.system.taskclient import spec_of

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def test_a_runtime_that_is_too_old_or_missing_is_a_fault(host: Host) -> None:
    with config(host, runtime="/usr/bin/no-such-runc") as path:
        found = doctor(host, "--config", path).of("versions")
    assert "/usr/bin/no-such-runc, which the configuration names" in found["text"]
    host.run(["mkdir", "/tmp/old"])
    host.path("/tmp/old/runc").write_text("#!/bin/sh\necho runc version 1.0.3\n")
    host.path("/tmp/old/runc").chmod(0o755)
    env = {"PATH": "/tmp/old:/usr/local/bin:/usr/bin:/bin"}
    found = doctor(host, env=env).of("versions")
    assert found["text"] == "runc is version 1.0.3; sdshim needs 1.1 or newer"
    host.run(["rm", "-r", "/tmp/old"])


def test_a_criu_that_options_name_must_be_there(host: Host, rig: Rig) -> None:
    options = pack(runc_pb2.Options(criu_path="/opt/criu"))
    known_to_real(rig, "box", options=options)
    found = doctor(host).of("criu")
    assert "/opt/criu, which default/box names" in found["text"]


def test_a_cgroup_tree_of_neither_kind_is_a_fault(host: Host) -> None:
    script = "mount -t tmpfs tmpfs /sys/fs/cgroup && exec sdshim doctor --json"
    done = host.run(["unshare", "-m", "sh", "-c", script], check=False)
    assert Told(json.loads(done.stdout), FAULTS).of("cgroup-mode")


def test_a_cgroup_of_somebody_else_is_told(host: Host, rig: Rig) -> None:
    spec = spec_of("sleep", "1000")
    spec["linux"]["cgroupsPath"] = "/elsewhere/box"
    known_to_real(rig, "box", spec)
    found = doctor(host).of("foreign-cgroups")
    assert "default/box runs in a cgroup of somebody else (/elsewhere/box)" in found["text"]
    shown = json.loads(host.run(["sdshim", "inspect", "box", "--json"]).stdout)["cgroup"]
    assert (shown["path"], shown["owner"]) == ("/elsewhere/box", "somebody else")
    pid = rig.call("State", id="box").pid
    assert ":/elsewhere/box\n" in host.run(["cat", f"/proc/{pid}/cgroup"]).stdout


@pytest.mark.parametrize(("source", "told"), [("/run", True), ("/run/lock", False)])
def test_a_container_that_is_given_the_hosts_run_is_told(
    host: Host, rig: Rig, source: str, told: bool
) -> None:
    host.run(["mkdir", "-p", "/run/lock"])
    spec = spec_of("sleep", "1000")
    mount = {"destination": "/mnt", "type": "bind", "source": source, "options": ["rbind"]}
    spec["mounts"].append(mount)
    known_to_real(rig, "box", spec)
    assert ("host-run" in doctor(host).checks) == told


def test_drop_ins_that_the_daemon_or_containers_cannot_have_are_named(host: Host, web: str) -> None:
    with drop_in(host, "sdshim-.service", "[Service]\nPrivateDevices=yes\nUser=root\n") as path:
        found = doctor(host).of("drop-ins")
        assert found["text"].startswith(f"{path} sets PrivateDevices=, which takes from")
        assert found["level"] == "fault"
    with drop_in(host, "sdshim.service", "[Service]\nProtectSystem=full\n") as path:
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "restart", "sdshim.service"])
        found_all = [f["subject"] for f in doctor(host).findings]
        assert found_all == [f"{path}:ProtectSystem", "sdshim.service"]
    host.run(["systemctl", "restart", "sdshim.service"])
    is_fine(host)


def test_without_root_it_cannot_tell(host: Host, web: str) -> None:
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = host.run([*unprivileged, "sdshim", "doctor"], check=False)
    assert done.returncode == CANNOT_TELL
    assert "run it as root" in done.stdout
