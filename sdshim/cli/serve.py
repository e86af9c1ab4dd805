"""`sdshim serve`: wires the rooms together, takes over from the daemon before, serves, stops.

Order at the start: bus → records, units and descriptors of the daemon before → listeners →
READY=1 → calls that were open. READY=1 waits for no unit's job. Order at the end: no new frame is
read, what is under way stays as it stands on disk, the next daemon goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.api import control
from sdshim.api.dispatch import Dispatcher
from sdshim.core.names import DAEMON_UNIT
from sdshim.core.points import nowhere
from sdshim.core.unitspec import HostFacts
from sdshim.daemon import recovery
from sdshim.daemon.node import Node
from sdshim.daemon.publisher import Mailbox, Publisher
from sdshim.host import cgroup
from sdshim.host.calllog import CallLog
from sdshim.host.store import Store
from sdshim.runtime.oci import OciRuntime
from sdshim.stdio.bundlelog import BundleHandler
from sdshim.systemd import journal
from sdshim.systemd.bus import Bus
from sdshim.systemd.fdstore import FdStore
from sdshim.systemd.manager import Manager
from sdshim.telemetry import tracer_from_env
from sdshim.ttrpc.server import Server

if TYPE_CHECKING:
    from sdshim.core.config import Config
    from sdshim.core.points import Crash
    from sdshim.core.spans import Tracer

log = logging.getLogger("sdshim")

MAIN_SOCKET = "sdshim.sock"
MAIN_NAME = "listen"
"""FileDescriptorName= of the socket unit."""
READY = "ready"
CANNOT_S = 1.0
FLUSH_S = 0.3
"""The next daemon waits for this one to end: spans of a dead collector must not hold it up."""


def serve(config: Config, crash: Crash = nowhere) -> int:
    """Run the daemon until SIGTERM or SIGINT; `crash` is called at each crash point."""
    journal.install(logging.getLevelNamesMapping()[config.log_level.upper()])
    logging.getLogger().addHandler(BundleHandler())
    tracer = tracer_from_env(os.environ, config.otlp_endpoint or None)
    daemon = Daemon(config, tracer, crash)
    try:
        asyncio.run(daemon.run())
    except Exception:
        if not daemon.ready:  # systemd starts the next one at once: it shall not eat a core
            log.exception("cannot serve")
            time.sleep(CANNOT_S)
        raise
    finally:
        tracer.flush(FLUSH_S)
    return 0


class Daemon:
    """One run of the daemon."""

    def __init__(self, config: Config, tracer: Tracer, crash: Crash = nowhere) -> None:
        self._config = config
        self._crash = crash
        self._tracer = tracer
        self._run_dir = Path(config.run_dir)
        self._stop = asyncio.Event()
        self._keeper = FdStore(crash=crash)
        self.ready = False

    async def run(self) -> None:
        """Take over, serve, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        taken = self._keeper.take(other=MAIN_NAME)
        self._crash("start.taken")
        bus = Bus()
        bus.crash = self._crash
        await bus.connect()
        manager = Manager(bus)
        await manager.start()
        self._keeper.ask_most = partial(_store_max, manager)
        node = await self._node(manager)
        self._dispatcher = Dispatcher(node, self._listen)
        self._call_log = CallLog(self._run_dir / "calls")
        self._server = Server(self._dispatcher, self._call_log, self._keeper, crash=self._crash)
        self._dispatcher.server = self._server
        try:
            await self._take_over(node, taken)
            self._say_ready()
            self._server.resume()
            watchdog = loop.create_task(self._feed_watchdog())
            await self._stop.wait()
            watchdog.cancel()
        finally:
            (self._run_dir / READY).unlink(missing_ok=True)
            self._keeper.notify("STOPPING=1")
            await self._server.quiesce()
            await node.close()
            node.publisher.close()
            self._server.close()
            self._call_log.close()
            await manager.close()
            await bus.close()
            self._keeper.close()

    async def _node(self, manager: Manager) -> Node:
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = HostFacts(
            systemd=await manager.version(),
            unified=cgroup.unified(),
            launcher=launcher_folder(),
            python=sys.executable,
        )
        store = Store(self._run_dir / "t", self._crash)
        publisher = Publisher(
            self._run_dir / "e", self._keeper, self._tracer, store.reserve, self._crash
        )
        node = Node(
            config=self._config,
            facts=facts,
            manager=manager,
            runtime=OciRuntime(
                os.environ,
                self._config.runtime_timeout,
                self._keeper,
                self._run_dir / "programs",
                self._crash,
            ),
            store=store,
            keeper=self._keeper,
            tracer=self._tracer,
            publisher=publisher,
            run_dir=self._run_dir,
            crash=self._crash,
        )

        def start_box(box: Mailbox) -> None:
            node.spawn(box.run(), f"events to {box.address}")

        publisher.start_box = start_box
        return node

    async def _take_over(self, node: Node, taken: list[tuple[str, int]]) -> None:
        """Tasks first, then sockets: a call finds its task when it is read."""
        fds = [
            (name, fd)
            for name, fd in taken
            if name != MAIN_NAME
            and not self._server.adopt(name, fd)
            and not node.runtime.sealed.adopt(name, fd)
        ]
        # a reply that stands in the log is sent from there: the task's record need not keep it
        open_calls = {call.key for call in self._call_log.open_calls() if call.reply is None}
        others = await recovery.take_over(node, fds, open_calls)
        self._crash("start.adopted")
        for name, fd in others:
            log.warning("descriptor %r from the store belongs to nothing; closed", name)
            self._keeper.remove(name)
            os.close(fd)
        main = [fd for name, fd in taken if name == MAIN_NAME]
        sock = socket.socket(fileno=main[0]) if main else control.bind(self._run_dir / MAIN_SOCKET)
        await self._server.listen(sock, "", store=False)
        folder = self._run_dir / "s"
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in os.listdir(folder):  # noqa: PTH208 (one readdir of a handful of names)
            try:
                await self._listen(name)
            except OSError as error:  # no room: the next launcher asks for it again
                log.error("no socket for containerd namespace %s: %s", name, error)

    async def _listen(self, namespace: str) -> str:
        """The address of a namespace's socket, made on first demand."""
        path = self._run_dir / "s" / namespace
        if namespace not in self._server.namespaces:
            sock = control.bind(path)
            self._crash("start.bound")
            await self._server.listen(sock, namespace)
            self._keeper.notify(self._status())
        return f"unix://{path}"

    def _say_ready(self) -> None:
        self.ready = True
        try:
            (self._run_dir / READY).touch(mode=0o600)
        except OSError as error:  # the launcher asks us then, which takes longer
            log.error("%s: %s", self._run_dir / READY, error)
        self._keeper.notify(f"READY=1\n{self._status()}")
        self._crash("start.ready")
        log.info("serving %d containerd namespaces", len(self._server.namespaces) - 1)

    def _status(self) -> str:
        """The line that `systemctl status sdshim` shows."""
        names = ", ".join(sorted(filter(None, self._server.namespaces))) or "none yet"
        return f"STATUS=Serving containerd namespaces: {names}"

    async def _feed_watchdog(self) -> None:
        """WATCHDOG=1 at half the interval that systemd asked for."""
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        while interval:
            self._keeper.notify("WATCHDOG=1")
            await asyncio.sleep(interval)


async def _store_max(manager: Manager) -> int:
    """How many descriptors systemd keeps for us at most."""
    value = await manager.get_unit_property(DAEMON_UNIT, "Service", "FileDescriptorStoreMax")
    return int(str(value))


def launcher_folder() -> str:
    """Where the scripts that units name lie: the path that stays right over upgrades.

    An installed package is v/<hash>/sdshim with a link `sdshim` beside `v`; a unit outlives more
    than one upgrade, so it must name the link.
    """
    package = Path(__file__).resolve().parent.parent
    link = package.parents[2] / "sdshim"
    if link.is_symlink() and link.resolve() == package:
        package = link
    return str(package / "launcher")
