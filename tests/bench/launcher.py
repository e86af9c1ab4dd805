"""What containerd's `start` call to the launcher costs on top of /bin/true, measured in the host.

The script below runs in the host with its own Python: posix_spawn from a small process, as cheap as
containerd's own, both programs in turn.
"""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.host import Host

ROUNDS = 200
WARM_UP = 20

_SCRIPT = """\
import json, os, sys, time
rounds, bundle = int(sys.argv[1]), sys.argv[2]
os.makedirs(bundle, exist_ok=True)
os.chdir(bundle)
address = "/run/containerd/containerd.sock"
environ = {"PATH": os.environ["PATH"], "TTRPC_ADDRESS": address + ".ttrpc"}
start = ["/usr/local/bin/containerd-shim-systemd-v1", "-namespace", "default", "-id", "bench",
         "-address", address, "-publish-binary", "/usr/bin/containerd", "start"]
out = os.path.join(bundle, "out")
actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
           (os.POSIX_SPAWN_OPEN, 1, out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
def spawn(argv):
    begun = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    took = (time.perf_counter() - begun) * 1000
    assert status == 0, argv
    return took
found = {"true": [], "start": []}
for _ in range(rounds):
    found["true"].append(spawn(["/bin/true"]))
    found["start"].append(spawn(start))
answer = open(out).read()
assert answer == "unix:///run/sdshim/s/default", answer
for name in os.listdir(bundle):
    os.unlink(name)
os.rmdir(bundle)
print(json.dumps(found))
"""


def measure(host: Host) -> tuple[list[float], list[float]]:
    """(ms of /bin/true, ms of the launcher's `start`), pairs in the order they were run."""
    script = ["/usr/bin/python3", "-I", "-S", "-"]
    arguments = [str(ROUNDS + WARM_UP), "/run/sdshim-bench"]
    said = host.run([*script, *arguments], input=_SCRIPT, timeout=120).stdout
    found = json.loads(said)
    return found["true"][WARM_UP:], found["start"][WARM_UP:]


def on_top(true: list[float], start: list[float]) -> float:
    """The difference of the medians."""
    return median(start) - median(true)
