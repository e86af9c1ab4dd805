"""A machine in software: the only place here where cgroup v2 has its controllers.

`python -m tests.emulated [-- pytest arguments]` boots Debian 13's user space under qemu's emulation
and runs system tests in it, on a host (tests/host) of root `self`, cgroup v2. It is slow (a hundred
times the time of a booted host) and not part of CI; docs/cgroup-v2.md has the last result.
"""
