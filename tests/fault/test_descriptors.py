"""The fd store and the daemon's own descriptors run short: that is said early, new work is refused
before anything is lost, and all that runs goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.errors import Code
from tests.fault.daemons import limited
from tests.fault.marks import fault_on
from tests.fault.strikes import daemon_pid, kill_daemon
from tests.system.doctor.kit import doctor
from tests.system.taskclient import eventually, exec_spec, no_traceback

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Bundle, Rig

pytestmark = fault_on("self", "v1")

STDIO = ("stdin", "stdout", "stderr")


def _with_fifos(rig: Rig, id_: str) -> tuple[Bundle, dict[str, str]]:
    bundle = rig.bundle(id_, "sleep", "1000")
    return bundle, {stream: bundle.fifo(stream) for stream in STDIO}


def _fill(rig: Rig) -> tuple[list[str], str, str]:
    """Containers with three FIFOs until one is refused: ids, the refused one's, and the answer."""
    made: list[str] = []
    for number in range(100):
        id_ = f"full-{number}"
        bundle, fifos = _with_fifos(rig, id_)
        begun = rig.begin("Create", id=id_, bundle=bundle.path, **fifos)
        if error := begun.exception(15):
            assert getattr(error, "code", None) == Code.RESOURCE_EXHAUSTED, error
            return made, id_, str(error)
        rig.call("Start", id=id_)
        made.append(id_)
    raise AssertionError("100 containers, and none was refused")


def _journal(host: Host) -> str:
    return str(host.run(["journalctl", "-u", "sdshim", "-o", "cat", "--no-pager"]).stdout)


def test_a_full_fd_store_refuses_new_work_before_anything_is_lost(rig: Rig, host: Host) -> None:
    with limited(host, "FileDescriptorStoreMax=40") as drop_in_file:
        made, _, text = _fill(rig)
        assert "systemd keeps " in text
        assert " of 40 descriptors" in text
        assert "FileDescriptorStoreMax=" in text
        assert "new containers and execs are refused from 36 on" in _journal(host)
        assert "refused" in doctor(host).of("fd-store")["text"]
        ends = {id_: rig.begin("Wait", id=id_) for id_ in made}
        spec = exec_spec("true")  # whose output needs no descriptor of ours
        rig.call("Exec", id=made[0], exec_id="e", spec=spec, stdout="/dev/null")
        rig.call("Start", id=made[0], exec_id="e")
        before, strange = daemon_pid(host), _journal(host).count("belongs to nothing")
        kill_daemon(host)
        eventually(lambda: daemon_pid(host) not in (0, before), "a new daemon")
        assert _journal(host).count("belongs to nothing") == strange
        for id_ in made:
            stdin = host.path(f"/tmp/taskclient/b/default/{id_}/stdin")
            assert stdin.exists()
            assert not ends[id_].done()
        rig.call("Kill", id=made[0], signal=signal.SIGKILL)
        assert ends[made[0]].result(10).exit_status == 137
        rig.call("Delete", id=made[0])
        bundle, fifos = _with_fifos(rig, "fits")
        rig.call("Create", id="fits", bundle=bundle.path, **fifos)
        drop_in_file.write_text("[Service]\nFileDescriptorStoreMax=80\n")
        host.run(["systemctl", "daemon-reload"])
        bundle, fifos = _with_fifos(rig, "more")
        rig.call("Create", id="more", bundle=bundle.path, **fifos)


def test_without_free_descriptors_those_who_are_connected_are_served(rig: Rig, host: Host) -> None:
    with limited(host, "LimitNOFILE=120"):
        rig.running("runs")
        end = rig.begin("Wait", id="runs")
        daemon = daemon_pid(host)
        with no_traceback(host):
            lines = [rig.connect() for _ in range(150)]
            calls = [line.begin("Connect", id="runs") for line in lines]
            eventually(lambda: "accepts no more connections" in _journal(host), "the limit")
            bundle, fifos = _with_fifos(rig, "new")
            code, text = rig.refused("Create", id="new", bundle=bundle.path, **fifos)
            assert code == Code.RESOURCE_EXHAUSTED
            assert "of 120 descriptors open" in text
            assert "LimitNOFILE=" in text
            eventually(lambda: sum(call.done() for call in calls) > 50, "those are served")
            assert sum(call.done() for call in calls) < 120
            rig.call("Kill", id="runs", signal=signal.SIGKILL)
            assert end.result(10).exit_status == 137
            rig.events.until("runs", "exit")
            pairs = list(zip(lines, calls, strict=True))
            waiting = [(line, call) for line, call in pairs if not call.done()]
            for line in [line for line, call in pairs if call.done()]:
                line.close()
            for line, call in waiting:  # they are served now
                call.result(15)
                line.close()
            fds = Path(f"/proc/{daemon}/fd")
            eventually(lambda: len(list(fds.iterdir())) < 60, "their descriptors are free")
            rig.call("Delete", id="runs")
            bundle, fifos = _with_fifos(rig, "later")
            rig.call("Create", id="later", bundle=bundle.path, **fifos)
        assert daemon_pid(host) == daemon
        assert _journal(host).count("accepts no more connections") == 1
