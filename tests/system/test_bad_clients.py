"""Clients that leave, send garbage, come by the thousand or are strangers: nobody else notices."""

from __future__ import annotations

import os
import random
import socket
from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import Unavailable
from sdshim.pb import task_v2_pb2 as pb
from sdshim.ttrpc.frames import encode_frame
from tests.system.rawsocket import RawSocket
from tests.system.taskclient import (
    V2,
    V3,
    spec_of,
)

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("nobody_notices")]

INVALID, NOT_FOUND, EXHAUSTED, INTERNAL = 3, 5, 8, 13
MALFORMED = b"\xff\xff\xff\xff"


# --- clients


def test_a_client_that_leaves_in_the_middle_of_create_leaves_nothing(rig: Rig) -> None:
    bundle = rig.bundle("left", "sleep", "1000")
    for name in ("reached", "go"):
        os.mkfifo(bundle.outside / name)
    hook = bundle.outside / "hook"
    hook.write_text(f"#!/bin/sh\necho >{bundle.path}/reached; read x <{bundle.path}/go\n")
    hook.chmod(0o700)
    spec = spec_of("sleep", "1000")
    spec["hooks"] = {"createRuntime": [{"path": f"{bundle.path}/hook"}]}
    bundle.write_spec(spec)
    line = rig.connect()
    create = line.begin("Create", id="left", bundle=bundle.path)
    (bundle.outside / "reached").read_text()
    line.close()
    assert isinstance(create.exception(5), Unavailable)
    (bundle.outside / "go").write_text("\n")
    assert rig.give_up(bundle).exit_status == 137
    assert rig.refused("State", id="left")[0] == NOT_FOUND
    assert not rig.unit_exists("left")


def test_a_client_that_has_left_before_create_begins_makes_nothing(rig: Rig, host: Host) -> None:
    bundle = rig.bundle("hasty", "sleep", "1000")
    with RawSocket(host) as raw:
        request = pb.CreateTaskRequest(id="hasty", bundle=bundle.path)
        raw.request(1, "Create", request.SerializeToString())
    rig.give_up(bundle)
    rig.deleted("hasty-after")
    rig.events.until("hasty-after", "delete")
    assert rig.refused("State", id="hasty")[0] == NOT_FOUND
    assert not rig.unit_exists("hasty")


@pytest.mark.parametrize("seed", range(8))
def test_garbage_on_the_socket_harms_only_its_sender(rig: Rig, host: Host, seed: int) -> None:
    chance = random.Random(seed)
    with RawSocket(host) as raw:
        try:
            raw.sock.sendall(chance.randbytes(chance.choice((1, 9, 10, 11, 1000, 300_000))))
        except (BrokenPipeError, ConnectionResetError):
            return
    assert rig.call("Connect", id="bystander").task_pid > 0


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", 12), (MALFORMED, INVALID), (b"\x0a\x05ab", INVALID), (b"\x0a\x02\xff\xfe", INVALID)],
    ids=["empty", "garbage", "cut", "not UTF-8"],
)
def test_a_frame_that_is_no_request_is_answered(
    rig: Rig, host: Host, data: bytes, code: int
) -> None:
    with RawSocket(host) as raw:
        raw.sock.sendall(encode_frame(1, 1, data))
        stream, answer = raw.response()
        assert (stream, answer.code) == (1, code)
        raw.request(3, "Connect", pb.ConnectRequest(id="bystander").SerializeToString())
        assert raw.response()[1].code == 0


@pytest.mark.parametrize("stream", [0, 2, 2**32 - 2])
def test_an_even_stream_id_is_refused(rig: Rig, host: Host, stream: int) -> None:
    with RawSocket(host) as raw:
        raw.request(stream, "Connect")
        assert raw.response()[1].code == INVALID


def test_unknown_kinds_of_frames_are_passed_over(rig: Rig, host: Host) -> None:
    with RawSocket(host) as raw:
        for kind in (0, 2, 3, 99, 255):
            raw.sock.sendall(encode_frame(1, kind, b"whatever"))
        raw.request(1, "Connect", pb.ConnectRequest(id="bystander").SerializeToString())
        assert raw.response()[1].code == 0


@pytest.mark.parametrize("length", [(4 << 20) + 1, 2**32 - 1], ids=["over 4 MiB", "4 GiB"])
def test_a_frame_that_is_too_large_is_refused_and_thrown_away(
    rig: Rig, host: Host, length: int
) -> None:
    with RawSocket(host) as raw:
        raw.header(length, 1)
        stream, answer = raw.response()
        assert (stream, answer.code) == (1, EXHAUSTED)
        assert str(length) in answer.message
        part = b"\0" * (1 << 20)
        for _ in range(length // len(part) if length < 1 << 30 else 64):
            raw.sock.sendall(part)
        if length < 1 << 30:
            raw.sock.sendall(b"\0" * (length % len(part)))
            raw.request(3, "Connect", pb.ConnectRequest(id="bystander").SerializeToString())
            assert raw.response()[1].code == 0
    assert rig.call("Connect", id="bystander").task_pid > 0


@pytest.mark.parametrize("service", [V2, V3])
@pytest.mark.parametrize(
    "method",
    [
        "State",
        "Create",
        "Start",
        "Delete",
        "Pids",
        "Kill",
        "CloseIO",
        "Wait",
        "Connect",
        "Shutdown",
    ],
)
def test_a_payload_that_cannot_be_decoded_is_an_internal_error(
    rig: Rig, host: Host, method: str, service: str
) -> None:
    with RawSocket(host) as raw:
        raw.request(1, method, MALFORMED, service=service)
        _, answer = raw.response()
    assert answer.code == INTERNAL
    assert answer.message.startswith("ttrpc: error unmarshalling payload: ")


def test_a_large_request_is_a_request_like_any_other(rig: Rig, host: Host) -> None:
    request = pb.CreateTaskRequest(id="big", bundle="/none", stdin="x" * 3_000_000)
    with RawSocket(host) as raw:
        raw.request(1, "Create", request.SerializeToString())
        _, answer = raw.response()
    assert answer.code == INVALID
    assert len(answer.message) < 20_000


def test_a_thousand_connections_at_once_are_all_served(rig: Rig, host: Host) -> None:
    request = pb.ConnectRequest(id="bystander").SerializeToString()
    lines = [RawSocket(host) for _ in range(1000)]
    try:
        for line in lines:
            line.request(1, "Connect", request)
        assert {line.response()[1].code for line in lines} == {0}
        # Each is alive, while all are.
        for line in lines[:: len(lines) // 10]:
            line.request(3, "Connect", request)
            assert line.response()[1].code == 0
    finally:
        for line in lines:
            line.sock.close()
    assert rig.call("Connect", id="bystander").task_pid > 0


# --- strangers

CALL = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/sdshim/s/default")
try:
    s.sendall(bytes.fromhex(sys.argv[1]))
    sys.stdout.write(s.recv(4096).hex() or "closed")
except (BrokenPipeError, ConnectionResetError):
    sys.stdout.write("closed")
"""


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (["--reuid=65534", "--regid=65534", "--clear-groups"], "PermissionError"),
        (["--reuid=65534"], "PermissionError"),
        (["--regid=65534", "--clear-groups"], "closed"),
        (["--ruid=65534", "--euid=0"], "0a"),
    ],
    ids=["uid and gid", "uid", "gid", "only the real uid"],
)
def test_a_peer_that_is_not_root_is_refused(
    rig: Rig, host: Host, who: list[str], said: str
) -> None:
    frame = encode_frame(1, 1, b"\x0a\x01x")
    argv = ["setpriv", *who, "/usr/bin/python3", "-c", CALL, frame.hex()]
    done = host.run(argv, check=False)
    assert said in done.stdout + done.stderr


def test_a_stranger_who_reaches_the_socket_is_refused_by_his_credentials(
    rig: Rig, host: Host
) -> None:
    inner, outer = host.path("/run/sdshim/s"), host.path("/run/sdshim")
    modes = [(path, path.stat().st_mode & 0o777) for path in (outer, inner, inner / "default")]
    try:
        for path, _ in modes:
            path.chmod(0o777)
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = host.run([*argv, "/usr/bin/python3", "-c", CALL, "00"], check=False)
        assert done.stdout == "closed", done.stderr
    finally:
        for path, mode in modes:
            path.chmod(mode)


def test_the_socket_of_a_namespace_with_an_illegal_name_is_not_made(rig: Rig) -> None:
    for name in ("", "../x", "a/b", "a\0b", "x" * 77):
        with pytest.raises(Exception, match="namespace"):
            rig.listen(name)
    assert not isinstance(rig.call("Connect", id="bystander"), socket.socket)
