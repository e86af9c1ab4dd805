"""`sdshim`: argument parsing; each command's module is imported only when it is run."""

from __future__ import annotations

import argparse
import sys

import sdshim


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="sdshim",
        description="containerd shim that runs every container as a systemd unit.",
        epilog="Containers are units: systemctl status 'sdshim-*', journalctl -u sdshim.",
    )
    top.add_argument("--version", action="version", version=f"sdshim {sdshim.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "run the daemon (systemd starts it: systemctl start sdshim.socket)"),
        ("config", "print the effective configuration"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--config", metavar="FILE", help="configuration file (default /etc/sdshim/config.toml)"
        )
    return top


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
        from sdshim.core.config import render

        sys.stdout.write(render(config))
        return 0
    except ShimError as error:
        print(f"sdshim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
