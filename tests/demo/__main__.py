"""`python -m tests.demo --host booted|system`: see the package."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

from tests.demo import stage, story
from tests.host import HostError
from tests.host.roots import ROOTS


def main() -> int:
    """Tell the story; the last line says how it went."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo",
        description="A container as a systemd unit: its output, status, exit code and traces.",
    )
    parser.add_argument(
        "--host",
        choices=["booted", "system"],
        default="booted",
        help="a throwaway host, or this system with an installed sdshim",
    )
    names = [root.name for root in ROOTS]
    parser.add_argument("--root", choices=names, default="self", help="what to boot from")
    parser.add_argument("--cgroup", choices=["v2", "v1"], default="v2", help="v1 is the hybrid")
    arguments = parser.parse_args()
    # A plain `kill` clears up as an exception does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        system = arguments.host == "system"
        place = stage.system() if system else stage.booted(arguments.root, arguments.cgroup)
        with place as there:
            story.tell(there)
    except (stage.DemoFailed, HostError, OSError, subprocess.TimeoutExpired) as error:
        print(f"\ndemo: failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print("\ndemo: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
