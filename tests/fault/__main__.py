"""The counted fault suite: what is lost when parts of a host are killed and restarted under load?

`make fault ROOT=… CGROUP=… SEED=…`: eight workers create, start, exec, kill, wait and delete
through containerd's API while the daemon is killed 100 times, restarted 50 times, and so on. Each
call's answer, each line of output and each event is compared with what was planned. Ends with
`fault: kills=… cut=… lost=… wrong=… doubled=… hung=… left=…`; exit status 0 only when all but
kills and cut are 0. A seed gives the same plans and the same pauses between strikes.
"""

from __future__ import annotations

import argparse
import sys

from tests.fault import storm
from tests.fault.field import SOCKET, Field
from tests.fault.strikes import SCENARIOS
from tests.fault.tally import Tally
from tests.host import Host
from tests.tools.containerd import Containerd


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fault",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", default="self", choices=("self", "trixie", "forky"))
    parser.add_argument("--cgroup", default="v2", choices=("v2", "v1"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the counts, e.g. 0.1 for a tenth (default 1)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name has it")
    parser.add_argument("--journal", action="store_true", help="print its end after a fault")
    options = parser.parse_args()
    total = Tally()
    with Host(root=options.root, cgroup=options.cgroup) as host:
        versions = ".".join(map(str, host.containerd_version))
        print(
            f"systemd {host.systemd_version}, containerd {versions}, root {options.root}, "
            f"cgroup {options.cgroup}, seed {options.seed}"
        )
        for number, scenario in enumerate(SCENARIOS):
            if options.only not in scenario.name:
                continue
            if host.systemd_version < scenario.systemd:
                print(f"{scenario.name}: not before systemd {scenario.systemd}")
                continue
            count = max(1, round(scenario.count * options.scale))
            print(f"{scenario.name}, {count} times", flush=True)
            with Containerd(str(host.path(SOCKET))) as client:
                field = Field(host, client, number * 10_000)  # (one may leave a snapshot)
                storm.run(field, scenario, count, options.seed)
            for text in field.tally.texts[:40]:
                print(f"  {text}")
            if options.journal and not field.tally.good:
                print(host.log_tail(2000))
            total.add(field.tally)
    print(f"fault: {total.line()}")
    return 0 if total.good else 1


if __name__ == "__main__":
    sys.exit(main())
