"""The process that owns one booted host: starts its PID 1, and cleans up after it on any way out.

Run as a program of its own (`python -I -S keeper.py SPEC`, SPEC is JSON, see `Spec`), because it
must outlive the test process by a moment: stdin is a pipe whose other end only that process holds,
so its end (exit, exception, SIGKILL, whatever) is an EOF here, the host is killed and its cgroups
are removed.  Should the keeper itself be killed, the parent-death signal still ends the host, and
the next boot sweeps the empty cgroups.

stdout carries one JSON object per line: `{"pid": …, "cgroup": …}` once systemd has been exec'ed,
`{"ready": true}` when systemd says so, `{"error": …}` when the host could not be made, and
`{"exited": status}` when PID 1 ended by itself.  stderr is the console log of the host.

All mounts are made in the private mount namespace of the child, below one directory that need
only exist: nothing of it is ever visible outside, and nothing has to be unmounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "sdshim-host-"
CLIENTS = "clients"  # the cgroup, inside the host's, of what is run in it from outside
NOTIFY = "/run/host/notify"

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

DEVICES = [
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "fuse",
    "kmsg",
    "net/tun",
    "loop-control",
    "loop0",
    "loop1",
    "loop2",
    "loop3",
    "loop4",
    "loop5",
    "loop6",
    "loop7",
]
DEVICE_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """What to boot; built by host.py, carried as JSON."""

    lower: list[str]  # overlay layers, topmost first
    mountpoint: str  # an existing directory to build the root on, in the private namespace
    cgroup: str  # "v2" or "v1"
    hostname: str
    files: dict[str, str]  # written into the root
    links: dict[str, str]  # symlinks made in the root
    opaque: list[str]  # directories of the root to be seen empty but for the above
    tmpfs: list[str]  # directories that must not be on an overlay
    seeds: dict[str, str]  # directory of the root -> tree outside that is copied there
    binds: dict[str, str]  # path in the root -> directory outside
    keep_units: list[str]  # of what systemd's static targets want, all else is masked
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One cgroup mount of the machine. `controllers` is empty for cgroup2."""

    mount: Path
    controllers: str

    @property
    def folder(self) -> str:
        """Its name below /sys/fs/cgroup on a hybrid host."""
        return self.controllers.removeprefix("name=") or "unified"

    @property
    def options(self) -> str:
        return f"none,{self.controllers}" if "=" in self.controllers else self.controllers


class KeeperError(Exception):
    """The host cannot be made; one line that says why."""


# --- system calls -----------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise KeeperError(f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    result = _libc().mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {kind or 'bind'} on {target}")


def unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


# --- cgroups ----------------------------------------------------------------------------------


def hierarchies() -> list[Hierarchy]:
    """The cgroup mounts this process sees; cgroup2 last."""
    known = [
        "cpuset",
        "cpu",
        "cpuacct",
        "blkio",
        "memory",
        "devices",
        "freezer",
        "net_cls",
        "perf_event",
        "net_prio",
        "hugetlb",
        "pids",
        "rdma",
        "misc",
    ]
    found: dict[str, Hierarchy] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        place = Path(left.split()[4])
        if kind == "cgroup2":
            found.setdefault("", Hierarchy(place, ""))
        elif kind == "cgroup":
            named = [o for o in options.split(",") if o in known or o.startswith("name=")]
            if named:
                found.setdefault(",".join(named), Hierarchy(place, ",".join(named)))
    return sorted(found.values(), key=lambda h: h.controllers == "")


def chosen(flavour: str) -> list[Hierarchy]:
    """The hierarchies a host of this flavour gets a cgroup of its own in."""
    every = hierarchies()
    if not any(h.controllers == "" for h in every):
        raise KeeperError("no cgroup2 is mounted on this machine")
    if flavour == "v2":
        return [h for h in every if h.controllers == ""]
    if not any(h.controllers == "memory" for h in every):
        raise KeeperError("no v1 hierarchy here: the controllers are bound to cgroup v2")
    return every


def has_controllers(flavour: str) -> bool:
    """Whether memory, cpu and pids are there for hosts of this flavour: a machine that binds them
    to v1 has none for its cgroup2."""
    if flavour == "v1":
        return True
    root = next((h.mount for h in hierarchies() if h.controllers == ""), None)
    names = (root / "cgroup.subtree_control").read_text().split() if root else []
    return {"memory", "cpu", "pids"} <= set(names)


def make_cgroups(places: list[Hierarchy], name: str) -> None:
    for place in places:
        (place.mount / name).mkdir()
        if "cpuset" in place.controllers.split(","):
            # A new cpuset is empty and no process can enter it before it has these two.
            for knob in ("cpuset.cpus", "cpuset.mems"):
                (place.mount / name / knob).write_text((place.mount / knob).read_text())
            (place.mount / name / "cgroup.clone_children").write_text("1")


def enter_cgroups(places: list[Hierarchy], name: str) -> None:
    for place in places:
        (place.mount / name / "cgroup.procs").write_text("0")


def remove_tree(top: Path) -> bool:
    """Removes a cgroup and all below it; False while something still lives in there."""
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def remove_cgroups(places: list[Hierarchy], name: str, patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    for place in places:
        while not remove_tree(place.mount / name) and time.monotonic() < deadline:
            time.sleep(0.005)


def sweep() -> list[str]:
    """Removes the cgroups of hosts whose keeper is gone; returns their names."""
    swept: set[str] = set()
    for place in hierarchies():
        for top in place.mount.glob(PREFIX + "*"):
            pid = top.name.removeprefix(PREFIX)
            with contextlib.suppress(OSError):
                if b"keeper.py" in Path("/proc", pid, "cmdline").read_bytes():
                    continue
            if remove_tree(top):
                swept.add(top.name)
    return sorted(swept)


# --- the root of the host, built by the process that becomes its PID 1 --------------------------


def build_root(spec: Spec) -> str:
    """An overlay whose upper half lives on a tmpfs that dies with the namespace."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", spec.mountpoint, "tmpfs", 0, "mode=0755")
    base = Path(spec.mountpoint)
    root = base / "root"
    for name in ("upper", "work", "root"):
        (base / name).mkdir()
    for folder in spec.opaque:
        place = base / "upper" / folder.lstrip("/")
        place.mkdir(parents=True)
        os.setxattr(place, "trusted.overlay.opaque", b"y")
    lower = ":".join(spec.lower)
    halves = f"upperdir={base}/upper,workdir={base}/work"
    mount("overlay", str(root), "overlay", 0, f"lowerdir={lower},{halves}")
    return str(root)


def fill_root(spec: Spec, root: str) -> None:
    """Kernel file systems, and what must be taken from outside before the pivot."""
    plain = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for folder, kind, flags, data in (
        ("proc", "proc", plain, ""),
        ("sys", "sysfs", plain, ""),
        ("run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"),
        ("tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
        ("dev", "tmpfs", MS_NOSUID, "mode=0755"),
    ):
        Path(root, folder).mkdir(exist_ok=True)
        mount(kind, f"{root}/{folder}", kind, flags, data)
    for folder in ("dev/shm", "dev/pts", "dev/net"):
        Path(root, folder).mkdir()
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    options = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    mount("devpts", f"{root}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    for name in DEVICES:
        make_device(f"/dev/{name}", f"{root}/dev/{name}")
    for name, target in DEVICE_LINKS:
        Path(root, "dev", name).symlink_to(target)
    for folder in spec.tmpfs:
        place = Path(root, folder.lstrip("/"))
        place.mkdir(parents=True, exist_ok=True)
        mount("tmpfs", str(place), "tmpfs", 0, "mode=0711")
    for folder, tree in spec.seeds.items():
        subprocess.run(["cp", "-a", f"{tree}/.", root + folder], check=True)
    for folder, tree in spec.binds.items():
        Path(root, folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        mount(tree, root + folder, "", MS_BIND | MS_REC)


def make_device(outer: str, inner: str) -> None:
    try:
        facts = Path(outer).stat()
    except FileNotFoundError:
        return
    if not (stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
        return
    try:
        os.mknod(inner, facts.st_mode, facts.st_rdev)
    except PermissionError:  # a container's device rules may forbid nodes, never binds
        Path(inner).touch()
        mount(outer, inner, "", MS_BIND)


def mount_cgroups(spec: Spec, places: list[Hierarchy], root: str) -> None:
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    top = f"{root}/sys/fs/cgroup"
    if spec.cgroup == "v2":
        mount("cgroup2", top, "cgroup2", flags)
        return
    mount("tmpfs", top, "tmpfs", flags, "mode=0755")
    for place in places:
        folder = f"{top}/{place.folder}"
        Path(folder).mkdir()
        if place.controllers:
            mount("cgroup", folder, "cgroup", flags, place.options)
        else:
            mount("cgroup2", folder, "cgroup2", flags)


def pivot(root: str) -> None:
    """Old and new root on one spot: no folder for the old one is ever needed."""
    os.chdir(root)
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def write_files(spec: Spec) -> None:
    for name, text in spec.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # never write through a symlink of the root
        path.write_text(text)
    links = dict(spec.links)
    for wants in Path("/usr/lib/systemd/system").glob("*.target.wants"):
        for unit in wants.iterdir():
            if unit.name not in spec.keep_units and not unit.name.endswith(".target"):
                links[f"/etc/systemd/system/{unit.name}"] = "/dev/null"
    for name, target in links.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def become_init(
    spec: Spec, places: list[Hierarchy], name: str, notify: socket.socket, keeper: int
) -> None:
    """The child: everything from its first instruction to the exec of systemd."""
    _check(_libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if not Path("/proc", str(keeper)).exists():
        os._exit(1)  # it died before the line above could protect us
    os.umask(0o022)
    enter_cgroups(places, name)
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP)
    root = build_root(spec)
    os.umask(0)
    fill_root(spec, root)
    os.umask(0o022)
    mount_cgroups(spec, places, root)
    pivot(root)
    loopback_up()
    socket.sethostname(spec.hostname)
    write_files(spec)
    Path(NOTIFY).parent.mkdir(parents=True)
    notify.bind(NOTIFY)
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    program = "/lib/systemd/systemd"
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.setsid()
    os.execve(program, [program, "--system"], {**spec.environment, "NOTIFY_SOCKET": NOTIFY})


# --- the keeper itself ------------------------------------------------------------------------


def report(**facts: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(facts).encode() + b"\n")


def start(spec: Spec, places: list[Hierarchy], name: str, notify: socket.socket) -> int:
    """Forks PID 1 and returns once it runs systemd."""
    keeper = os.getpid()
    read, write = os.pipe()  # closed by a successful exec; else carries the reason
    unshare(CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        try:
            become_init(spec, places, name, notify, keeper)
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        failure = pipe.read().decode()
    if failure:
        os.waitpid(pid, 0)
        raise KeeperError(failure.removeprefix("KeeperError: "))
    return pid


def watch(pid: int, notify: socket.socket) -> None:
    """Until the test process or PID 1 ends."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    for source in (0, pidfd, notify.fileno()):
        poll.register(source, select.POLLIN)
    try:
        while True:
            happened = {number for number, _ in poll.poll()}
            if notify.fileno() in happened:
                message = notify.recv(65536)
                if b"READY=1" in message.splitlines():
                    report(ready=True)
            if pidfd in happened:
                status = os.waitpid(pid, 0)[1]
                report(exited=os.waitstatus_to_exitcode(status))
                return
            if 0 in happened and not os.read(0, 4096):
                return
    finally:
        os.close(pidfd)


def end(pid: int) -> None:
    """SIGKILL for PID 1: the kernel then kills and reaps its whole namespace."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def main() -> int:
    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    spec = Spec(**json.loads(sys.argv[1]))
    name = PREFIX + str(os.getpid())
    places: list[Hierarchy] = []
    pid = 0
    try:
        places = chosen(spec.cgroup)
        make_cgroups(places, name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            pid = start(spec, places, name, notify)
            for place in places:
                if place.controllers in ("", "name=systemd"):
                    (place.mount / name / CLIENTS).mkdir(exist_ok=True)
            report(pid=pid, cgroup=name)
            watch(pid, notify)
    except (KeeperError, OSError, subprocess.SubprocessError) as error:
        report(error=str(error))
        return 1
    finally:
        if pid:
            end(pid)
        remove_cgroups(places, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
