"""Frames leave whole, in order, and each is accounted for once."""

from __future__ import annotations

import socket
from functools import partial

import pytest

from sdshim.ttrpc.sendqueue import SendQueue
from tests.unit.ttrpc_kit import may_raise_buffers


class Small(socket.socket):
    """A socket of a process that may not raise its buffer."""

    def setsockopt(self, *args: object) -> None:
        raise PermissionError


def drain(sock: socket.socket) -> bytearray:
    data = bytearray()
    while True:
        try:
            data += sock.recv(1 << 20)
        except BlockingIOError:
            return data


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("size", [0, 10, 32_768, 32_769, 200_000, 4 << 20])
def test_frames_leave_in_order_whatever_the_peer_does(size: int, small: bool) -> None:
    ours, theirs = socket.socketpair()
    if small:
        ours = Small(fileno=ours.detach())
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        wanted: list[bool] = []
        left: list[int] = []
        queue = SendQueue(ours, wanted.append)
        frames = [bytes([n]) * size for n in range(9)]
        for n, frame in enumerate(frames):
            queue.push(frame, partial(left.append, n))
        data = drain(theirs)
        while left != list(range(9)):
            queue.flush()
            data += drain(theirs)
        assert data == b"".join(frames)
        assert queue.size == 0
        assert wanted in ([], [True, False])


@pytest.mark.skipif(not may_raise_buffers(), reason="needs CAP_NET_ADMIN")
def test_a_frame_is_never_split_when_the_buffer_may_be_raised() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        queue = SendQueue(ours, lambda wanted: None)
        size = 3_000_001
        left: list[int] = []
        for n in range(12):
            queue.push(bytes(size), partial(left.append, n))
        whole, rest = divmod(len(drain(theirs)), size)
        assert (whole, rest) == (len(left), 0)
        assert 0 < whole < 12


@pytest.mark.parametrize("gone", [False, True])
def test_frames_that_cannot_be_delivered_are_over_too(gone: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        left: list[int] = []
        queue = SendQueue(ours, lambda wanted: None)
        for n in range(40):
            queue.push(bytes(1 << 20), partial(left.append, n))
        assert len(left) < 40
        if gone:
            theirs.close()
            queue.flush()
        else:
            queue.abandon()
        queue.push(b"more", partial(left.append, 40))
        assert left == list(range(41))
        assert queue.size == 0
