"""The ends of a process's FIFOs on their way to systemd's fd store."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sdshim.core.model import Identity, Stdio
from sdshim.daemon import streams
from sdshim.stdio.fifo import OPENING, STDIN, STDOUT, Held

if TYPE_CHECKING:
    from pathlib import Path


class Keeper:
    """The fd store, with a client that closes stdin while the manager is asked for its size."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.meanwhile: Any = None

    async def demand(self, _more: int) -> None:
        self.meanwhile()

    async def keep(self, name: str, *_fds: int, poll: bool) -> None:
        assert not poll
        self.names.append(name)

    def remove(self, name: str) -> None:
        assert name not in self.names


def test_stdin_may_be_closed_while_room_for_the_streams_is_asked_for(tmp_path: Path) -> None:
    paths: Any = {name: str(tmp_path / name) for name in ("stdin", "stdout")}
    for path in paths.values():
        os.mkfifo(path)
    me = Identity("ns", "c", "t0", "/b", "u", "s", "/c", True, "/a", stdio=Stdio(**paths))
    process: Any = SimpleNamespace(identity=me, held=Held())
    keeper = Keeper()
    store = SimpleNamespace(folder=lambda _me: tmp_path)
    node: Any = SimpleNamespace(store=store, keeper=keeper, crash=lambda _name: None)
    keeper.meanwhile = lambda: streams.close_stdin(node, process)

    async def hold() -> None:
        for kept in await streams.hold(node, process):
            await kept

    asyncio.run(hold())
    assert sorted(keeper.names) == [f"io.t0.{OPENING}", f"io.t0.{STDOUT}"]
    assert STDIN not in process.held.ends
    process.held.close_all()
