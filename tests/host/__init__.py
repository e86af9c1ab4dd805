"""A throwaway host for tests: a real systemd as PID 1 of fresh namespaces, in under a second.

In tests:

    from tests.host import BUSYBOX, Host

    with Host(root="trixie", cgroup="v1") as host:
        host.run(["ctr", "run", "--rm", BUSYBOX, "c1", "echo", "hi"]).stdout   # raises on failure
        host.path("/run/sdshim")            # the same file from outside
        assert host.leftovers(wait=2) == []  # one line for each thing containers left behind

By hand (root): `python -m tests.host --help`; a shell in a host, or one command and its status.

Roots      self    the machine's own, below an overlay; cgroup v2 or v1 (hybrid)
           trixie  Debian 13, made with debootstrap once and cached; v2 or v1
           forky   Debian testing, the same; v2 only, its systemd has no v1
           mixed   trixie with testing's containerd and runc; v2 or v1
Content    systemd, D-Bus, the journal, containerd without the CRI, runc, crun, criu where Debian
           has it; sdshim as it is in the working tree, through packaging/install.sh; the images
           of images.py in the containerd namespace `default` (`import_images()` for others).
v2 limits  On a machine whose controllers are bound to v1, cgroup v2 has none: `ctr run` then needs
           `--cpu-shares 0`, and limits are tested on the v1 hosts.
Cache      $SDSHIM_CACHE, else /var/cache/sdshim; see cache.py.

How it works, and why nothing stays behind: `Host` starts one keeper process (keeper.py) and holds
a pipe to it.  The keeper makes the host's cgroups, forks PID 1 into new namespaces, and when the
pipe ends for any reason kills it and removes the cgroups.  Mounts exist only in the host's own
mount namespace, the root's upper half is a tmpfs in there, the console log is a file without a
name.  Cgroups of a keeper that was killed itself are swept by the next boot.

Who does what: host.py the context manager; keeper.py the boot; guest.py what is written into every
host; roots.py, packages.py, images.py, install.py what is made beforehand; leftovers.py the check.
"""

from __future__ import annotations

from .errors import CannotBoot, HostError
from .host import Host
from .images import BUSYBOX, LAYERS, PAUSE

__all__ = ["BUSYBOX", "LAYERS", "PAUSE", "CannotBoot", "Host", "HostError"]
