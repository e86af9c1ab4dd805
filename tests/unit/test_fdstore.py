"""sd_notify and the fd store, against a notification socket of the test's own."""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import logging
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdshim.core import headroom
from sdshim.core.errors import ResourceExhausted
from sdshim.systemd.fdstore import FdStore
from tests.unit.ttrpc_kit import aio, short_directory, until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.environ = {"NOTIFY_SOCKET": address}

    def next(self) -> tuple[str, list[int]]:
        data, control, _, _ = self.sock.recvmsg(4096, 4096)
        fds = array.array("i")
        for _, _, part in control:
            fds.frombytes(part)
        return data.decode(), list(fds)

    async def wait(self) -> tuple[str, list[int]]:
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.next()
            await asyncio.sleep(0)


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@contextlib.contextmanager
def manager(abstract: bool = False) -> Iterator[Manager]:
    with short_directory() as directory:
        here = Manager(f"@{directory}" if abstract else str(directory / "notify"))
        with here.sock:
            yield here


@aio
async def test_a_message_can_be_in_the_name_of_another_process() -> None:
    with manager() as there:
        there.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        store = FdStore(there.environ)
        store.notify_for(os.getpid(), "STATUS=mine")
        data, control, _, _ = there.sock.recvmsg(4096, 4096)
        who = struct.unpack("iII", control[0][2])
        assert (data, who) == (b"STATUS=mine", (os.getpid(), os.getuid(), os.getgid()))
        store.close()


@aio
async def test_nothing_is_said_for_a_process_that_does_not_exist() -> None:
    with manager() as there:
        store = FdStore(there.environ)
        store.notify_for(2**22 + 1, "STATUS=nobody's")
        with pytest.raises(BlockingIOError):
            there.next()
        store.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_reach_the_manager(abstract: bool) -> None:
    with manager(abstract) as here:
        store = FdStore(here.environ)
        assert store.active
        assert "NOTIFY_SOCKET" not in here.environ
        store.notify("READY=1\nSTATUS=fine")
        assert here.next() == ("READY=1\nSTATUS=fine", [])
        store.close()


@aio
async def test_keep_returns_when_the_manager_has_come_to_the_barrier() -> None:
    with manager() as here:
        store = FdStore(here.environ)
        read, write = os.pipe()
        kept = store.keep("conn.1", read)
        text, fds = here.next()  # it left at once, before any await
        assert text == "FDSTORE=1\nFDNAME=conn.1"
        assert os.fstat(fds[0]).st_ino == os.fstat(read).st_ino
        text, (barrier,) = await here.wait()
        assert text == "BARRIER=1"
        for _ in range(20):
            await asyncio.sleep(0)
        assert not kept.done()
        os.close(barrier)
        await kept
        store.remove("conn.1")
        assert here.next() == ("FDSTOREREMOVE=1\nFDNAME=conn.1", [])
        for fd in (read, write, *fds):
            os.close(fd)
        store.close()


@aio
async def test_keeps_of_one_turn_share_a_barrier() -> None:
    with manager() as here:
        store = FdStore(here.environ)
        null = os.open("/dev/null", os.O_RDONLY)
        kept = [store.keep(f"x.{n}", null, poll=False) for n in range(5)]
        for n in range(5):
            text, (fd,) = here.next()
            assert text == f"FDSTORE=1\nFDNAME=x.{n}\nFDPOLL=0"
            os.close(fd)
        text, (barrier,) = await here.wait()
        later = store.keep("x.9", null)
        os.close(here.next()[1][0])
        os.close(barrier)
        await asyncio.gather(*kept)
        assert not later.done()
        text, (barrier,) = await here.wait()
        assert text == "BARRIER=1"
        os.close(barrier)
        await later
        os.close(null)
        store.close()


@aio
async def test_many_descriptors_go_in_messages_of_253() -> None:
    with manager() as here:
        store = FdStore(here.environ)
        null = os.open("/dev/null", os.O_RDONLY)
        kept = store.keep("x", *[null] * 600)
        counts = []
        for _ in range(3):
            _, fds = here.next()
            counts.append(len(fds))
            for fd in fds:
                os.close(fd)
        assert counts == [253, 253, 94]
        os.close((await here.wait())[1][0])
        await kept
        os.close(null)
        store.close()


@aio
async def test_a_busy_manager_gets_everything_in_order_later() -> None:
    with manager() as here:
        store = FdStore(here.environ)
        count = 2000  # more than the socket's queue
        for n in range(count):
            store.notify(f"STATUS={n}")
        read, write = os.pipe()
        kept = store.keep("late", read)
        os.close(read)  # the backlog has its own copy
        for n in range(count):
            assert (await here.wait())[0] == f"STATUS={n}"
        text, (copy,) = await here.wait()
        assert text.startswith("FDSTORE=1")
        text, (barrier,) = await here.wait()
        assert text == "BARRIER=1"
        os.close(barrier)
        await kept
        os.write(write, b"x")
        assert os.read(copy, 1) == b"x"
        os.close(copy)
        os.close(write)
        store.close()


@aio
async def test_a_manager_that_does_not_answer_costs_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with manager() as here:
        store = FdStore(here.environ, timeout=0.02)
        await store.barrier()
        assert "going on" in caplog.text
        os.close(here.next()[1][0])
        store.close()


@aio
async def test_a_manager_that_is_gone_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    store = FdStore({"NOTIFY_SOCKET": "/nonexistent/notify"}, timeout=1)
    store.notify("READY=1")
    await store.keep("x", 0)  # the barrier's pipe is closed by us alone: nobody to wait for
    assert "READY=1 not sent" in caplog.text
    store.close()


@aio
async def test_without_a_manager_nothing_happens() -> None:
    store = FdStore({})
    assert not store.active
    store.notify("READY=1")
    store.remove("x")
    await store.keep("x", 0)
    await store.barrier()
    assert store.take() == []
    store.close()


@aio
async def test_close_lets_nobody_wait() -> None:
    with manager() as here:
        store = FdStore(here.environ)
        first = store.barrier()
        _, (barrier,) = await here.wait()
        second = store.barrier()
        store.close()
        await first
        await second
        await asyncio.sleep(0)
        os.close(barrier)


@pytest.mark.parametrize("name", ["", "a:b", "x" * 256, "a\nb"])
def test_names_systemd_would_not_take_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        FdStore({}).keep(name, 0)


TAKE = """
import os, sys
from sdshim.systemd.fdstore import FdStore
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
before = [os.get_inheritable(fd) for fd in (3, 4, 5)]
taken = FdStore().take()
print(before, taken, [os.get_inheritable(fd) for fd in (3, 4, 5)])
print([name for name in os.environ if name.startswith(("LISTEN", "NOTIFY"))], FdStore().take())
"""


@pytest.mark.parametrize("offset", [0, 1])
def test_take_gives_each_descriptor_with_its_name_once(offset: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    high = [os.dup2(null, 200 + n) for n in range(3)]
    command = f"exec {sys.executable} -c '{TAKE}' {offset} 3<&200 4<&201 5<&202"
    environ = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "conn.1:listen.x", "NOTIFY_SOCKET": "/x"}
    done = subprocess.run(
        ["bash", "-c", command],
        pass_fds=high,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    for fd in (null, *high):
        os.close(fd)
    first, second = done.stdout.splitlines()
    if offset:
        assert first == "[True, True, True] [] [True, True, True]"
    else:
        taken = [("conn.1", 3), ("listen.x", 4), ("unknown", 5)]
        assert first == f"[True, True, True] {taken} [False, False, False]"
    assert second == "[] []"


@aio
async def test_the_barriers_of_a_flood_leave_no_descriptor_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    with manager() as here:
        store = FdStore(here.environ)
        before = descriptors()
        for _ in range(50):
            waiting = store.barrier()
            os.close((await here.wait())[1][0])
            await waiting
        await until(lambda: descriptors() == before)
        store.close()


async def _most(number: int) -> int:
    return number


@aio
async def test_a_store_that_fills_up_is_told_once_and_refuses_new_work_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with manager() as here:
        store = FdStore(here.environ)
        store.ask_most = functools.partial(_most, 40)
        await store.demand(0)
        for number in range(8):
            store.keep(f"io.{number}.x", 0, 1, 2, 1, poll=False)
        assert caplog.text.count("32 of 40 descriptors") == 1
        await store.demand(4)
        with pytest.raises(ResourceExhausted, match="keeps 32 of 40 descriptors"):
            await store.demand(5)
        store.keep("conn.1", 0)
        assert caplog.text.count("descriptors") == 1
        store.remove("io.1.x")
        assert store.used == 29
        await store.demand(4)
        store.close()


@aio
async def test_a_limit_that_was_raised_meanwhile_counts() -> None:
    with manager() as here:
        store = FdStore(here.environ)
        store.ask_most = functools.partial(_most, 8)
        with pytest.raises(ResourceExhausted):
            await store.demand(5)
        store.ask_most = functools.partial(_most, 16)
        await store.demand(5)
        store.close()


@aio
async def test_a_manager_that_keeps_nothing_refuses_nothing() -> None:
    await FdStore({}).demand(1000)
    with manager() as here:
        store = FdStore(here.environ)
        store.ask_most = functools.partial(_most, 0)
        await store.demand(1000)
        store.close()


@pytest.mark.parametrize("most", [40, 200, 4096])
def test_what_is_kept_back_is_never_for_new_work(most: int) -> None:
    left = headroom.kept_back(most)
    assert headroom.has_room(most - left - 1, 1, most)
    assert not headroom.has_room(most - left, 1, most)
    assert headroom.is_tight(most - left, most)
    assert not headroom.is_tight(most // 2, most, before=True)
