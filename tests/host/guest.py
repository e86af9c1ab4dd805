"""What is written into every host, whatever its root: a small target, and quiet neighbours.

The target wants D-Bus, the journal, containerd and sdshim, nothing else: what the machine or the
distribution has enabled would cost seconds, and on `self` it would start the machine's services
a second time.  So /etc/systemd/system is seen empty, generators are too, and of what systemd's
own static targets want only `KEEP_UNITS` is not masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TARGET = "sdshim-test-host.target"
OPAQUE = ("/etc/systemd/system", "/usr/lib/systemd/system-generators", "/etc/containerd")
TMPFS = ("/var/lib/containerd", "/var/lib/docker")
KEEP_UNITS = (
    "dbus.service",
    "dbus.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNITS = "/etc/systemd/system"

# Without the CRI and with one snapshotter containerd starts in half the time.
_UNUSED_V2 = ("io.containerd.grpc.v1.cri",)
_UNUSED_V3 = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
)
_SNAPSHOTTERS = ("aufs", "blockfile", "btrfs", "devmapper", "erofs", "zfs")


def containerd_config(version: tuple[int, ...]) -> str:
    """The config in the format of this containerd: version 3 came with 2.0."""
    form, unused = (3, _UNUSED_V3) if version >= (2,) else (2, _UNUSED_V2)
    names = [*unused, *(f"io.containerd.snapshotter.v1.{name}" for name in _SNAPSHOTTERS)]
    listed = ", ".join(f'"{name}"' for name in names)
    return f"version = {form}\ndisabled_plugins = [{listed}]\n"


def files(
    hostname: str, machine_id: str, containerd: str, daemon_env: Mapping[str, str]
) -> dict[str, str]:
    wanted = """\
[Unit]
Description=Host for tests of sdshim
Requires=basic.target dbus.service
After=basic.target dbus.service
AllowIsolate=yes
"""
    made = {
        "/etc/hostname": hostname + "\n",
        "/etc/hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost\n",
        "/etc/machine-id": machine_id + "\n",
        "/etc/fstab": "",
        "/etc/containerd/config.toml": containerd,
        f"{UNITS}/{TARGET}": wanted,
        # Kernel messages are the machine's, not this host's.
        "/etc/systemd/journald.conf.d/50-test-host.conf": (
            "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n"
        ),
        f"{UNITS}/containerd.service.d/50-test-host.conf": "[Service]\nExecStartPre=\n",
    }
    if daemon_env:
        lines = "".join(f'Environment="{_quote(k)}={_quote(v)}"\n' for k, v in daemon_env.items())
        made[f"{UNITS}/sdshim.service.d/50-test-host-env.conf"] = "[Service]\n" + lines
    return made


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def links(wanted: Sequence[str]) -> dict[str, str]:
    """Symlinks: the default target, and what it wants (a unit that is missing does no harm)."""
    made = {f"{UNITS}/default.target": TARGET, f"{UNITS}/tmp.mount": "/dev/null"}
    for unit in wanted:
        made[f"{UNITS}/{TARGET}.wants/{unit}"] = f"/usr/lib/systemd/system/{unit}"
    return made


def init_environment(cgroup: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of PID 1."""
    made = {"container": "sdshim-test", "PATH": PATH}
    if cgroup == "v1":
        made["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE"] = "1"
        made["SYSTEMD_PROC_CMDLINE"] = (
            "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0"
        )
    return {**made, **extra}
