"""The daemon is killed while a connection is full of open calls, or has half a frame in it: each
call is answered once, on the same connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sdshim.pb import task_v2_pb2 as pb
from sdshim.ttrpc.frames import HEADER, FrameType, Request, encode_frame, encode_request
from tests.fault.strikes import await_another, daemon_pid, kill_daemon
from tests.system.conftest import rig
from tests.system.rawsocket import RawSocket
from tests.system.taskclient import V2, dead_daemon

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]
pytestmark = [
    pytest.mark.system,
    pytest.mark.fault,
    pytest.mark.roots("self"),
    pytest.mark.cgroup("v2"),
    pytest.mark.timeout(60),
]

WAITS = 500


def _state(raw: RawSocket, stream: int) -> None:
    raw.request(stream, "State", pb.StateRequest(id="box").SerializeToString())


def test_each_of_500_open_waits_on_one_connection_is_answered_once(rig: Rig, host: Host) -> None:
    rig.running("box", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.01; done")
    wait = pb.WaitRequest(id="box").SerializeToString()
    streams = range(1, 2 * WAITS, 2)
    with RawSocket(host) as raw:
        for number, stream in enumerate(streams):
            if number in (WAITS // 3, WAITS // 2):  # in the midst of receiving
                before = daemon_pid(host)
                kill_daemon(host)
                await_another(host, before)
            raw.request(stream, "Wait", wait)
        _state(raw, 2 * WAITS + 1)
        assert raw.response()[0] == 2 * WAITS + 1  # they have been read
        with dead_daemon(host):
            host.run(["systemctl", "stop", "sdshim-default-box.service"])
        answers = [raw.response() for _ in streams]
        assert sorted(stream for stream, _ in answers) == list(streams)
        ends = {response.payload for _, response in answers if not response.code}
        assert len(ends) == 1  # one status, one time
        assert pb.WaitResponse.FromString(ends.pop()).exit_status == 9
        assert not any(response.code for _, response in answers)
        _state(raw, 2 * WAITS + 3)
        assert raw.response()[0] == 2 * WAITS + 3  # and nothing twice


def test_a_frame_torn_by_the_daemons_death_is_read_to_its_end(rig: Rig, host: Host) -> None:
    rig.running("box")
    request = pb.StateRequest(id="box").SerializeToString()
    body = encode_request(Request(V2, "State", request, 0))
    cuts = (1, HEADER - 1, HEADER, HEADER + 1, HEADER + len(body) // 2, HEADER + len(body) - 1)
    lines = [RawSocket(host) for _ in cuts]
    try:
        for raw, cut in zip(lines, cuts, strict=True):
            _state(raw, 1)
            assert raw.response()[0] == 1
            _state(raw, 3)  # a whole one, and right behind it the torn one
            raw.sock.sendall(encode_frame(5, FrameType.REQUEST, body)[:cut])
        with dead_daemon(host):
            pass
        for raw, cut in zip(lines, cuts, strict=True):
            raw.sock.sendall(encode_frame(5, FrameType.REQUEST, body)[cut:])
            _state(raw, 7)
            answers = dict(raw.response() for _ in range(3))
            assert sorted(answers) == [3, 5, 7]
            told = {pb.StateResponse.FromString(one.payload).id for one in answers.values()}
            assert told == {"box"}
    finally:
        for raw in lines:
            raw.sock.close()
