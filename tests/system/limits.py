"""What a container's or unit's cgroup is limited to, read from its files in either flavour."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host import Host

MIB = 1 << 20
V1 = {
    "memory": "memory/{}/memory.limit_in_bytes",
    "pids": "pids/{}/pids.max",
    "cpu quota": "cpu/{}/cpu.cfs_quota_us",
}
V2 = {"memory": "{}/memory.max", "pids": "{}/pids.max", "cpu quota": "{}/cpu.max"}
NONE = {"-1", "max", str(2**63 - 4096)}
"""How files say that there is no limit."""


def folder(host: Host, id_: str, controller: str = "", of: str = "container") -> Path:
    """The cgroup of a container, or of its unit (`of`)."""
    root = f"/sys/fs/cgroup/{controller}" if host.cgroup == "v1" else "/sys/fs/cgroup"
    below = f"sdshim.slice/sdshim-default.slice/sdshim-default-{id_}.service"
    return host.path(f"{root}/{below}" + ("" if of == "unit" else f"/{of}"))


def bound(host: Host, id_: str, what: str, of: str = "container") -> int | None:
    """The limit of `what`: memory in bytes, pids, cpu quota in µs a period; None without one."""
    template = (V1 if host.cgroup == "v1" else V2)[what]
    controller, _, name = template.partition("{}/")
    path = folder(host, id_, controller.rstrip("/"), of) / name
    word = path.read_text().split()[0]
    return None if word in NONE else int(word)


def cpu_weight(host: Host, id_: str, of: str = "container") -> str:
    """cpu.shares on v1, cpu.weight on v2."""
    controller, name = ("cpu", "cpu.shares") if host.cgroup == "v1" else ("", "cpu.weight")
    return (folder(host, id_, controller, of) / name).read_text().strip()
