"""The daemon's wall clock jumps, by libfaketime: the machine's own cannot be set here."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from sdshim.core.errors import Code
from sdshim.pb import task_v2_pb2 as pb
from tests.fault.daemons import limited
from tests.fault.marks import fault_on
from tests.fault.strikes import daemon_pid
from tests.system.rawsocket import RawSocket
from tests.system.taskclient import exec_spec, no_traceback

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = fault_on("self", "v1")  # where libfaketime is

CLOCK = "/tmp/clock"
LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
DROP_IN = (
    f"Environment=LD_PRELOAD={LIBRARY} FAKETIME_TIMESTAMP_FILE={CLOCK}"
    " FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1"
)
MARGIN_NS = 10**9


def _life(rig: Rig, id_: str) -> int:
    """A container with an exec, from Create to Delete; when it has ended (ns)."""
    bundle = rig.bundle(id_, "sleep", "1000")
    rig.call("Create", id=id_, bundle=bundle.path)
    rig.call("Start", id=id_)
    rig.call("Exec", id=id_, exec_id="e", spec=exec_spec("sh", "-c", "exit 3"))
    rig.call("Start", id=id_, exec_id="e")
    assert rig.call("Wait", id=id_, exec_id="e").exit_status == 3
    rig.call("Pause", id=id_)
    rig.call("Resume", id=id_)
    rig.call("Kill", id=id_, signal=signal.SIGKILL)
    end = rig.call("Wait", id=id_)
    assert end.exit_status == 137
    rig.call("Delete", id=id_)
    rig.events.until(id_, "delete")
    topics = rig.events.of(id_)
    assert topics[:5] == ["create", "start", "exec-added", "exec-started", "exit"]
    assert topics[5:] == ["paused", "resumed", "exit", "delete"]
    return int(end.exited_at.ToNanoseconds())


def test_a_clock_that_jumps_changes_no_deadline_and_no_exit_time(rig: Rig, host: Host) -> None:
    clock = host.path(CLOCK)
    clock.write_text("+0\n")
    rig.running("long")
    with limited(host, DROP_IN), no_traceback(host), RawSocket(host) as raw:
        end = rig.begin("Wait", id="long")
        daemon = daemon_pid(host)
        request = pb.WaitRequest(id="long").SerializeToString()
        raw.request(1, "Wait", request, nano=3600 * 10**9)
        for stream, jump in ((3, "+1d"), (5, "-1d")):
            raw.request(stream, "Wait", request, nano=10**9)
            clock.write_text(f"{jump}\n")
            begun = time.time_ns()
            ended = _life(rig, f"short-{stream}")
            assert begun - MARGIN_NS < ended < time.time_ns() + MARGIN_NS  # systemd's clock
            answered, response = raw.response()
            assert (answered, response.code) == (stream, Code.DEADLINE_EXCEEDED)
            assert not end.done()
        rig.call("Kill", id="long", signal=signal.SIGKILL)
        assert end.result(10).exit_status == 137
        answered, response = raw.response()
        assert (answered, response.code) == (1, Code.OK)
        assert daemon_pid(host) == daemon
    clock.unlink()
