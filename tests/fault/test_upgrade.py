"""A newer version was here: its files have another version number and fields unknown here."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import sdshim
from sdshim.core.errors import Internal
from sdshim.pb import task_v2_pb2 as pb
from tests.fault.test_daemon_death import Drill
from tests.host.install import source_tree
from tests.system.conftest import rig
from tests.system.taskclient import dead_daemon, eventually, exec_spec, no_traceback

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host import Host
    from tests.system.client import Ctr
    from tests.system.taskclient import Rig

__all__ = ["rig"]

pytestmark = [
    pytest.mark.system,
    pytest.mark.fault,
    pytest.mark.timeout(60),
    pytest.mark.roots("self", "forky"),
    pytest.mark.cgroup("v2"),
]

HEADER = b"sdshim call log 1\n"
NEWER = b"sdshim call log 2.7\n"
NOVELTY = {"of": ["a", "newer", "version"]}
RECEIVED, UNKNOWN_KIND = 2, 99
VERSION = "999.0.0"
RUNNING, STOPPED = 2, 3


def _frame(body: bytes) -> bytes:
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


def _renew_calls(path: Path) -> list[bytes]:
    """Give the log another version, and each call a record of an unknown kind, which are returned:
    only those of open calls shall stay. The last call but one is answered, with one field more than
    we know, and the answer to the last one is in a form that we cannot read."""
    data = path.read_bytes().removeprefix(HEADER)
    at = 0
    added: list[bytes] = []
    received = []
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        kind, conn, stream = struct.unpack_from("<BQI", data, at + 8)
        if kind == RECEIVED:
            added.append(_frame(struct.pack("<BQI", UNKNOWN_KIND, conn, stream) + b"novelty"))
            received.append((conn, stream))
        at += 8 + size
    reply = pb.WaitResponse(exit_status=42).SerializeToString()
    fields = b"".join(struct.pack("<I", len(t)) + t for t in (b"", reply, b"", b"novelty"))
    done = struct.pack("<BQI", 3, *received[-2]) + struct.pack("<i", 0) + fields
    odd = struct.pack("<BQI", 3, *received[-1]) + b"?"
    path.write_bytes(NEWER + data + b"".join(added) + _frame(done) + _frame(odd))
    return added


def _renew(path: Path) -> None:
    document = json.loads(path.read_bytes())
    document |= {"version": 99, "novelty": NOVELTY}
    if "identity" in document:
        for part in (document["identity"], document["identity"]["runtime"]):
            part["novelty"] = NOVELTY
    path.write_text(json.dumps(document))


def _novelties(path: Path) -> list[Any]:
    document = json.loads(path.read_bytes())
    assert document["version"] == 1
    parts = [document]
    if "identity" in document:
        parts += [document["identity"], document["identity"]["runtime"]]
    return [part.get("novelty") for part in parts]


def test_this_version_takes_over_from_a_newer_one(rig: Rig, host: Host) -> None:
    rig.running("box", "sleep", "1000")
    rig.call("Exec", id="box", exec_id="x", spec=exec_spec("sleep", "1000"))
    rig.call("Start", id="box", exec_id="x")
    rig.events.until("box", "exec-started")
    ends = {who: rig.begin("Wait", id="box", exec_id=who) for who in ("", "x")}
    answered, unreadable = (rig.begin("Wait", id="box") for _ in range(2))
    pid = rig.call("State", id="box").pid  # all four are in the log
    run = host.path("/run/sdshim")
    records = [
        *run.glob("t/default/box/*/task.json"),
        *run.glob("t/default/box/*/x/x/*/task.json"),
    ]
    assert len(records) == 2
    boxes = list(run.glob("e/*.json"))
    calls = run / "calls"
    with no_traceback(host):
        with dead_daemon(host):
            for path in (*records, *boxes):
                _renew(path)
            added = _renew_calls(calls)
        state = rig.call("State", id="box")
        assert (state.pid, state.status) == (pid, RUNNING)
        assert answered.result(15).exit_status == 42
        with pytest.raises(Internal, match="call log is unreadable"):
            unreadable.result(15)
        data = calls.read_bytes()
        assert data.startswith(HEADER)
        assert all(record in data for record in added[-4:-2])  # of the two Waits
        assert not any(record in data for record in added[:-4])
        assert not any(end.done() for end in ends.values())
        for who in ("x", ""):
            rig.call("Kill", id="box", exec_id=who, signal=9)
            assert ends[who].result(15).exit_status == 137
            assert rig.call("State", id="box", exec_id=who).status == STOPPED
        rig.events.until("box", "exit")
        for path in records:
            assert _novelties(path) == [NOVELTY] * 3
        mine = [path for path in boxes if "taskclient" in path.read_text()]
        eventually(lambda: len(mine) == 1 and _novelties(mine[0]) == [NOVELTY], "written again")
        rig.call("Delete", id="box", exec_id="x")
        assert rig.call("Delete", id="box").exit_status == 137
        rig.events.until("box", "delete")


def test_connections_whose_calls_nobody_can_know_are_ended(rig: Rig, host: Host) -> None:
    """containerd would wait for ever; so it gives its tasks up, and `delete` removes them."""
    bundle = rig.running("box", "sleep", "1000")
    end = rig.begin("Wait", id="box")
    rig.call("State", id="box")
    log = host.path("/run/sdshim/calls")
    with no_traceback(host):
        with dead_daemon(host):
            log.write_bytes(b"the call log of quite another program\n")
        with pytest.raises(Exception, match="closed"):
            end.result(15)
        said = host.run(["journalctl", "-u", "sdshim", "-o", "cat"]).stdout
        assert "call log was unreadable" in said
        rig.give_up(bundle)
        assert not rig.unit_exists("box")
    log.with_name("calls.unreadable").unlink()


def _spoil(log: Path, call: int, offset: int, size: int) -> None:
    """Turn bytes of the record that begins a call (the how manieth)."""
    data = bytearray(log.read_bytes())
    at, calls = data.index(b"\n") + 1, []
    while at < len(data):
        length, _, kind = struct.unpack_from("<IIB", data, at)
        calls += [at] if kind == RECEIVED else []
        at += 8 + length
    begin = calls[call] + offset
    data[begin : begin + size] = bytes(255 - byte for byte in data[begin : begin + size])
    log.write_bytes(data)


def test_a_damaged_record_in_the_midst_of_the_call_log_costs_its_own_call(
    rig: Rig, host: Host
) -> None:
    rig.running("box", "sleep", "1000")
    log = host.path("/run/sdshim/calls")
    ends = [rig.begin("Wait", id="box") for _ in range(3)]
    rig.call("State", id="box")
    with no_traceback(host):
        with dead_daemon(host):
            _spoil(log, -2, 60, 2)
        with pytest.raises(Internal, match="call log is unreadable"):
            ends[1].result(15)
        rig.call("Kill", id="box", signal=9)
        assert [end.result(15).exit_status for end in ends[::2]] == [137, 137]
        rig.call("Delete", id="box")
        rig.events.until("box", "delete")
    log.with_name("calls.unreadable").unlink()


def test_where_damage_hides_how_many_calls_there_were_nobody_waits_for_ever(
    rig: Rig, host: Host
) -> None:
    """Who has connected later than that is served as ever."""
    bundle = rig.running("box", "sleep", "1000")
    rig.running("other", "sleep", "1000")
    log = host.path("/run/sdshim/calls")
    end = rig.begin("Wait", id="box")
    rig.call("State", id="box")
    later = rig.connect()
    later_end = later.begin("Wait", id="other")
    later.call("State", id="other")
    with no_traceback(host):
        with dead_daemon(host):
            _spoil(log, -2, 0, 60)
        with pytest.raises(Exception, match="closed"):
            end.result(15)
        rig.give_up(bundle)
        assert not rig.unit_exists("box")
        later.call("Kill", id="other", signal=9)
        assert later_end.result(15).exit_status == 137
        later.call("Delete", id="other")
        rig.events.until("other", "delete")
    log.with_name("calls.unreadable").unlink()


TAKES = "        taken = self._keeper.take(other=MAIN_NAME)\n"
NOVEL = """
        kept = [fd for name, fd in taken if name == "novel.1"]
        Path("/run/novelty").write_bytes(os.read(kept[0], 9) if kept else b"none")
        if kept:
            self._keeper.remove("novel.1")
        if not Path("/run/novelty.end").exists():
            read, write = os.pipe()
            os.write(write, b"kept")
            await self._keeper.keep("novel.1", read, poll=False)
            os.close(read)
            os.close(write)
"""
"""A newer version keeps a descriptor of a name that is unknown here, and tells what is in it."""


def _another_version(folder: Path) -> Path:
    """A working tree like ours with another number, and with what is new in it."""
    tree = source_tree()
    for name in ("sdshim", "units", "packaging"):
        shutil.copytree(tree / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "sdshim" / "__init__.py"
    init.write_text(init.read_text().replace(sdshim.__version__, VERSION))
    serve = folder / "sdshim" / "cli" / "serve.py"
    before = serve.read_text()
    assert TAKES in before
    serve.write_text(before.replace(TAKES, TAKES + NOVEL))
    return folder


@pytest.mark.timeout(120)
def test_nobody_notices_an_upgrade_or_a_downgrade_under_load(
    ctr: Ctr, host: Host, tmp_path: Path
) -> None:
    """Installed over the running one and restarted while containers come and go. What the newer
    one keeps in the fd store under a name that is unknown here is there when it comes back."""
    trees = [_another_version(tmp_path), source_tree()]
    versions: list[str] = []

    def strike(host: Host) -> bool:
        tree = trees[len(versions) % 2]
        host.reinstall(tree)
        host.run(["systemctl", "restart", "sdshim.service"])
        versions.append(host.run(["sdshim", "--version"]).stdout.split()[-1])
        return True

    drill = Drill(
        ctr, lambda id_, line: ctr.run_argv(id_, "sh", "-c", line, options=["--rm"]), strike
    )
    try:
        with no_traceback(host):
            tasks = drill.rounds(2)
        drill.verdict(2, len(tasks))
        assert versions[:2] == [VERSION, sdshim.__version__]
        host.path("/run/novelty.end").touch()
        for tree in reversed(trees):
            host.reinstall(tree)
            host.run(["systemctl", "restart", "sdshim.service"])
        assert host.path("/run/novelty").read_text() == "kept"
    finally:
        host.run(["rm", "-f", "/run/novelty", "/run/novelty.end"])
        host.reinstall()
        host.run(["systemctl", "restart", "sdshim.service"])
