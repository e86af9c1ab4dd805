"""`sdshim`: argument parsing; each command's module is imported only when it is run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

import sdshim

EPILOG = """\
Containers are units: systemctl status 'sdshim-*', journalctl -u sdshim.
docs/operators.md goes from symptom to command.
"""
PS = """\
List the containers of this node. All is read from systemd and from the state files, so it works
with the daemon stopped too; nothing is changed. On a terminal, columns that do not fit are left
out (--wide keeps them); in a pipe or a file nothing is.
"""
PS_END = """\
STATE is the task's phase (created, running, paused, exited …), or
  lost    nothing is left of the process but its record
  stray   a unit without state on disk
  broken  state that cannot be read
and for these three see: sdshim doctor. SINCE is since when; EXIT is the exit status, 128+N after
signal N, with oom when the kernel killed for lack of memory. MEMORY and CPU are the unit's, - where
systemd does not account them.
"""
INSPECT = """\
Show everything that is known of one container or exec: unit, slice, cgroup, limits, streams,
options, exit, events not yet delivered, state folder. Values of environment variables are never
shown.
"""
INSPECT_END = """\
NAME is a container's id or the beginning of one, NAMESPACE/ID, ID:EXEC for an exec, or a unit. A
name that fits several is an error that lists them.
"""
DOCTOR = """\
Look for what is wrong on this node: remains of containers, the daemon, systemd, containerd,
versions, permissions, drop-ins. Says nothing when all is well; each finding comes with what to do
about it. Without --fix nothing is changed.
"""
DOCTOR_END = """\
--fix removes remains that belong to no task and no unit, sets modes of our own files, and touches
nothing of a living container. A finding that it repairs says so.
Exit status: 0 fine, 1 warnings, 2 faults, 3 something could not be looked at.
"""
COMPLETION = """\
Print a script for the shell's completion of commands, options and container ids. An installation
puts it in place; by hand: source <(sdshim completion bash)
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="sdshim",
        description="containerd shim that runs every container as a systemd unit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sdshim {sdshim.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _command(commands, "serve", "run the daemon (systemd starts it: systemctl start sdshim.socket)")
    _command(commands, "config", "print the effective configuration")
    listing = _command(
        commands, "ps", "list containers, as systemd and the disk know them", PS, PS_END
    )
    _namespace(listing)
    listing.add_argument("-e", "--execs", action="store_true", help="list execs too")
    listing.add_argument(
        "-w",
        "--wide",
        action="store_true",
        help="leave no column out; with --quiet, name namespaces too",
    )
    listing.add_argument("-q", "--quiet", action="store_true", help="names only, for scripts")
    listing.add_argument("--json", action="store_true", help="all fields, as a JSON list")
    shown = _command(commands, "inspect", "show all of one container or exec", INSPECT, INSPECT_END)
    shown.add_argument("name", metavar="NAME", help="container's id, exec or unit")
    _namespace(shown)
    shown.add_argument("--json", action="store_true", help="as a JSON object")
    doctor = _command(commands, "doctor", "say what is wrong, and what to do", DOCTOR, DOCTOR_END)
    doctor.add_argument("--fix", action="store_true", help="repair what is safe to repair")
    doctor.add_argument("-v", "--verbose", action="store_true", help="tell what was looked at too")
    doctor.add_argument("--json", action="store_true", help="findings and facts as a JSON object")
    script = _command(
        commands, "completion", "print a script for the shell's completion", COMPLETION
    )
    script.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help: str,
    description: str = "",
    epilog: str = "",
) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name,
        help=help,
        description=description or help,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--config", metavar="FILE", help="configuration file (default /etc/sdshim/config.toml)"
    )
    return made


def _namespace(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-n", "--namespace", default="", metavar="NAME", help="of this containerd namespace only"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = parser().parse_args(argv)
    from sdshim.cli.settings import load_config
    from sdshim.core.errors import ShimError

    try:
        config = load_config(arguments.config)
        if arguments.command == "serve":
            from sdshim.cli.serve import serve

            return serve(config)
        if arguments.command == "config":
            from sdshim.core.config import render

            sys.stdout.write(render(config))
            return 0
        command = importlib.import_module(f"sdshim.cli.{arguments.command}")
        status = int(command.run(arguments, config))
        sys.stdout.flush()
        return status
    except ShimError as error:
        print(f"sdshim: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `sdshim ps | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
