"""`make compare`: the scenarios on one host against both shims; each difference, and its reason."""

from __future__ import annotations

import argparse
import faulthandler
import fnmatch
import sys
import time

from tests.compare import differences
from tests.compare.run import run
from tests.compare.scenarios import scenarios
from tests.host import Host

TOO_LONG = 900
"""Seconds after which it ends by itself, and says where it stood."""


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.compare", description=__doc__)
    parser.add_argument("--root", default="self", choices=("self", "trixie", "forky"))
    parser.add_argument("--cgroup", default="v2", choices=("v2", "v1"))
    parser.add_argument("--only", default="*", metavar="PATTERN", help="scenarios (cells.*)")
    parser.add_argument("--tape", action="store_true", help="print every answer of ours too")
    options = parser.parse_args()
    chosen = {
        name: scenario
        for name, scenario in scenarios(options.cgroup).items()
        if fnmatch.fnmatch(name, options.only)
    }
    known = differences.load(differences.FILE.read_text())
    faulthandler.dump_traceback_later(TOO_LONG, exit=True)
    begun = time.monotonic()
    with Host(root=options.root, cgroup=options.cgroup) as host:
        where = f"{options.root}/{options.cgroup}"
        containerd = ".".join(map(str, host.containerd_version))
        print(f"{where}: systemd {host.systemd_version}, containerd {containerd}")
        verdict = differences.judge(run(host, chosen, tape=options.tape), known, where)
        left = host.leftovers(wait=5)
    for difference, entry in verdict.found:
        print(f"{difference}\n    {f'reason: {entry.reason}' if entry else 'UNEXPLAINED'}")
    unseen = verdict.unseen if options.only == "*" else ()
    for known_one in unseen:
        print(f"listed, but it does not occur any more: {known_one}")
    for line in left:
        print(f"left behind: {line}")
    print(f"{len(chosen)} scenarios in {time.monotonic() - begun:.0f} s")
    print(f"differences: {len(verdict.found)} unexplained: {verdict.unexplained}")
    return 1 if verdict.unexplained or unseen or left else 0


if __name__ == "__main__":
    sys.exit(main())
