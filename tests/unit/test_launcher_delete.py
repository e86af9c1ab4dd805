"""`delete`: whatever the daemon does, the right incarnation ends and its true status comes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sdshim.launcher import cgroups, cleanup
from sdshim.launcher.cmdline import Fault
from sdshim.launcher.mounts import mount_points
from sdshim.pb import control_pb2, task_v2_pb2
from tests.unit.test_launcher_kit import LAUNCHER, TOKEN, Daemon, Node, Result, node, short

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["node"]

UNIT = "sdshim-default-c1.service"
ANSWER = task_v2_pb2.DeleteResponse(pid=42, exit_status=7)
ANSWER.exited_at.FromNanoseconds(1_700_000_000_000_000_010)


def response(result: Result) -> task_v2_pb2.DeleteResponse:
    assert (result.code, result.err) == (0, "")
    return task_v2_pb2.DeleteResponse.FromString(result.out)


def created(node: Node) -> Path:
    """As after Create: the token in the bundle, the state directory, a pid file."""
    (node.bundle / "sdshim.token").write_text(TOKEN)
    state = node.state()
    state.mkdir(parents=True)
    (state / "task.json").write_text("{}")
    (state / "init.pid").write_text("4711")
    (state / "runtime").write_text(json.dumps(["fake-runc", "--root", f"{node.root}/runc"]))
    return state


def systemd(
    node: Node, *, token: str = TOKEN, load: str = "loaded", active: str = "active", kill: str = ""
) -> None:
    """A fake systemctl that knows one unit, and a fake OCI runtime."""
    environment = f"A=b SDSHIM_TOKEN={token}" if token else ""
    shown = f"LoadState={load}\nActiveState={active}\nEnvironment={environment}\nControlGroup="
    case = f"case $1 in show) printf '%s\\n' '{shown}' ;; kill) {kill or ':'} ;; esac"
    node.recorder("systemctl", case)
    node.recorder("fake-runc")
    node.recorder("runc")


def record(state: Path, line: str = "f00 4711 signal killed KILL\n") -> None:
    (state / "exit").write_text(line)
    os.utime(state / "exit", (1_600_000_000, 1_600_000_000))


@pytest.mark.parametrize("pid", [42, 10, 0x0A0A, 92, 37, 255, 1 << 21])  # newlines, \\, %, …
@pytest.mark.parametrize("status", [0, 7, 10, 255])
def test_what_the_daemon_left_is_the_answer_without_any_question(
    node: Node, pid: int, status: int
) -> None:
    answer = task_v2_pb2.DeleteResponse(pid=pid, exit_status=status)
    for time_ns in (1_700_000_000_000_000_010, 10_000_000_000, -62135596800 * 10**9):
        answer.exited_at.FromNanoseconds(time_ns)
        (node.bundle / "sdshim.deleted").write_bytes(answer.SerializeToString())
        node.env["SDSHIM_PYTHON"] = "/bin/false"
        assert response(node.delete()) == answer
    in_working_directory = node.launch("-namespace", "default", "-id", "c1", "delete")
    assert response(in_working_directory) == answer


def test_a_daemon_that_answers_decides(node: Node) -> None:
    created(node)
    systemd(node)
    with Daemon(node.run, {"Cleanup": ANSWER.SerializeToString()}) as daemon:
        assert response(node.delete()) == ANSWER
    assert daemon.calls == [
        (
            "sdshim.v1.Control",
            "Cleanup",
            control_pb2.CleanupRequest(
                namespace="default", id="c1", token=TOKEN, bundle=str(node.bundle)
            ).SerializeToString(),
        )
    ]
    assert node.calls("systemctl") == []
    assert (node.bundle / "sdshim.deleted").read_bytes() == ANSWER.SerializeToString()


@pytest.mark.parametrize("answer", ["gone", "stale", "close", "error", "empty", "garbage"])
def test_without_a_usable_answer_the_launcher_does_it_alone(node: Node, answer: str) -> None:
    state = created(node)
    systemd(node, kill=f"echo 'f00 4711 signal killed KILL' >{state}/exit")
    answers: dict[str, bytes | tuple[int, str] | str] = {
        "close": "close",
        "error": (13, "bus is gone"),
        "empty": b"",
        "garbage": b"\xff\xff",
    }
    if answer == "gone":
        result = node.delete()
    elif answer == "stale":
        with socket.socket(socket.AF_UNIX) as dead, short(node.run) as directory:
            dead.bind(f"{directory}/sdshim.sock")
        result = node.delete()
    else:
        with Daemon(node.run, {"Cleanup": answers[answer]}):
            result = node.delete()
    got = response(result)
    assert (got.pid, got.exit_status) == (4711, 137)
    assert [call.split()[0] for call in node.calls("systemctl")] == ["show", "kill", "reset-failed"]
    assert node.calls("systemctl")[1] == f"kill --kill-whom=all -s KILL {UNIT}"
    assert node.calls("fake-runc") == [f"--root {node.root}/runc delete --force c1"]
    assert (state / "cleaned").read_bytes() == result.out
    assert (node.bundle / "sdshim.deleted").read_bytes() == result.out
    assert state.exists(), "the daemon removes it when it is back"
    assert result.seconds < 2.5


@pytest.mark.parametrize("gone", ["record", "folder"])
def test_nothing_is_left_where_a_slow_daemon_has_removed_the_task(node: Node, gone: str) -> None:
    """It has got the question, took more than its time, and was done before the launcher was."""
    state = created(node)
    systemd(node)
    (state / "task.json").unlink()
    folder = node.run / "t" / "default"
    if gone == "folder":
        shutil.rmtree(folder)
    assert response(node.delete()).exit_status == 137
    assert not folder.exists()


def test_a_hung_daemon_costs_less_than_containerds_five_seconds(tmp_path: Path) -> None:
    """Also with a hung systemctl, a hung runtime (left to itself), a full backlog: all at once."""
    with ThreadPoolExecutor() as pool:
        jobs = {
            also: pool.submit(_hung, tmp_path / (also or "daemon"), also)
            for also in ("", "systemctl", "runtime", "backlog")
        }
    for also, job in jobs.items():
        result = job.result()
        assert 2.5 < result.seconds < 4.8, also
        status = response(result).exit_status  # its streams were read to their end
        assert status == (3 if also in ("", "backlog") else 137), also


def _hung(root: Path, also: str) -> Result:
    node = Node(root)
    state = created(node)
    systemd(node, kill="" if also else f"echo 'f00 4711 exit-code exited 3' >{state}/exit")
    if also == "systemctl":
        node.recorder("systemctl", "exec sleep 9")
    if also == "runtime":
        node.recorder("fake-runc", "exec sleep 9")
    if also != "backlog":
        with Daemon(node.run, {"Cleanup": "hang"}):
            return node.delete()
    record(state, "f00 4711 exit-code exited 3\n")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        with short(node.run) as directory:
            listener.bind(f"{directory}/sdshim.sock")
            listener.listen(0)
            filler.connect(f"{directory}/sdshim.sock")
        return node.delete()


@pytest.mark.parametrize(
    ("line", "status", "pid"),
    [
        ("f00 12 success exited 0\n", 0, 12),
        ("f00 12 exit-code exited 255\n", 255, 12),
        ("f00 12 signal killed TERM\n", 128 + 15, 12),
        ("f00 12 signal killed KILL\n", 137, 12),
        ("f00 12 core-dump dumped SEGV\n", 128 + 11, 12),
        ("f00 12 signal killed RTMIN+3\n", 128 + 37, 12),
        ("f00 12 signal killed 9\n", 137, 12),
        ("f00 - success exited 5\n", 5, 4711),
        ("f00 12 exit-code - -\n", 137, 12),
        ("f00 12 success exited 5", 137, 4711),
        ("", 137, 4711),
    ],
)
def test_the_status_is_the_recorded_one_else_137(
    node: Node, line: str, status: int, pid: int
) -> None:
    state = created(node)
    systemd(node, active="failed")
    record(state, line)
    got = response(node.delete())
    assert (got.exit_status, got.pid) == (status, pid)
    if cleanup.parse_exit(line)[0] is None:
        assert abs(got.exited_at.ToSeconds() - time.time()) < 10
    else:
        assert got.exited_at.ToSeconds() == 1_600_000_000


def test_a_newer_task_of_the_same_id_is_not_touched(node: Node) -> None:
    state = created(node)
    record(state)
    systemd(node, token="f" * 32)
    assert response(node.delete()).exit_status == 137
    assert [call.split()[0] for call in node.calls("systemctl")] == ["show"]
    assert node.calls("fake-runc") == []


@pytest.mark.parametrize("owner", ["ours", "other", "none"])
def test_runtime_state_without_a_unit_is_removed_only_if_it_names_our_bundle(
    node: Node, owner: str
) -> None:
    created(node)
    systemd(node, token="", load="not-found", active="inactive")
    bundle = {"ours": node.bundle, "other": node.root / "bundle2"}.get(owner)
    if bundle:
        (node.root / "runc" / "c1").mkdir(parents=True)
        text = json.dumps({"config": {"labels": [f"bundle={bundle}"]}})
        (node.root / "runc" / "c1" / "state.json").write_text(text)
    assert response(node.delete()).exit_status == 137
    assert len(node.calls("fake-runc")) == (1 if owner == "ours" else 0)
    assert [call.split()[0] for call in node.calls("systemctl")] == ["show"]


def test_a_bundle_without_token_was_never_created(node: Node) -> None:
    systemd(node)
    with Daemon(node.run, {"Cleanup": "hang"}) as daemon:
        result = node.delete()
    got = response(result)
    assert (got.pid, got.exit_status) == (0, 137)
    assert abs(got.exited_at.ToSeconds() - time.time()) < 10
    assert (daemon.calls, node.calls("systemctl")) == ([], [])
    assert result.seconds < 2


@pytest.mark.parametrize("token", ["", "x" * 32, "../../../etc", "0" * 31])
def test_a_token_that_is_none_is_no_path(node: Node, token: str) -> None:
    (node.bundle / "sdshim.token").write_text(token)
    assert response(node.delete()).pid == 0
    assert not (node.run / "t").exists()


def test_without_a_recorded_command_runc_is_used_as_the_stock_shim_would(node: Node) -> None:
    state = created(node)
    (state / "runtime").unlink()
    systemd(node, active="failed")
    record(state)
    response(node.delete())
    assert node.calls("runc") == ["--root /run/containerd/runc/default delete --force c1"]


def test_a_failing_runtime_delete_is_tried_again_and_reported_as_a_warning(node: Node) -> None:
    state = created(node)
    systemd(node, active="failed")
    record(state)
    node.recorder("fake-runc", "echo cgroup.freeze: no such device >&2; exit 1")
    result = node.delete()
    assert (result.code, len(node.calls("fake-runc"))) == (0, 2)
    assert result.err == f"OCI runtime delete failed, see {state}/cleanup.log\n"
    assert "no such device" in (state / "cleanup.log").read_text()
    assert task_v2_pb2.DeleteResponse.FromString(result.out).exit_status == 137


def test_a_missing_runtime_is_a_warning_not_a_failure(node: Node) -> None:
    state = created(node)
    systemd(node, active="failed")
    record(state)
    (node.bin / "fake-runc").unlink()
    result = node.delete()
    assert (result.code, result.err) == (0, "cannot run fake-runc: No such file or directory\n")


def test_a_second_delete_gives_the_first_ones_answer(node: Node) -> None:
    state = created(node)
    systemd(node, active="failed")
    record(state)
    first = node.delete()
    (node.bundle / "sdshim.deleted").unlink()
    calls = len(node.calls("systemctl"))
    assert node.delete().out == first.out
    assert len(node.calls("systemctl")) == calls


def test_a_namespace_with_dashes_has_its_unit(node: Node) -> None:
    (node.bundle / "sdshim.token").write_text(TOKEN)
    systemd(node)
    node.delete("a-b.c", namespace="k8s-io-x")
    assert node.calls("systemctl")[1].endswith(" sdshim-k8s:io:x-a-b.c.service")


def test_the_lock_is_held_while_the_launcher_works(node: Node) -> None:
    state = created(node)
    systemd(node, active="failed")
    record(state)
    node.recorder("fake-runc", f"flock -n {state}/lock touch {node.root}/free; exit 0")
    response(node.delete())
    assert not (node.root / "free").exists()


@pytest.mark.parametrize("token", [TOKEN, "f" * 32])
def test_without_systemctl_systemds_own_file_says_whose_the_unit_is(
    node: Node, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    created(node)
    systemd(node)
    node.recorder("systemctl", "exit 1")
    text = f'[Service]\nSlice=sdshim-default.slice\nEnvironment="SDSHIM_TOKEN={token}"\n'
    (node.root / UNIT).write_text(text)
    cgroup = node.root / "sdshim.slice" / "sdshim-default.slice" / UNIT
    cgroup.mkdir(parents=True)
    monkeypatch.setattr(cleanup, "_TRANSIENT", str(node.root))
    monkeypatch.setattr(cleanup, "_EXIT_WAIT", 0.0)
    monkeypatch.setattr(cgroups, "ROOT", str(node.root))
    for name, value in node.env.items():
        monkeypatch.setenv(name, value)
    incarnation = cleanup.Incarnation("default", "c1", TOKEN, str(node.bundle))
    incarnation.end(time.monotonic() + 4)
    assert (cgroup / "cgroup.kill").exists() == (token == TOKEN)
    assert len(node.calls("fake-runc")) == (token == TOKEN)


def test_processes_that_cannot_be_killed_are_a_failure_so_that_the_bundle_stays(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(node)
    monkeypatch.setenv("PATH", node.env["PATH"])
    monkeypatch.setenv("SDSHIM_RUN_DIR", str(node.run))
    monkeypatch.setattr(cgroups, "populated", lambda _: True)
    shown = f"LoadState=loaded\\nEnvironment=SDSHIM_TOKEN={TOKEN}\\nControlGroup=/gone/{UNIT}"
    node.recorder("systemctl", f"case $1 in show) printf '{shown}\\n' ;; *) exit 1 ;; esac")
    incarnation = cleanup.Incarnation("default", "c1", TOKEN, str(node.bundle))
    with pytest.raises(Fault, match=r"cannot kill its processes: systemctl failed, cgroup /gone"):
        incarnation.end(time.monotonic() + 4)
    assert not (node.state() / "cleaned").exists()


def test_mount_points_come_deepest_first_and_only_those_below() -> None:
    info = "\n".join(
        f"{n} 1 0:1 / {path} rw - tmpfs tmpfs rw"
        for n, path in enumerate(
            [
                "/",
                "/b",
                "/b/rootfs",
                "/b/rootfs/a",
                "/b/rootfs",
                "/b/rootfs2",
                r"/b/rootfs/x\040y/z",
            ]
        )
    )
    assert mount_points("/b/rootfs", info.encode()) == [
        b"/b/rootfs/x y/z",
        b"/b/rootfs/a",
        b"/b/rootfs",
        b"/b/rootfs",
    ]


def test_a_cgroup_is_where_systemd_puts_the_unit() -> None:
    assert cgroups.of_unit("sdshim-k8s.io-pod.slice", UNIT) == (
        f"/sdshim.slice/sdshim-k8s.io.slice/sdshim-k8s.io-pod.slice/{UNIT}"
    )


def test_a_cgroup_is_killed_as_a_whole_where_the_kernel_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cgroup.procs").touch()
    cgroups.kill("/a")
    assert (tmp_path / "a" / "cgroup.kill").read_text() == "1"
    assert not cgroups.populated("/a")
    (tmp_path / "a" / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert cgroups.populated("/a")
    cgroups.kill("/gone")


def test_the_runtimes_root_is_found_in_both_spellings() -> None:
    assert cleanup.runtime_root(["crun", "--root", "/a"]) == "/a"
    assert cleanup.runtime_root(["crun", "--root=/b"]) == "/b"
    assert cleanup.runtime_root(["crun"]) == "/run/runc"


def test_the_launcher_imports_nothing_of_the_other_rooms() -> None:
    for path in LAUNCHER.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].startswith("sdshim"):
                assert words[1].startswith("sdshim.launcher"), f"{path.name}: {line}"
