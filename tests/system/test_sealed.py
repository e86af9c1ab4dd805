"""The OCI runtime is run from one sealed copy of its program (sdshim/runtime/sealed.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.taskclient import Rig, dead_daemon, spec_of

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def _program(rig: Rig, host: Host, id_: str) -> str:
    """Device and inode of what the init of a task that waits for Start is run from."""
    pid = rig.call("State", id=id_).pid
    told = host.run(["sh", "-c", f"readlink /proc/{pid}/exe; stat -L -c %d:%i /proc/{pid}/exe"])
    link, number = told.stdout.splitlines()
    assert link.startswith("/memfd:runc"), link
    return str(number)


def _delete(rig: Rig, *ids: str) -> None:
    for id_ in ids:
        rig.call("Kill", id=id_, signal=9)
        rig.call("Wait", id=id_)
        rig.call("Delete", id=id_)


def test_all_containers_are_made_from_one_copy_also_by_the_next_daemon(
    rig: Rig, host: Host
) -> None:
    rig.created("a")
    rig.created("b")
    with dead_daemon(host):
        pass
    rig.created("c")
    assert len({_program(rig, host, id_) for id_ in "abc"}) == 1
    _delete(rig, *"abc")


def test_a_runtime_that_was_upgraded_is_copied_again(rig: Rig, host: Host) -> None:
    rig.created("old")
    host.run(["sh", "-c", "p=$(command -v runc); cp -p $p $p.new && mv $p.new $p"])
    rig.created("new")
    assert _program(rig, host, "old") != _program(rig, host, "new")
    _delete(rig, "old", "new")


def test_hooks_do_not_get_the_copy(rig: Rig) -> None:
    bundle = rig.bundle("hooked")
    hook = bundle.outside / "hook"
    hook.write_text(f"#!/bin/sh\nls /proc/self/fd >{bundle.path}/told\n")
    hook.chmod(0o700)
    spec = spec_of("true")
    spec["hooks"] = {"createRuntime": [{"path": f"{bundle.path}/hook"}]}
    bundle.write_spec(spec)
    rig.call("Create", id="hooked", bundle=bundle.path)
    rig.call("Start", id="hooked")
    rig.call("Wait", id="hooked")
    rig.call("Delete", id="hooked")
    assert (bundle.outside / "told").read_text().split() == ["0", "1", "2", "3"]  # 3 lists
