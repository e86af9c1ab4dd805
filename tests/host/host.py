"""`Host`: a booted systemd as a context manager."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from . import cache, guest, images, install, keeper, leftovers, roots
from .errors import CannotBoot, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType

BOOT_TIMEOUT = 60.0
STATE = "/var/lib/containerd"
TOOLS = ("nsenter", "unshare", "setpriv")
# Joins the host's own cgroups, then its namespaces; the command dies with this process.
_ENTER = """\
for cgroup in $1; do echo 0 >"$cgroup/cgroup.procs" || exit 125; done
pid=$2
shift 2
exec nsenter -t "$pid" -m -p -u -i -n -C -r -w -- setpriv --pdeathsig KILL -- "$@"
"""
# A terminal's Ctrl-C must reach the command but not end its way in, which would kill it.
_ENTER_INTERACTIVE = "trap '' INT QUIT\n" + _ENTER.replace(
    "-- setpriv", "-- env --default-signal=INT,QUIT setpriv"
)


class Host:
    """One host. Boots on `__enter__`, is gone without a trace after `__exit__`.

    root: "self", "trixie" or "forky"; cgroup: "v2" or "v1" (hybrid).
    env: the environment of sdshim's daemon.  install=False leaves sdshim out.
    source: the working tree to install from, if not the one this module lies in.
    containerd_config: containerd's version -> its config, e.g. to have the CRI.
    images=False leaves the images out, None imports them afresh.
    binds: path in the host -> directory outside.  init_env: for PID 1, e.g. SYSTEMD_LOG_LEVEL.
    """

    def __init__(
        self,
        root: str = "self",
        cgroup: str = "v2",
        *,
        env: Mapping[str, str] | None = None,
        install: bool = True,
        images: bool | None = True,
        source: Path | None = None,
        containerd_config: Callable[[tuple[int, ...]], str] = guest.containerd_config,
        binds: Mapping[str, str] | None = None,
        init_env: Mapping[str, str] | None = None,
    ) -> None:
        self.root = roots.by_name(root)
        if cgroup not in self.root.cgroups:
            raise CannotBoot(f"root {root} has no cgroup flavour {cgroup!r}")
        self.cgroup = cgroup
        self.pid = 0
        self.boot_seconds = 0.0
        self._env = dict(env or {})
        self._install = install
        self._images = images
        self._source = source
        self._containerd_config = containerd_config
        self._binds = dict(binds or {})
        self._init_env = dict(init_env or {})
        self._keeper: subprocess.Popen[bytes] | None = None
        self._console: IO[bytes] | None = None
        self._trees: list[Path] = []
        self._baseline: leftovers.Baseline | None = None

    # --- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        started = time.monotonic()
        check_machine()
        spec = self._spec()
        keeper.sweep()
        try:
            self._boot(spec)
            if self._images is None:
                self.import_images()
            self._baseline = leftovers.baseline(self.pid, self._trees)
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the host at once, as a power cut would; the keeper clears up behind it."""
        process, self._keeper = self._keeper, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            while True:  # a second Ctrl-C must not leave anything behind either
                try:
                    process.wait()
                    break
                except KeyboardInterrupt:
                    continue
            process.stdout.close()
        if self._console is not None:
            self._console.close()
            self._console = None

    def poweroff(self, timeout: float = 100.0) -> None:
        """An orderly shutdown, for tests of it; returns when PID 1 has ended."""
        os.kill(self.pid, signal.SIGRTMIN + 4)  # systemd(1): poweroff.target
        if "exited" not in self._await_report("exited", timeout):
            raise self._failure(f"the host did not power off within {timeout:.0f} s")

    def _spec(self) -> keeper.Spec:
        path = roots.ensure(self.root)
        name = f"sdshim-{self.root.name}-{self.cgroup}-{uuid.uuid4().hex[:6]}"
        seeds: dict[str, str] = {}
        binds, links, opaque = dict(self._binds), {}, list(guest.OPAQUE)
        opaque.append(install.LIB)  # never the machine's own sdshim
        units = ["containerd.service"]
        if self._install:
            deps, made = install.layers(self.root, path, self._source)
            seeds["/usr/local"] = str(made)
            binds[install.DEPS_BOUND] = str(deps / "lib/sdshim/deps")
            links[install.DEPS] = install.DEPS_BOUND
            units += ["sdshim.socket", "sdshim.target"]
        version = roots.containerd_version(self.root, path)
        if self._images:
            seeds[STATE] = str(_containerd_state(self.root, version))
        config = self._containerd_config(version)
        return keeper.Spec(
            lower=[str(path)],
            mountpoint=str(cache.mountpoint()),
            cgroup=self.cgroup,
            hostname=name,
            files=guest.files(name, uuid.uuid4().hex, config, self._env),
            links={**guest.links(units), **links},
            opaque=opaque,
            tmpfs=list(guest.TMPFS),
            seeds=seeds,
            binds=binds,
            keep_units=list(guest.KEEP_UNITS),
            environment=guest.init_environment(self.cgroup, self._init_env),
        )

    def _boot(self, spec: keeper.Spec) -> None:
        # Without a name: nothing to leave behind.
        self._console = tempfile.TemporaryFile(prefix="sdshim-console-")  # noqa: SIM115
        # A session of its own: a Ctrl-C is for this process, which then ends the host.
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, json.dumps(asdict(spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._console,
            start_new_session=True,
            cwd="/",
        )
        born = self._await_report("pid", BOOT_TIMEOUT)
        self.pid = int(born["pid"])
        places = keeper.chosen(self.cgroup)
        # systemd's own hierarchy first: it says what a process belongs to.
        places.sort(key=lambda place: place.controllers != "name=systemd")
        self._trees = [place.mount / str(born["cgroup"]) for place in places]
        self._await_report("ready", BOOT_TIMEOUT)

    def _await_report(self, wanted: str, timeout: float) -> dict[str, Any]:
        """The keeper's next line that has `wanted`; anything that prevents it is an error."""
        assert self._keeper is not None and self._keeper.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._keeper.stdout], [], [], left)[0]:
                raise self._failure(f"no {wanted!r} from the host within {timeout:.0f} s")
            line = self._keeper.stdout.readline()
            facts: dict[str, Any] = json.loads(line) if line else {"error": "the keeper died"}
            if wanted in facts:
                return facts
            if "error" in facts:
                raise self._failure(f"cannot make the host: {facts['error']}")
            if "exited" in facts:
                raise self._failure(f"systemd ended with {facts['exited']}")

    def _failure(self, what: str) -> HostError:
        return HostError(f"{self.root.name}/{self.cgroup}: {what}\n{self.log_tail()}")

    # --- commands -----------------------------------------------------------------------------

    def command(self, arguments: Sequence[str], *, interactive: bool = False) -> list[str]:
        """What to execute outside to have `arguments` executed inside."""
        enter = _ENTER_INTERACTIVE if interactive else _ENTER
        cgroups = " ".join(str(t / keeper.CLIENTS) for t in self._trees if self._has_clients(t))
        return ["/bin/sh", "-c", enter, "sh", cgroups, str(self.pid), *arguments]

    def run(
        self,
        arguments: Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = 30,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; output is captured. stdin is /dev/null without `input`.

        A command that must not fail and does raises HostError with its output.
        """
        process = self.popen(
            arguments,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of it can be killed, its children too
        )
        words = " ".join(arguments)
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise self._failure(f"{words}: no end after {timeout} s\n{out}{err}") from None
        if check and process.returncode != 0:
            raise self._failure(f"{words}: exit status {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(list(arguments), process.returncode, out, err)

    def popen(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        interactive: bool = False,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """The same, streaming. The command gets a SIGKILL when the returned process ends by a
        signal; `send_signal()` reaches the command itself. interactive: it shares our terminal.
        """
        if not self.pid:
            raise HostError("the host is not running")
        options.setdefault("cwd", "/")
        command = self.command(arguments, interactive=interactive)
        return subprocess.Popen(command, env=self.environment(env), **options)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        made = {"PATH": guest.PATH, "HOME": "/root", "LANG": "C.UTF-8", "USER": "root"}
        made["TERM"] = os.environ.get("TERM", "dumb")
        return {**made, **(extra or {})}

    def send_signal(self, process: subprocess.Popen[Any], number: int) -> None:
        """Signals the command that popen() started, not its way in."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for child in children.split():
                os.kill(int(child), number)

    @staticmethod
    def _has_clients(tree: Path) -> bool:
        return (tree / keeper.CLIENTS).is_dir()

    # --- the host from outside ----------------------------------------------------------------

    def path(self, inside: str | os.PathLike[str] = "/") -> Path:
        """A path of the host, usable here. Absolute symlinks in it would lead astray."""
        return Path("/proc", str(self.pid), "root", os.fspath(inside).lstrip("/"))

    @property
    def cgroup_path(self) -> Path:
        """The host's cgroup outside, in the hierarchy systemd keeps its units in."""
        return self._trees[0]

    @cached_property
    def controllers(self) -> bool:
        """Whether memory, cpu and pids can be limited: on v1, and where cgroup2 has them."""
        return keeper.has_controllers(self.cgroup)

    @cached_property
    def systemd_version(self) -> int:
        return self._version(["systemctl", "--version"])[0]

    @cached_property
    def containerd_version(self) -> tuple[int, ...]:
        return self._version(["containerd", "--version"])

    @cached_property
    def python_version(self) -> tuple[int, ...]:
        return self._version(["/usr/bin/python3", "--version"])

    def _version(self, command: list[str]) -> tuple[int, ...]:
        text = self.run(command).stdout
        match = re.search(r"\s(\d+(?:\.\d+)*)", text)
        assert match is not None, text
        return tuple(int(part) for part in match[1].split("."))

    def leftovers(self, wait: float = 0.0, known: Collection[str] = ()) -> list[str]:
        """What earlier containers left; `wait` gives it that many seconds to become nothing.

        `known` lines are left out: somebody has complained of them already.
        """
        assert self._baseline is not None
        deadline = time.monotonic() + wait
        while True:
            found = leftovers.find(self.pid, self._trees, self._baseline)
            found = [line for line in found if line not in known]
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.02)

    # --- what is in it ------------------------------------------------------------------------

    def import_images(self, namespace: str = "default") -> None:
        """The test images (images.ALL) for a containerd namespace."""
        archive = self.path("/run/host/images.tar")
        if not archive.exists():
            shutil.copyfile(images.archive(), archive)
        self.run(["ctr", "-n", namespace, "image", "import", "/run/host/images.tar"])

    def reinstall(self, source: Path | None = None) -> str:
        """Installs sdshim again, as an upgrade does, and lets systemd read the units.

        Whether and how the daemon is restarted is the test's to say.
        """
        said = install.into_running(self.path("/"), source or self._source)
        self.run(["systemctl", "daemon-reload"])
        return said

    def log_tail(self, lines: int = 40) -> str:
        """The end of systemd's console and of the journal, for failure messages."""
        parts = []
        if self._console is not None:
            self._console.seek(0)
            text = self._console.read().decode(errors="replace").splitlines()
            parts += ["--- console", *text[-lines:]]
        if self.pid and self.path("/").is_dir():
            command = ["journalctl", "--no-pager", "-q", "-o", "short-monotonic", f"-n{lines}"]
            done = subprocess.run(
                self.command(command),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=10,
            )
            parts += ["--- journal", done.stdout.rstrip()]
        return "\n".join(parts)


def _containerd_state(root: roots.Root, version: tuple[int, ...]) -> Path:
    """What an import leaves on disk, kept: copying it takes a tenth of an import's time."""

    def build(out: Path) -> None:
        with Host(root.name, install=False, images=None) as host:
            host.run(["systemctl", "stop", "containerd.service"])
            subprocess.run(["cp", "-a", f"{host.path(STATE)}/.", str(out)], check=True)

    number = ".".join(map(str, version))
    name = f"{root.name}-{cache.key([number, images.archive().parent.name])}"
    return cache.ensure("state", name, build)


def check_machine() -> None:
    """Raises CannotBoot with the reason when no host can be booted here."""
    if os.geteuid() != 0:
        raise CannotBoot("booting a host needs root")
    if set(str(cache.folder())) & set(":,\\ "):
        raise CannotBoot(f"{cache.folder()}: mount options cannot carry such a name")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise CannotBoot(f"{tool} is missing (Debian: util-linux)")
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--cgroup", "--fork", "true"],
        capture_output=True,
        text=True,
    )
    if probe.returncode != 0:
        raise CannotBoot(f"no new namespaces here: {probe.stderr.strip()}")
