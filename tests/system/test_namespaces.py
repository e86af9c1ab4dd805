"""Namespaces of a container: its own, mapped, shared or another's; and what a spec says of its
rootfs' propagation, its file systems, seccomp and the runtime's switches."""

from __future__ import annotations

import json
import os
import pty
import select
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import PROCESS_URL
from tests.system.taskclient import HOME, ROOTFS, Bundle, Rig, eventually, no_daemon, spec_of
from tests.system.test_options import wish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.client import Ctr

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SIGKILL = 9
MAPPED = 100000
MAP = f"0:{MAPPED}:65536"
USERNS = ["--uidmap", MAP, "--gidmap", MAP]
PEER = f"{HOME}/peer"
ALL_SPACES = ("pid", "ipc", "uts", "mount", "network")
CAPABILITIES = ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_SETUID"]


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest) -> str:
    """Each OCI runtime that the hosts have."""
    return str(request.param)


def spaced(
    *command: str, without: str = "", paths: dict[str, str] | None = None, **linux: Any
) -> dict[str, Any]:
    """A spec without a namespace, or with paths for some."""
    spec = spec_of(*command)
    places = {name: {"path": path} for name, path in (paths or {}).items()}
    kept = [name for name in ALL_SPACES if name != without]
    spec["linux"]["namespaces"] = [{"type": name, **places.get(name, {})} for name in kept]
    spec["linux"].update(linux)
    capable = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    spec["process"]["capabilities"] = capable
    return spec


def mapped(*command: str) -> dict[str, Any]:
    """A spec with a user namespace; its root is the bundle's own rootfs."""
    spec = spaced(*command)
    spec["linux"]["namespaces"].append({"type": "user"})
    one = {"containerID": 0, "hostID": MAPPED, "size": 65536}
    spec["linux"].update(uidMappings=[one], gidMappings=[one])
    spec["root"] = {"path": "rootfs", "readonly": False}
    return spec


def make(
    rig: Rig, id_: str, spec: dict[str, Any], *, fields: dict[str, Any] | None = None
) -> Bundle:
    """A task that waits for Start, its stdout a FIFO."""
    bundle = rig.bundle(id_, spec=spec)
    stdout = bundle.fifo("stdout")
    rig.call("Create", id=id_, bundle=bundle.path, stdout=stdout, **(fields or {}))
    return bundle


def output(rig: Rig, id_: str, spec: dict[str, Any], **options: Any) -> str:
    """What a container printed in its life."""
    fields = {"options": wish(runc_pb2.Options(**options))} if options else {}
    bundle = make(rig, id_, spec, fields=fields)
    rig.call("Start", id=id_)
    printed = bundle.read("stdout").decode()
    rig.call("Wait", id=id_)
    rig.call("Delete", id=id_)
    return printed


def begin_exec(rig: Rig, id_: str, exec_id: str, *command: str) -> int:
    """Start an exec; its pid."""
    process = {"args": list(command), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0}}
    capable = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    spec = {"type_url": PROCESS_URL, "value": json.dumps({**process, "capabilities": capable})}
    spec["value"] = spec["value"].encode()  # type: ignore[assignment]
    rig.call("Exec", id=id_, exec_id=exec_id, spec=spec)
    return int(rig.call("Start", id=id_, exec_id=exec_id).pid)


def space(host: Host, pid: int, kind: str) -> str:
    return str(host.path(f"/proc/{pid}/ns/{kind}").readlink())


def alive(host: Host, pid: int) -> bool:
    try:
        return " Z " not in host.path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# --- user namespaces


@pytest.mark.parametrize("remap", [[], ["--remap-labels"]], ids=["chowned", "labels"])
def test_ctr_run_in_a_user_namespace(ctr: Ctr, host: Host, remap: list[str]) -> None:
    """With labels the snapshotter may map (containerd 2.x), chown, or do nothing (1.6)."""
    if remap and host.root.name == "self":
        remap = []
    script = "cat /proc/self/uid_map; stat -c %u /bin; touch /w && echo wrote; echo x >/dev/stdout"
    done = ctr.run("mapped", "sh", "-c", script, options=["--rm", *USERNS, *remap])
    assert (done.returncode, done.stderr) == (0, "")
    numbers, *rest = done.stdout.splitlines()
    assert numbers.split() == ["0", str(MAPPED), "65536"]
    assert rest == ["0", "wrote", "x"]


def test_a_snapshotter_that_maps_its_layers_gets_them_mapped(ctr: Ctr, host: Host) -> None:
    """containerd 2.x asks for an id-mapped overlay; older ones chown a copy, or do nothing."""
    ctr.run("layers", "sleep", "1000", options=["-d", "--remap-labels", *USERNS], check=True)
    folder = "/run/containerd/io.containerd.runtime.v2.task/default/layers/rootfs"
    table = host.path("/proc/1/mountinfo").read_text().splitlines()
    (found,) = [line for line in table if folder in line]
    owner = host.run(["stat", "-c", "%u", f"{folder}/bin"]).stdout.strip()
    ctr.remove("layers")
    assert " - overlay overlay " in found
    asked = host.root.name == "forky"
    assert ("lowerdir=0" in found) == asked
    assert owner == ("0" if host.root.name == "self" else str(MAPPED))


def test_the_bundle_of_a_user_namespace_is_its_groups_to_pass(ctr: Ctr, host: Host) -> None:
    ctr.run("bundle", "sleep", "1000", options=["-d", *USERNS], check=True)
    folder = host.path("/run/containerd/io.containerd.runtime.v2.task/default/bundle")
    facts = folder.stat()
    assert (facts.st_mode & 0o777, facts.st_gid) == (0o710, MAPPED)
    for name in ("config.json", "sdshim.token", "address"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    ctr.remove("bundle")


def test_a_user_namespace_with_execs_and_a_terminal(ctr: Ctr, host: Host) -> None:
    ctr.run("box", "sleep", "1000", options=["-d", *USERNS], check=True)
    script = "id -u; echo again >/dev/stdout"
    told = ctr.call("task", "exec", "--exec-id", "e1", "box", "sh", "-c", script).stdout
    pid = int(ctr.call("task", "ls").stdout.splitlines()[1].split()[1])
    owner = host.path(f"/proc/{pid}").stat().st_uid
    argv = ctr.argv(
        "task", "exec", "-t", "--exec-id", "e2", "box", "sh", "-c", "tty; stat -c %u $(tty)"
    )
    terminal = on_terminal(host, argv)
    ctr.remove("box")
    assert (told, owner) == ("0\nagain\n", MAPPED)
    assert terminal.split() == ["/dev/pts/0", "0"]


def on_terminal(host: Host, argv: list[str]) -> str:
    """What a client's process printed on a terminal. ctr itself tells there when the process has
    ended before ctr had set the terminal's size."""
    ours, theirs = pty.openpty()
    process = host.popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    data = b""
    try:
        while select.select([ours], [], [], 20)[0]:
            part = os.read(ours, 4096)
            if not part:
                break
            data += part
    except OSError:  # EIO: nobody has the terminal any more
        pass
    os.close(ours)
    assert process.wait(20) == 0, data
    return " ".join(line for line in data.decode().splitlines() if "resize pty" not in line)


def test_a_user_namespace_of_a_spec_with_a_mapped_rootfs(
    rig: Rig, host: Host, runtime: str
) -> None:
    maps = [f"uidmap={MAP}", f"gidmap={MAP}"]
    bundle = rig.bundle(
        "spec", spec=mapped("sh", "-c", "id -u; stat -c %u /bin; echo x >/dev/stdout")
    )
    bundle.outside.chmod(0o711)
    stdout = bundle.fifo("stdout")
    options = runc_pb2.Options(binary_name=runtime, io_uid=MAPPED, io_gid=MAPPED)
    rootfs = [{"type": "bind", "source": ROOTFS, "options": ["rbind", *maps]}]
    for folder in (HOME, f"{HOME}/b", f"{HOME}/b/default"):
        host.path(folder).chmod(0o755)
    rig.call(
        "Create", id="spec", bundle=bundle.path, stdout=stdout, rootfs=rootfs, options=wish(options)
    )
    rig.call("Start", id="spec")
    assert bundle.read("stdout") == b"0\n0\nx\n"
    assert rig.call("Wait", id="spec").exit_status == 0
    rig.call("Delete", id="spec")


def test_a_terminal_for_the_init_of_a_user_namespace(ctr: Ctr, host: Host) -> None:
    argv = ctr.run_argv(
        "term", "sh", "-c", "stat -c %u $(tty); exit 0", options=["--rm", "-t", *USERNS]
    )
    assert on_terminal(host, argv).split() == ["0"]


# --- pid namespaces


@pytest.mark.parametrize("foreign", [False, True], ids=["in its unit", "in a foreign cgroup"])
def test_an_init_without_a_pid_namespace_takes_its_processes_and_execs_along(
    rig: Rig, host: Host, foreign: bool
) -> None:
    script = "sleep 1000 & echo $!; sleep 1000 & echo $!; read x; exit 5"
    spec = spaced("sh", "-c", script, without="pid")
    if foreign:
        spec["linux"]["cgroupsPath"] = "/elsewhere/shared"
    bundle = rig.bundle("shared", spec=spec)
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id="shared", bundle=bundle.path, **streams)
    rig.call("Start", id="shared")
    left = [int(bundle.read_line("stdout")) for _ in range(2)]
    execs = {name: begin_exec(rig, "shared", name, "sleep", "1000") for name in ("e1", "e2")}
    assert all(alive(host, pid) for pid in (*left, *execs.values()))
    waits = [rig.begin("Wait", id="shared", exec_id=name) for name in execs]
    (bundle.outside / "stdin").write_text("\n")
    assert rig.call("Wait", id="shared").exit_status == 5
    assert [wait.result(10).exit_status for wait in waits] == [137, 137]
    eventually(lambda: len(exits(rig, "shared")) == 3, "three exits")
    ids = exits(rig, "shared")
    assert (sorted(ids[:2]), ids[2]) == (["e1", "e2"], "shared")
    eventually(lambda: not any(alive(host, pid) for pid in left), "the processes are gone")
    rig.call("Delete", id="shared")
    if foreign:
        remove_foreign(host)


def remove_foreign(host: Host) -> None:
    """Cgroups that nobody removes: the OCI runtime makes the parents of its own."""
    find = "find /sys/fs/cgroup -depth -path '*/elsewhere*' -type d"
    host.run(["sh", "-c", f"rmdir $({find})"])


def exits(rig: Rig, task: str) -> list[str]:
    """Whose exits were published, in order."""
    seen = [e for e in rig.events.seen if e.topic == "/tasks/exit"]
    return [e.body.id for e in seen if e.body.container_id == task]


def test_a_container_in_another_ones_pid_namespace(rig: Rig, host: Host, runtime: str) -> None:
    rig.running("pod", spec=spaced("sh", "-c", "sleep 1000 & wait"))
    pid = rig.call("State", id="pod").pid
    script = "test -d /proc/1 && sleep 1000 & echo up; exit 4"
    spec = spaced("sh", "-c", script, paths={"pid": f"/proc/{pid}/ns/pid"})
    options = wish(runc_pb2.Options(binary_name=runtime))
    bundle = make(rig, "member", spec, fields={"options": options})
    member = rig.call("State", id="member").pid
    assert space(host, member, "pid") == space(host, pid, "pid")
    rig.call("Start", id="member")
    assert bundle.read_line("stdout") == b"up\n"
    assert rig.call("Wait", id="member").exit_status == 4
    # What it left in the shared namespace has ended with it, the other's processes have not.
    assert bundle.read("stdout") == b""
    rig.call("Delete", id="member")
    assert len(rig.call("Pids", id="pod").processes) == 2


def test_the_end_of_a_pid_namespace_ends_its_members(rig: Rig) -> None:
    rig.running("pod")
    pid = rig.call("State", id="pod").pid
    spec = spaced("sleep", "1000", paths={"pid": f"/proc/{pid}/ns/pid"})
    rig.running("member", spec=spec)
    rig.call("Kill", id="pod", signal=SIGKILL)
    assert rig.call("Wait", id="pod").exit_status == 137
    assert rig.call("Wait", id="member").exit_status == 137
    for id_ in ("member", "pod"):
        rig.call("Delete", id=id_)


def test_a_daemon_that_was_away_ends_what_a_shared_init_left(rig: Rig, host: Host) -> None:
    spec = spaced("sh", "-c", "sleep 1000 & echo $!; read x", without="pid")
    spec["linux"]["cgroupsPath"] = "/elsewhere/away"
    bundle = rig.bundle("away", spec=spec)
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id="away", bundle=bundle.path, **streams)
    init = rig.call("Start", id="away").pid
    left = int(bundle.read_line("stdout"))
    rig.call("Connect", id="away")
    host.run(["systemctl", "kill", "-s", "STOP", "sdshim.service"])
    host.run(["kill", "-9", str(init)])
    host.run(["systemctl", "kill", "-s", "KILL", "sdshim.service"])
    assert rig.call("Wait", id="away").exit_status == 137
    eventually(lambda: not alive(host, left), "the process is gone")
    rig.call("Delete", id="away")
    remove_foreign(host)


@pytest.mark.parametrize("place", ["", "/elsewhere/alone"], ids=["in its unit", "foreign cgroup"])
def test_the_launchers_delete_ends_every_process_of_a_shared_pid_namespace(
    rig: Rig, host: Host, runtime: str, place: str
) -> None:
    spec = spaced("sh", "-c", "sleep 1000 & echo $!; wait", without="pid", cgroupsPath=place)
    bundle = rig.bundle("alone", spec=spec)
    options = wish(runc_pb2.Options(binary_name=runtime))
    stdout = bundle.fifo("stdout")
    rig.call("Create", id="alone", bundle=bundle.path, options=options, stdout=stdout)
    rig.call("Start", id="alone")
    left = int(bundle.read_line("stdout"))
    with no_daemon(host):
        assert rig.give_up(bundle).exit_status == 137
        eventually(lambda: not alive(host, left), "the process is gone")
    if place:
        remove_foreign(host)


# --- network and ipc


@pytest.mark.parametrize("kind", ["network", "ipc", "uts"])
def test_a_container_joins_another_ones_namespace(
    rig: Rig, host: Host, runtime: str, kind: str
) -> None:
    rig.running("pod")
    pid = rig.call("State", id="pod").pid
    name = {"network": "net"}.get(kind, kind)
    spec = spaced("sleep", "1000", paths={kind: f"/proc/{pid}/ns/{name}"})
    make(rig, "member", spec, fields={"options": wish(runc_pb2.Options(binary_name=runtime))})
    member = rig.call("Start", id="member").pid
    joined = {
        one: space(host, member, one) == space(host, pid, one)
        for one in ("net", "ipc", "uts", "pid", "mnt")
    }
    assert joined == {one: one == name for one in joined}
    # The namespace is its members': it outlives the one that made it.
    rig.call("Kill", id="pod", signal=SIGKILL)
    rig.call("Wait", id="pod")
    rig.call("Delete", id="pod")
    execed = begin_exec(rig, "member", "e", "sleep", "1000")
    assert space(host, execed, name) == space(host, member, name)
    rig.call("Kill", id="member", signal=SIGKILL)
    rig.call("Wait", id="member")


def test_the_hosts_network_and_ipc(rig: Rig, host: Host) -> None:
    for kind, name in (("network", "net"), ("ipc", "ipc")):
        make(rig, f"host-{name}", spaced("sleep", "1000", without=kind))
        pid = rig.call("Start", id=f"host-{name}").pid
        assert space(host, pid, name) == space(host, 1, name)


# --- propagation


@pytest.fixture
def peer(host: Host) -> Iterator[str]:
    """A shared mount of the host, empty."""
    host.run(
        ["sh", "-ec", f"mkdir -p {PEER}; mount -t tmpfs tmpfs {PEER}; mount --make-shared {PEER}"]
    )
    yield PEER
    host.run(["umount", "--recursive", PEER])


def mounted(host: Host, below: str) -> list[str]:
    lines = host.path("/proc/1/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{below}/")]


MOUNT = "mkdir -p /peer/m && mount -t tmpfs tmpfs /peer/m && echo mounted; read x"


@pytest.mark.parametrize(
    ("rootfs", "bind", "seen"),
    [
        ("shared", "rshared", True),
        ("rshared", "rshared", True),
        ("shared", "shared", True),
        ("rshared", "rslave", False),
        ("", "rprivate", False),
    ],
)
def test_a_mount_made_in_the_container_is_seen_on_the_host_where_both_share(
    rig: Rig, host: Host, peer: str, runtime: str, rootfs: str, bind: str, seen: bool
) -> None:
    linux: dict[str, Any] = {"rootfsPropagation": rootfs} if rootfs else {}
    spec = spaced("sh", "-c", MOUNT, **linux)
    spec["root"] = {"path": "rootfs", "readonly": False}
    volume = {"destination": "/peer", "type": "bind", "source": peer, "options": ["rbind", bind]}
    spec["mounts"].append(volume)
    bundle = rig.bundle("volume", spec=spec)
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    upper = f"{HOME}/up-{bundle.id}"
    host.run(["mkdir", "-p", f"{upper}/u/peer", f"{upper}/w"])
    words = [f"lowerdir={ROOTFS}", f"upperdir={upper}/u", f"workdir={upper}/w"]
    fields: dict[str, Any] = {
        "rootfs": [{"type": "overlay", "source": "overlay", "options": words}],
        "options": wish(runc_pb2.Options(binary_name=runtime)),
    }
    rig.call("Create", id="volume", bundle=bundle.path, **streams, **fields)
    rig.call("Start", id="volume")
    assert bundle.read_line("stdout") == b"mounted\n"
    assert mounted(host, peer) == ([f"{peer}/m"] if seen else [])
    host.run(["mkdir", f"{peer}/h"])
    host.run(["mount", "-t", "tmpfs", "tmpfs", f"{peer}/h"])
    pid = rig.call("State", id="volume").pid
    table = host.path(f"/proc/{pid}/mountinfo").read_text()
    assert (" /peer/h " in table) == (bind != "rprivate")
    rig.call("Kill", id="volume", signal=SIGKILL)
    rig.call("Wait", id="volume")
    rig.call("Delete", id="volume")
    # What was made in a volume is the volume's; of the rootfs nothing is left.
    assert mounted(host, peer) == ([f"{peer}/m"] if seen else []) + [f"{peer}/h"]
    assert mounted(host, bundle.path) == []
    host.run(["rm", "-r", "--one-file-system", upper])


# --- the rest of the line: what the spec and the options ask of the runtime


def test_a_read_only_rootfs(rig: Rig, runtime: str) -> None:
    spec = spaced("sh", "-c", "touch /x 2>&1 || echo no")
    spec["root"] = {"path": ROOTFS, "readonly": True}
    assert "Read-only file system\nno\n" in output(rig, "ro", spec, binary_name=runtime)


def test_a_seccomp_profile(rig: Rig, runtime: str) -> None:
    denied = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}
    spec = spaced("sh", "-c", "mkdir /dev/x 2>&1; grep Seccomp: /proc/self/status", seccomp=profile)
    printed = output(rig, "filtered", spec, binary_name=runtime)
    assert "supported" in printed  # EOPNOTSUPP, in musl's or glibc's words
    assert printed.split()[-2:] == ["Seccomp:", "2"]


def test_no_new_keyring_keeps_the_runtimes_session(rig: Rig, runtime: str) -> None:
    """A keyring of the container's own is called after it (`_ses.<id>`)."""
    spec = spaced("cat", "/proc/keys")
    with_one = output(rig, "keys", spec, binary_name=runtime)
    without = output(rig, "nokeys", spec, binary_name=runtime, no_new_keyring=True)
    assert ("keys" in with_one) and ("nokeys" not in without)


def test_no_pivot_root(rig: Rig, host: Host, runtime: str) -> None:
    options = runc_pb2.Options(binary_name=runtime, no_pivot_root=True)
    bundle = make(rig, "moved", spaced("echo", "here"), fields={"options": wish(options)})
    line = host.run(["systemctl", "show", "-P", "ExecStart", "sdshim-default-moved.service"]).stdout
    assert " --no-pivot " in line
    rig.call("Start", id="moved")
    assert bundle.read("stdout") == b"here\n"
    rig.call("Wait", id="moved")


@pytest.mark.parametrize("extra", [[], ["--read-only"], ["--no-pivot"], ["--net-host"]])
def test_what_ctr_can_ask_for(ctr: Ctr, host: Host, extra: list[str]) -> None:
    done = ctr.run("asked", "sh", "-c", "touch /x 2>/dev/null; echo $?", options=["--rm", *extra])
    assert done.stdout == ("1\n" if "--read-only" in extra else "0\n"), done.stderr
