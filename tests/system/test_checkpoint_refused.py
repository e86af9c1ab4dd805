"""What stands in the way of a checkpoint or a restore is told before anything is touched; what
fails leaves things as they were."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.core.errors import ShimError
from sdshim.pb import options_pb2, task_types_pb2, types_pb2
from sdshim.pb.wellknown import pack
from tests.system.checkpoints import (
    FAKE,
    HELD_FAILS,
    IMAGES,
    NO_CRIU,
    await_criu,
    criu_works,
    fake_criu,
    hold_criu,
    images,
    let_go,
    options,
    to_restore,
    with_criu,
)
from tests.system.taskclient import HOME, ROOTFS, Rig, exec_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

UNKNOWN, INVALID, PRECONDITION = 2, 3, 9
CREATED, RUNNING = task_types_pb2.CREATED, task_types_pb2.RUNNING
OLD = 'echo "Version: 3.14.1"'
STRANGE = (
    'case $1 in --version) echo "Version: 4.1";; *) echo "Error (a.c:1): Odd kernel"; exit 1;; esac'
)
SAID = {
    "exit 0": f"{FAKE} is not criu",
    OLD: "criu 3.14 is too old: 3.15 or newer is needed",
    STRANGE: "criu 4.1 does not work on this machine: Odd kernel (hint: see `criu check`)",
}


@pytest.fixture
def folder(host: Host) -> Iterator[str]:
    """A folder that looks like one of images."""
    with images(host) as path:
        host.run(["mkdir", path])
        host.run(["touch", f"{path}/inventory.img"])
        yield path


def _running(rig: Rig, id_: str, task_options: AnyMessage) -> None:
    bundle = rig.bundle(id_, "sleep", "1000")
    rig.call("Create", id=id_, bundle=bundle.path, options=task_options)
    rig.call("Start", id=id_)


def _state_files(host: Host) -> set[str]:
    return set(host.run(["find", "/run/sdshim/t", "-mindepth", "4", "-type", "d"]).stdout.split())


@pytest.mark.parametrize("script", SAID, ids=["not criu", "too old", "does not work here"])
def test_a_criu_that_will_not_do_is_told_before_anything_is_touched(
    rig: Rig, host: Host, script: str
) -> None:
    with fake_criu(host, script) as task_options:
        _running(rig, "kept", task_options)
        before = rig.call("State", id="kept")
        error = rig.refused("Checkpoint", id="kept", path=IMAGES)
    assert error == (PRECONDITION, SAID[script])
    assert rig.call("State", id="kept") == before
    assert not host.path(IMAGES).exists()
    assert not _state_files(host)
    assert rig.events.of("kept") == ["create", "start"]


def test_a_missing_criu_is_told_before_anything_is_touched(rig: Rig, host: Host) -> None:
    _running(rig, "kept", with_criu("/nowhere/criu"))
    code, text = rig.refused("Checkpoint", id="kept", path=IMAGES)
    assert code == PRECONDITION
    assert text.startswith(
        'criu "/nowhere/criu" cannot be run: exec: "/nowhere/criu": no such file'
    )
    assert rig.call("State", id="kept").status == RUNNING
    assert not host.path(IMAGES).exists()


@pytest.mark.parametrize("script", [OLD, STRANGE], ids=["too old", "does not work here"])
def test_no_restore_is_begun_with_a_criu_that_will_not_do(
    rig: Rig, host: Host, folder: str, script: str
) -> None:
    bundle = rig.bundle("none", "sleep", "1000")
    mount = types_pb2.Mount(type="bind", source=ROOTFS, options=["rbind"])
    request: dict[str, Any] = {"bundle": bundle.path, "rootfs": [mount], "checkpoint": folder}
    with fake_criu(host, script) as task_options:
        error = rig.refused("Create", id="none", options=task_options, **request)
    assert error == (PRECONDITION, SAID[script])
    assert not (bundle.outside / "rootfs").exists()
    assert not rig.events.of("none")


def test_a_checkpoint_works_here_or_says_that_criu_does_not(rig: Rig, host: Host) -> None:
    rig.running("asks", "sh", "-c", "while :; do sleep 0.1; done")  # criu interrupts a sleep
    with images(host) as path:
        if criu_works(host):
            rig.call("Checkpoint", id="asks", path=path)
        else:
            code, text = rig.refused("Checkpoint", id="asks", path=path)
            assert code == PRECONDITION
            assert text.startswith("criu ") and "does not work on this machine: " in text
        assert rig.call("State", id="asks").status == RUNNING


def test_a_failed_checkpoint_leaves_the_container_running(rig: Rig, host: Host) -> None:
    with fake_criu(host, NO_CRIU) as task_options, images(host) as path:
        _running(rig, "lives", task_options)
        before = rig.call("State", id="lives")
        code, text = rig.refused("Checkpoint", id="lives", path=path, options=options(exit=True))
        bundle = before.bundle
        assert code == UNKNOWN
        assert text.startswith("runc did not terminate successfully: exit status 1: ")
        assert text.endswith(f" path= {bundle}/criu-dump.log")
        assert "\n" not in text
        assert rig.call("State", id="lives") == before
        rig.call("Pause", id="lives")
        paused = rig.call("State", id="lives")
        code, _ = rig.refused("Checkpoint", id="lives", path=path)
        assert code == UNKNOWN
        assert rig.call("State", id="lives") == paused
    rig.call("Resume", id="lives")
    assert not _state_files(host)
    rig.events.until("lives", "resumed")
    assert rig.events.of("lives") == ["create", "start", "paused", "resumed"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"path": "images"}, "checkpoint path 'images' is not an absolute path"),
        ({"path": ""}, "checkpoint path '' is not an absolute path"),
        (
            {"path": IMAGES, "options": options(work_path="work", cgroups_mode="odd")},
            (
                "checkpoint options: work_path 'work' is not an absolute path; "
                "cgroups_mode 'odd' is not one of '', 'soft', 'full', 'strict', 'ignore'"
            ),
        ),
        (
            {"path": IMAGES, "options": AnyMessage(type_url="some.Options", value=b"\x08\x01")},
            "checkpoint options of type 'some.Options' are not supported",
        ),
    ],
    ids=["relative", "none", "options", "another type"],
)
def test_a_request_that_cannot_be_is_refused(rig: Rig, request_: dict[str, Any], said: str) -> None:
    rig.running("asked")
    assert rig.refused("Checkpoint", id="asked", **request_) == (INVALID, said)
    assert rig.call("State", id="asked").status == RUNNING


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("created", (UNKNOWN, "cannot checkpoint a task in created state")),
        ("stopped", (UNKNOWN, "cannot checkpoint a stopped container")),
        ("deleted", (5, "container not created: not found")),
    ],
)
def test_what_a_state_forbids_is_refused_in_the_words_of_stock(
    rig: Rig, state: str, error: tuple[int, str]
) -> None:
    getattr(rig, state)("cell")
    assert rig.refused("Checkpoint", id="cell", path=IMAGES) == error


def test_images_that_cannot_be_restored_fail_create(rig: Rig, host: Host, folder: str) -> None:
    bundle = rig.bundle("bad", "sleep", "1000")

    def create(**fields: Any) -> tuple[int, str]:
        return rig.refused("Create", id="bad", bundle=bundle.path, **fields)

    nothing = f"checkpoint {HOME}: there are no images of criu's"
    assert create(checkpoint=HOME) == (INVALID, nothing)
    assert create(checkpoint="images")[0] == INVALID
    parents = "parent_checkpoint: no OCI runtime restores from two folders"
    assert create(checkpoint=folder, parent_checkpoint=folder) == (INVALID, parents)
    notes = host.path(f"{folder}/sdshim.json")
    for damaged in ("{", "[]", '{"streams": {"1": "x\\ninherit-fd"}, "switches": []}'):
        notes.write_text(damaged)
        assert create(checkpoint=folder) == (INVALID, "checkpoint: sdshim.json is damaged")
    notes.write_text('{"streams": {"1": "file[1:2]"}, "switches": [], "empty_namespaces": []}')
    # (With the journal it would have one.)
    code, text = create(checkpoint=folder, options=pack(options_pb2.Options(log="null")))
    assert code == INVALID
    assert "its container had a stdout, this task has none" in text


def test_what_is_not_restored_yet_has_no_process(rig: Rig, host: Host, folder: str) -> None:
    with fake_criu(host, NO_CRIU) as task_options:
        bundle = to_restore(rig, "wait", folder, options=task_options)
        state = rig.call("State", id="wait")
        assert (state.pid, state.status) == (0, CREATED)
        assert rig.call("Connect", id="wait").task_pid == 0
        created = "in created state"
        for method, fields, error in (
            (
                "Exec",
                {"exec_id": "x", "spec": exec_spec("true")},
                (UNKNOWN, "cannot exec in a created state"),
            ),
            ("Checkpoint", {"path": IMAGES}, (UNKNOWN, f"cannot checkpoint a task {created}")),
            ("Pause", {}, (UNKNOWN, f"cannot pause task {created}")),
            ("Resume", {}, (UNKNOWN, f"cannot resume task {created}")),
            ("Kill", {"signal": 9}, (PRECONDITION, "process not created: failed precondition")),
            ("Stats", {}, (5, "cgroup does not exist: not found")),
        ):
            assert rig.refused(method, id="wait", **fields) == error
        end = rig.begin("Wait", id="wait")
        gone = rig.call("Delete", id="wait")
        assert (gone.pid, gone.exit_status) == (0, 0)
        assert end.result(10).exit_status == 0
    assert not list((bundle.outside / "rootfs").iterdir())
    rig.events.until("wait", "delete")
    assert rig.events.of("wait") == ["create", "delete"]


def test_a_failed_restore_leaves_the_task_created(rig: Rig, host: Host, folder: str) -> None:
    host.path(f"{folder}/descriptors.json").write_text("[]")
    with fake_criu(host, NO_CRIU) as task_options:
        to_restore(rig, "later", folder, options=task_options)
        before = rig.call("State", id="later")
        for _ in range(2):  # it may be tried again
            code, text = rig.refused("Start", id="later")
            assert code == UNKNOWN
            assert text.startswith("OCI runtime restore failed: ")
            assert rig.call("State", id="later") == before
            assert not rig.unit_exists("later")
        rig.call("Delete", id="later")
    rig.events.until("later", "delete")
    assert rig.events.of("later") == ["create", "delete"]


def test_containerd_may_give_up_what_is_not_restored_yet(rig: Rig, host: Host, folder: str) -> None:
    with fake_criu(host, NO_CRIU) as task_options:
        bundle = to_restore(rig, "given", folder, options=task_options)
        told = rig.give_up(bundle)
    assert told.pid == 0


def test_nobody_waits_for_a_checkpoint_but_what_changes_the_container(rig: Rig, host: Host) -> None:
    with fake_criu(host, HELD_FAILS) as task_options, images(host) as path:
        _running(rig, "busy", task_options)
        rig.call("Exec", id="busy", exec_id="x", spec=exec_spec("sleep", "1000"))
        end = rig.begin("Wait", id="busy")
        hold_criu(host)
        call = rig.begin("Checkpoint", id="busy", path=path)
        await_criu(host)
        assert rig.unit_exists("busy::checkpoint")
        assert rig.call("State", id="busy").status == RUNNING
        assert len(rig.call("Pids", id="busy").processes) == 1
        start = rig.begin("Start", id="busy", exec_id="x")
        pause = rig.begin("Pause", id="busy")
        assert rig.call("State", id="busy", exec_id="x").status == CREATED
        assert not start.done() and not pause.done() and not call.done()
        let_go(host)
        with pytest.raises(ShimError):
            call.result(10)
        with contextlib.suppress(ShimError):  # either of the two may be the first
            start.result(10)
        pause.result(10)
        rig.call("Resume", id="busy")
        hold_criu(host)
        call = rig.begin("Checkpoint", id="busy", path=path)
        await_criu(host)
        rig.call("Kill", id="busy", signal=9)
        let_go(host)
        assert end.result(10).exit_status == 137
        with pytest.raises(ShimError):
            call.result(10)
    rig.events.until("busy", "exit")
    assert [e for e in rig.events.of("busy") if e != "exit"][-2:] == ["paused", "resumed"]


def test_the_launchers_delete_undoes_the_mounts_without_a_daemon(
    rig: Rig, host: Host, folder: str
) -> None:
    with fake_criu(host, NO_CRIU) as task_options:
        bundle = to_restore(rig, "alone", folder, options=task_options)
    assert (bundle.outside / "rootfs/bin").exists()
    host.run(["systemctl", "stop", "sdshim.socket", "sdshim.service"])
    try:
        assert rig.give_up(bundle).pid == 0
    finally:
        host.run(["systemctl", "start", "sdshim.socket", "sdshim.service"])
    assert bundle.path not in host.run(["cat", "/proc/self/mountinfo"]).stdout
