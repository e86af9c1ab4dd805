"""Systemd in a container: which containers are meant, and what their OCI spec is given."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sdshim.core import systemdmode, unitproperties
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import RuntimeOptions
from sdshim.core.names import TaskKey

KEY = TaskKey("default", "box")
CGROUP = "/sdshim.slice/box.service/container"


def _spec(*mounts: dict[str, Any], args: Any = ("/sbin/init",), **linux: Any) -> dict[str, Any]:
    return {
        "process": {"args": list(args), "env": ["PATH=/bin"], "cwd": "/"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}, *mounts],
        "linux": {"namespaces": [{"type": "pid"}], **linux},
        "root": {"path": "rootfs"},
    }


def _mount(place: str, kind: str = "bind", *options: str) -> dict[str, Any]:
    return {"destination": place, "type": kind, "source": "there", "options": list(options)}


def _prepared(spec: dict[str, Any], *, unified: bool = True) -> dict[str, Any]:
    before = copy.deepcopy(spec)
    made = systemdmode.prepare(spec, KEY, CGROUP, unified=unified)
    assert spec == before
    assert systemdmode.prepare(made, KEY, CGROUP, unified=unified) == made
    return made


def _places(spec: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in spec["mounts"]]


def _at(spec: dict[str, Any], place: str) -> dict[str, Any]:
    (found,) = [mount for mount in spec["mounts"] if mount["destination"] == place]
    return dict(found)


# --- which


@pytest.mark.parametrize(
    ("command", "is_systemd"),
    [
        (["/sbin/init"], True),
        (["/usr/sbin/init", "--unit=x.target"], True),
        (["/usr/local/sbin/init"], True),
        (["/lib/systemd/systemd"], True),
        (["/usr/lib/systemd/systemd", "--system"], True),
        (["systemd"], True),
        (["init"], False),
        (["/bin/init"], False),
        (["sh", "-c", "/sbin/init"], False),
        (["systemd-run"], False),
        ([], False),
        ([7], False),
    ],
)
def test_a_command_is_systemds_by_its_name(command: list[Any], is_systemd: bool) -> None:
    spec = _spec(args=command)
    assert systemdmode.wanted(spec, {}) is is_systemd
    assert systemdmode.wanted(spec, {systemdmode.ANNOTATION: "true"}) is is_systemd
    assert not systemdmode.wanted(spec, {systemdmode.ANNOTATION: "false"})
    assert systemdmode.wanted(spec, {systemdmode.ANNOTATION: "always"})


@pytest.mark.parametrize("spec", [{}, {"process": None}, {"process": {"args": "init"}}])
def test_a_spec_without_a_command_is_not(spec: dict[str, Any]) -> None:
    assert not systemdmode.wanted(spec, {})


@pytest.mark.parametrize("mode", ["", "yes", "True"])
def test_another_word_in_the_annotation_is_refused_by_its_name(mode: str) -> None:
    with pytest.raises(InvalidArgument, match=r"annotation io\.sdshim\.systemd: .* is not one of"):
        systemdmode.wanted(_spec(), {systemdmode.ANNOTATION: mode})


# --- what


def test_there_is_memory_where_systemd_writes() -> None:
    made = _prepared(_spec())
    for place in ("/run", "/run/lock", "/tmp", "/var/log/journal"):
        mount = _at(made, place)
        assert mount["type"] == "tmpfs"
        assert {"rw", "nosuid", "nodev", "tmpcopyup"} <= set(mount["options"])
    assert _places(made).index("/run") < _places(made).index("/run/lock")


def test_what_the_client_mounts_there_stays() -> None:
    mine = [_mount("/run", "tmpfs", "size=64m"), _mount("/var/log/journal/"), _mount("/tmp")]
    made = _prepared(_spec(*mine))
    assert [mount for mount in made["mounts"] if mount in mine] == mine
    assert [place for place in _places(made) if "journal" in place] == ["/var/log/journal/"]
    assert _places(made).count("/run") == _places(made).count("/tmp") == 1


@pytest.mark.parametrize("place", ["/run/secrets/token", "/var/run/secrets/kubernetes.io/x"])
def test_nothing_that_the_client_mounts_is_covered(place: str) -> None:
    places = _places(_prepared(_spec(_mount(place))))
    assert places.index("/run") < places.index(place)


def test_the_environment_says_what_it_is_and_the_machines_id() -> None:
    env = _prepared(_spec())["process"]["env"]
    assert env == ["PATH=/bin", "container=oci", f"container_uuid={systemdmode.uuid(KEY)}"]
    spec = _spec()
    spec["process"]["env"] = ["container=other", "container_uuid=mine"]
    assert _prepared(spec)["process"]["env"] == ["container=other", "container_uuid=mine"]


def test_the_machines_id_is_from_the_containers() -> None:
    long = "0123456789abcdef" * 4
    assert systemdmode.uuid(TaskKey("moby", long)) == long[:32]
    found = {systemdmode.uuid(TaskKey(space, "box")) for space in ("a", "b")}
    assert len(found) == 2
    assert all(len(one) == 32 and int(one, 16) for one in found)


def test_on_v2_its_own_cgroup_may_be_written_to_in_a_namespace_of_its_own() -> None:
    made = _prepared(_spec())
    mount = _at(made, "/sys/fs/cgroup")
    assert mount["type"] == "cgroup"
    assert "rw" in mount["options"]
    assert {"type": "cgroup"} in made["linux"]["namespaces"]
    assert "/sys/fs/cgroup/systemd" not in _places(made)


def test_a_read_only_cgroup_mount_is_replaced_where_it_stands() -> None:
    spec = _spec(_mount("/sys/fs/cgroup", "cgroup", "ro"), _mount("/last"))
    made = _prepared(spec)
    assert "ro" not in _at(made, "/sys/fs/cgroup")["options"]
    assert _places(made)[:3] == ["/proc", "/sys/fs/cgroup", "/last"]


def test_a_cgroup_namespace_that_the_client_names_stays() -> None:
    mine = [{"type": "cgroup", "path": "/proc/7/ns/cgroup"}]
    assert _prepared(_spec(namespaces=mine))["linux"]["namespaces"] == mine


def test_cgroups_that_the_client_binds_are_left_to_it() -> None:
    spec = _spec(_mount("/sys/fs/cgroup", "bind", "rbind", "rw"))
    made = _prepared(spec, unified=False)
    assert made["linux"] == spec["linux"]
    assert [m for m in made["mounts"] if "cgroup" in m["destination"]] == [spec["mounts"][1]]


def test_on_v1_only_systemds_own_hierarchy_may_be_written_to() -> None:
    made = _prepared(_spec(_mount("/sys/fs/cgroup", "cgroup", "rw")), unified=False)
    assert "ro" in _at(made, "/sys/fs/cgroup")["options"]
    named = _at(made, "/sys/fs/cgroup/systemd")
    assert named["source"] == f"/sys/fs/cgroup/systemd{CGROUP}"
    assert {"bind", "rw"} <= set(named["options"])
    assert _places(made).index("/sys/fs/cgroup") < _places(made).index("/sys/fs/cgroup/systemd")
    assert {"type": "cgroup"} in made["linux"]["namespaces"]


@pytest.mark.parametrize("spec", [{}, {"mounts": None, "process": None, "linux": None}])
def test_a_spec_that_says_nothing_gets_the_same(spec: dict[str, Any]) -> None:
    assert len(_prepared(spec)["mounts"]) == 5


@pytest.mark.parametrize(
    "spec",
    [{"mounts": {}}, {"process": []}, {"process": {"env": "A=b"}}, {"linux": {"namespaces": {}}}],
)
def test_what_is_no_list_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="of the OCI spec is no list"):
        systemdmode.prepare(spec, KEY, CGROUP, unified=True)


def test_systemctl_stop_sends_what_systemd_halts_at_unless_the_client_says_otherwise() -> None:
    assert not unitproperties.faults({"KillSignal": systemdmode.STOP_SIGNAL})
    stopped = systemdmode.stopped(RuntimeOptions())
    assert stopped.unit_properties == {"KillSignal": "SIGRTMIN+3"}
    mine = RuntimeOptions(unit_properties={"KillSignal": "SIGINT"})
    assert systemdmode.stopped(mine) == mine
