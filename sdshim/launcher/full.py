"""What the sh launcher does not do itself: first use of a namespace, clean-up, -info, every error.

Run as ``python3 -I -S full.py ARGUMENTS`` from containerd; standard library only. This file stays
small because a script is compiled at each run, the modules beside it only once.
"""

import os
import sys
import time

BEGIN = time.monotonic()


def main() -> int:
    """Do what the arguments ask; the exit status is the process's."""
    room = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(os.path.dirname(room)))

    from sdshim.launcher import actions

    return actions.run(sys.argv[1:], BEGIN)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # nothing is left to tear down, and tearing down costs milliseconds
