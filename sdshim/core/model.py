"""Values that travel between rooms: frozen, plain, and free of any library's types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_UNKNOWN = 255
"""containerd's own constant for an exit nobody can know (protocol 7.3)."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How and when a process ended. `status` is 0–255, 128+signal for a killed one."""

    status: int
    time_ns: int
    """Wall clock, nanoseconds since the epoch."""
    reason: str = ""
    """systemd's Result (``success``, ``exit-code``, ``signal``, ``oom-kill`` …), for people."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One rootfs mount of a CreateTaskRequest (containerd.types.Mount)."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stdio:
    """The client's stream paths; an empty string means the stream was not asked for."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """Where a process's output goes (core/logs.py)."""

    mode: str = "stdio"
    """`stdio`, `journal`, `both` or `null`."""
    wish: str = ""
    """What the container or the configuration asks for; empty: it depends on the streams."""
    namespace: str = ""
    """Of the journal; empty for the machine's own."""
    stdout_priority: int = 6
    stderr_priority: int = 3
    fields: tuple[tuple[str, str], ...] = ()
    """Journal fields of the container beside its id."""

    @property
    def piped(self) -> bool:
        """Whether the output passes through the pump (daemon/output.py)."""
        return self.mode in ("journal", "both")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What the options of a task say (core/options.py), kept for the task's whole life."""

    binary: str = "runc"
    root: str = "/run/containerd/runc"
    """State root; containerd's namespace is appended."""
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    io_uid: int = 0
    io_gid: int = 0
    """Owner of the container's FIFOs; 0 and 0 leave them as the client made them."""
    criu_path: str = ""
    criu_image_path: str = ""
    criu_work_path: str = ""
    log: str = ""
    log_namespace: str = ""
    log_stdout_priority: str = ""
    log_stderr_priority: str = ""
    unit_properties: Mapping[str, str] = field(default_factory=dict)
    """Further properties of the init unit as written in a unit file, checked (unitproperties)."""
    notify: bool = False
    """The container says itself when it is ready (core/notify.py)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One containerd event on its way: unique by `seq`, which only grows on a node."""

    seq: int
    topic: str
    type: str
    """Message name, the Any's type_url (no prefix: protocol 4.1)."""
    payload: bytes
    time_ns: int
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class RecordedReply:
    """A reply that stands on disk with the state it belongs to, until it has been sent."""

    code: int
    message: str
    payload: bytes


CallId = tuple[int, int]
"""(connection serial, stream id): names one call on this node for good."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a task was created as; never changes."""

    namespace: str
    id: str
    token: str
    bundle: str
    unit: str
    slice: str
    cgroup: str
    """The container's own cgroup path, from the hierarchy's root."""
    owns_cgroup: bool
    """False when the spec named somebody else's cgroup (kubelet's cgroupfs driver)."""
    containerd: str
    """ttrpc address of the containerd that wants the events."""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    stdio: Stdio = field(default_factory=Stdio)
    log: Log = field(default_factory=Log)
    rootfs: tuple[Mount, ...] = ()
    create_call: CallId = (0, 0)
    traceparent: str = ""
    exec_id: str = ""
    """Of an exec; empty for the init process."""
    task_token: str = ""
    """Of an exec: the token of the task it runs in."""
    checkpoint: str = ""
    """Folder of the images that the container is restored from at its Start; empty for one that is
    made anew."""
    private_pids: bool = True
    """False when the container shares a pid namespace: its processes outlive its init."""
