"""A task's unit: the properties of design 4, and nothing that systemd would expand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdshim.core.loguri import Logger
from sdshim.core.model import Identity, Mount, Stdio
from sdshim.core.unitspec import (
    INFINITY,
    ExecUnit,
    HostFacts,
    InitUnit,
    LoggerUnit,
    OneshotUnit,
    SealedProgram,
    exec_properties,
    init_properties,
    logger_properties,
    oneshot_properties,
    run_from,
)
from tests.unit.test_record import IDENTITY

OLD = HostFacts(systemd=252, unified=True, launcher="/l")
NEW = HostFacts(systemd=257, unified=True, launcher="/l")
HYBRID = HostFacts(systemd=252, unified=False, launcher="/l")


def _properties(host: HostFacts = NEW, identity: Identity = IDENTITY) -> dict[str, Any]:
    unit = InitUnit(identity, "/state", ("/usr/sbin/runc", "create", "c1"), "text")
    found = init_properties(unit, host)
    assert len({name for name, _, _ in found}) == len(found)
    return {name: value for name, _, value in found}


def _start(found: dict[str, Any]) -> list[str]:
    lines = found.get("ExecStartEx") or found["ExecStart"]
    argv: list[str] = lines[0][1]
    return argv


def test_what_has_ended_is_never_run_again() -> None:
    assert _properties()["Asserts"] == [("AssertPathExists", False, True, "/state/exit")]


def test_the_unit_is_pinned_and_follows_the_pid_file() -> None:
    found = _properties()
    assert found["AddRef"] is True
    assert found["PIDFile"] == "/state/init.pid"
    assert found["KillMode"] == "mixed"
    assert found["Delegate"] is True


def test_a_container_that_tells_when_it_is_ready_has_no_time_limit_of_systemds() -> None:
    asked = replace(IDENTITY, runtime=replace(IDENTITY.runtime, notify=True))
    found = _properties(identity=asked)
    assert (found["Type"], found["TimeoutStartUSec"]) == ("notify", INFINITY)
    assert found["PIDFile"] == "/state/init.pid"
    restored = _properties(identity=replace(asked, checkpoint="/images"))
    assert (restored["Type"], restored["TimeoutStartUSec"]) == ("forking", 300_000_000)


def test_no_exec_line_is_expanded_by_systemd() -> None:
    found = _properties()
    for name in ("ExecStartPreEx", "ExecStartEx", "ExecStopPostEx"):
        for _, _, flags in found[name]:
            assert "no-env-expand" in flags


def test_before_257_the_form_that_survives_a_reload_is_used_with_dollars_doubled() -> None:
    identity = replace(IDENTITY, bundle="/b$HOME/${x}$$")
    found = _properties(OLD, identity)
    assert not any(name.endswith("Ex") for name in found)
    assert found["ExecStartPre"][0][1][-1] == "/b$$HOME/$${x}$$$$/rootfs"


@pytest.mark.parametrize(
    ("host", "sup", "subgroup"),
    [(OLD, "/sys/fs/cgroup/x/sup", False), (NEW, "-", True), (HYBRID, "-", False)],
    ids=["v2 without DelegateSubgroup", "v2 with DelegateSubgroup", "hybrid v1"],
)
def test_the_runtime_is_out_of_the_units_own_cgroup(
    host: HostFacts, sup: str, subgroup: bool
) -> None:
    found = _properties(host)
    assert _start(found)[2] == sup
    assert ("DelegateSubgroup" in found) == subgroup


def test_a_foreign_cgroup_gets_no_sup() -> None:
    found = _properties(OLD, replace(IDENTITY, owns_cgroup=False))
    assert _start(found)[2] == "-"


def test_every_mount_is_a_line_of_its_own_in_the_order_given() -> None:
    mounts = (
        Mount("overlay", "overlay", "", ("lowerdir=/a:/b", "upperdir=/u")),
        Mount("bind", "/src", "", ("rbind", "ro")),
    )
    lines = [
        argv
        for _, argv, _ in _properties(identity=replace(IDENTITY, rootfs=mounts))["ExecStartPreEx"]
    ]
    assert lines[0][-4:] == ["-o", "lowerdir=/a:/b,upperdir=/u", "overlay", "/b/rootfs"]
    assert lines[1][-4:] == ["-o", "rbind,ro", "/src", "/b/rootfs"]


def test_an_exec_has_no_dependency_that_could_start_its_container_again() -> None:
    me = replace(IDENTITY, exec_id="e1", unit="sdshim-default-c1:e1.service", rootfs=())
    unit = ExecUnit(me, "/state/x", ("/usr/sbin/runc", "exec", "c1"), "text")
    found = {name: value for name, _, value in exec_properties(unit, NEW)}
    assert not {"BindsTo", "Requires", "PartOf", "Wants", "Delegate"} & set(found)
    assert found["After"] == ["sdshim.target"]
    assert found["Type"] == "notify"
    assert found["NotifyAccess"] == "main"
    assert b"CONTAINER_EXEC_ID=e1" in found["LogExtraFields"]
    hook = found["ExecStopPostEx"][0][1]
    assert hook == ["/l/exit-hook", "/state/x", IDENTITY.cgroup]


def test_streams_that_were_not_asked_for_are_dashes() -> None:
    argv = _start(_properties())
    assert argv[3:7] == ["/i", "/o", "-", "--"]


def test_what_is_restored_is_not_mounted_by_its_own_unit() -> None:
    assert "ExecStartPreEx" in _properties()
    found = _properties(identity=replace(IDENTITY, checkpoint="/images"))
    assert "ExecStartPreEx" not in found
    assert found["PIDFile"] == "/state/init.pid"


def test_a_oneshot_unit_leaves_a_record_of_its_end_and_is_never_run_again() -> None:
    me = replace(IDENTITY, unit="u::checkpoint.service", token="t" * 32)
    unit = OneshotUnit(me, "/state/x", (("/bin/a", "1"), ("/bin/b",)), "text", ("A=b",))
    found = {name: value for name, _, value in oneshot_properties(unit, NEW)}
    assert found["Type"] == "oneshot"
    assert [line[1] for line in found["ExecStartEx"]] == [["/bin/a", "1"], ["/bin/b"]]
    assert found["ExecStopPostEx"][0][1] == ["/l/exit-hook", "/state/x"]
    assert found["Asserts"] == [("AssertPathExists", False, True, "/state/x/exit")]
    assert {f"SDSHIM_TOKEN={'t' * 32}", "A=b"} <= set(found["Environment"])
    assert found["TimeoutStartUSec"] == 2**64 - 1


def test_a_unit_is_given_the_program_of_its_runtime_as_its_input() -> None:
    unit = InitUnit(IDENTITY, "/state", ("/usr/sbin/runc", "create"), "text")
    before = init_properties(unit, NEW)
    after = run_from(SealedProgram(7, "/run/sdshim/programs/runc"), before)
    old = {name: (signature, value) for name, signature, value in before}
    new = {name: (signature, value) for name, signature, value in after}
    assert new.pop("StandardInputFileDescriptor") == ("h", 7)
    assert old.pop("StandardInput") == ("s", "null")
    signature, environment = old["Environment"]
    assert new.pop("Environment") == (
        signature,
        [*environment, "SDSHIM_SEALED=/run/sdshim/programs/runc"],
    )
    del old["Environment"]
    assert new == old


def test_the_daemon_may_speak_for_the_main_process_and_the_hook_for_itself() -> None:
    assert _properties()["NotifyAccess"] == "exec"


def _logger(logger: Logger, **changes: Any) -> dict[str, Any]:
    me = replace(IDENTITY, **changes)
    return {n: v for n, _, v in logger_properties(LoggerUnit(me, "/state", logger), NEW)}


def test_a_logger_is_outside_the_limits_and_has_the_bounded_stop_of_stock() -> None:
    found = _logger(Logger("binary", "/bin/l", ("k", "$v")), slice="kubepods.slice")
    assert found["Slice"].startswith("sdshim-")
    assert found["TimeoutStopUSec"] == 12_000_000
    assert _start(found)[1:] == [
        "/state",
        "c1",
        IDENTITY.namespace,
        "/b",
        "--",
        "/bin/l",
        "k",
        "$v",
    ]
    assert "Restart" not in found
    assert "Asserts" not in found


def test_the_logger_of_an_exec_has_its_id_and_the_token_of_its_task() -> None:
    found = _logger(Logger("binary", "/l"), exec_id="e1", task_token="t" * 32)
    assert _start(found)[2] == "e1"
    assert f"SDSHIM_TASK={'t' * 32}" in found["Environment"]
    assert f"SDSHIM_TOKEN={IDENTITY.token}" in found["Environment"]


def test_the_logger_of_a_file_tries_again() -> None:
    found = _logger(Logger("file", "/a b"))
    assert _start(found) == ["/l/append", "/state", "/a b"]
    assert found["Restart"] == "on-failure"


def test_a_process_with_a_logger_writes_to_its_fifos_and_stops_before_it() -> None:
    me = replace(IDENTITY, stdio=Stdio("", "binary:///l", "binary:///l"))
    found = _properties(identity=me)
    assert _start(found)[3:7] == ["-", "/state/out", "/state/err", "--"]
    assert found["After"] == ["sdshim.target", "sdshim-default-c1::log.service"]
    assert _properties()["After"] == ["sdshim.target"]
