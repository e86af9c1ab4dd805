"""`python -m tests.host`: a booted host by hand, and the care of its cache."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from . import cache, packages, roots
from .errors import HostError
from .host import Host, check_machine
from .install import layers

EPILOG = """\
Without a command a shell is opened in the host. It has systemd, D-Bus, containerd (namespace
default has the images docker.io/library/busybox:latest, docker.io/library/layers:8 and
registry.k8s.io/pause:3.9) and sdshim as it is in this working tree. Nothing outlives it.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.host",
        description="Boots a throwaway systemd host and runs a command or a shell in it.",
        epilog=EPILOG,
    )
    names = [root.name for root in roots.ROOTS]
    parser.add_argument("--root", choices=names, default="self", help="what it boots from")
    parser.add_argument("--cgroup", choices=["v2", "v1"], default="v2", help="v1 is the hybrid")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment of sdshim's daemon (repeat it)",
    )
    parser.add_argument("--no-install", action="store_true", help="leave sdshim out")
    care = parser.add_argument_group("instead of booting").add_mutually_exclusive_group()
    care.add_argument("--build", action="store_true", help="make what --root needs, no more")
    care.add_argument("--list", action="store_true", help="show the cache ($SDSHIM_CACHE)")
    care.add_argument("--clean", action="store_true", help="empty the cache")
    care.add_argument(
        "--install-packages", action="store_true", help="install what this machine lacks (apt-get)"
    )
    parser.add_argument("command", nargs="*", help="what to run in the host, after --")
    return parser


def _list() -> int:
    print(cache.folder())
    for entry in cache.entries():
        age = (time.time() - entry.modified) / 3600
        title = f"{entry.kind}/{entry.name}"
        print(f"  {title:34} {entry.size / 1e6:8.1f} MB {age:7.1f} h old")
    return 0


def _clean() -> int:
    removed = cache.clean()
    print("\n".join(f"removed {name}" for name in removed) or "nothing to remove")
    return 0


def _install_packages() -> int:
    added = packages.install_missing()
    print("installed: " + " ".join(added) if added else "nothing is missing")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    check_machine()
    root = roots.by_name(arguments.root)
    path = roots.ensure(root)
    if not arguments.no_install:
        layers(root, path)
    with Host(root.name, install=False):  # makes containerd's state, and shows that it boots
        pass
    print(f"root {root.name} is ready")
    return 0


def _boot(arguments: argparse.Namespace) -> int:
    env = dict(pair.partition("=")[::2] for pair in arguments.env)
    install = not arguments.no_install
    with Host(arguments.root, arguments.cgroup, env=env, install=install) as host:
        if arguments.command:
            return _wait(host, arguments.command)
        system, containerd = host.systemd_version, ".".join(map(str, host.containerd_version))
        print(
            f"{arguments.root}, cgroup {arguments.cgroup}: systemd {system}, containerd "
            f"{containerd}, booted in {host.boot_seconds:.1f} s; leave with exit or Ctrl-D",
            file=sys.stderr,
        )
        return _wait(host, _shell())


def _shell() -> list[str]:
    """script(1) gives the shell a terminal of the host's own devpts."""
    if sys.stdin.isatty():
        return ["script", "--quiet", "--return", "--command", "exec bash -i", "/dev/null"]
    return ["bash"]


def _wait(host: Host, command: list[str]) -> int:
    """The command's status; an interrupt is the command's affair, and ours only to pass on."""
    process = host.popen(command, interactive=True)
    interrupted = False
    while True:
        try:
            status: int = process.wait()
        except KeyboardInterrupt:
            interrupted = True
            if not sys.stdin.isatty():  # a terminal has told the command itself
                host.send_signal(process, signal.SIGINT)
            continue
        # nsenter ignores interrupts here, so it cannot die of one as its command did: it says 1.
        if interrupted and status == 1:
            return 128 + signal.SIGINT
        return status if status >= 0 else 128 - status


def main() -> int:
    arguments = _parser().parse_args()
    # A plain `kill` leaves the same way an exception does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if arguments.list:
            return _list()
        if arguments.clean:
            return _clean()
        if arguments.install_packages:
            return _install_packages()
        return _build(arguments) if arguments.build else _boot(arguments)
    except HostError as error:
        print(f"tests.host: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
