"""A task → the properties of its transient unit (design 4). Pure.

Each property is (name, D-Bus signature, value) for StartTransientUnit. systemd expands `$` in the
arguments of Exec lines (units 1, names and texts). The `…Ex` form has a flag against that, but
systemd 252 writes such a line into the unit's file under a name that it cannot read back: after a
daemon-reload the unit has lost its exit hook. There the plain form is used, with every `$` doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdshim.core import logs, loguri, names, rootfs, unitproperties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.loguri import Logger
    from sdshim.core.model import Identity

Property = tuple[str, str, Any]

INFINITY = 2**64 - 1
SUP = "sup"
"""Cgroup below the unit's own for the runtime and the exit hook: on v2 a cgroup with controllers
enabled for children cannot hold processes itself (units 5)."""
DELEGATE_SUBGROUP_SINCE = 254
LOGGER_STOP_US = 12_000_000
"""Between SIGTERM and SIGKILL, as in stock (protocol 6.4)."""
EX_LINES_SINCE = 257
"""Seen right on 257 and 262, wrong on 252; between them the plain form is right as well."""
MOUNT_ENVIRONMENT = "LIBMOUNT_FORCE_MOUNT2=always"
"""mount(8) from util-linux 2.39 on cannot take a lowerdir over 255 bytes without it (units 1)."""

SEALED = "SDSHIM_SEALED"
"""Variable of the unit's scripts (launcher/streams.sh): stdin is the runtime's program."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What of the host shapes a unit."""

    systemd: int
    unified: bool
    """cgroup v2 only; False on hybrid v1."""
    launcher: str
    """Folder of the launcher's scripts."""
    mount_program: str = "/bin/mount"
    python: str = "/usr/bin/python3"
    """The interpreter for the launcher's programs in Python: standard library only."""


@dataclass(frozen=True, slots=True)
class InitUnit:
    """All that the init unit of one task is made from."""

    identity: Identity
    state_dir: str
    runtime_argv: tuple[str, ...]
    description: str
    limits: tuple[tuple[str, int], ...] = ()
    """(`LimitNOFILE`…, value): what containers inherit when their spec names no rlimits."""
    environment: tuple[str, ...] = ()
    """What the runtime's environment has beside the unit's own, `NAME=value` each."""
    stop_signal: int = 15
    stop_timeout_us: int = 10_000_000
    start_timeout_us: int = 300_000_000


def tells_when_ready(me: Identity) -> bool:
    """Whether a container's unit is active only when the container has said so."""
    return me.runtime.notify and not me.checkpoint


def init_properties(unit: InitUnit, host: HostFacts) -> list[Property]:
    """Properties of the service that is the container."""
    me = unit.identity
    tells = tells_when_ready(me)
    timeout_us = INFINITY if tells else unit.start_timeout_us
    # The rootfs of what is restored has been mounted at Create.
    mounts = [] if me.checkpoint else rootfs.lines(me, host)
    # The hook puts the count of OOM kills by: the cgroup goes when the hook has ended.
    counters = "memory.events" if host.unified else "memory.oom_control"
    root = "/sys/fs/cgroup" if host.unified else "/sys/fs/cgroup/memory"
    oom = f"{root}{me.cgroup}/{counters}"
    hook = [f"{host.launcher}/exit-hook", unit.state_dir, "-", oom]
    properties: list[Property] = [
        # What is restored was ready before.
        ("Type", "s", "notify" if tells else "forking"),
        # What the container says, and status text about OOM kills: the daemon says it in the main
        # process's name, or the hook.
        ("NotifyAccess", "s", "exec"),
        ("PIDFile", "s", f"{unit.state_dir}/init.pid"),
        ("Delegate", "b", True),
        *([_exec("ExecStartPre", host, *mounts, privileged=True)] if mounts else []),
        _exec("ExecStart", host, _create_argv(unit, host)),
        _exec("ExecStopPost", host, hook, privileged=True),
        ("KillSignal", "i", unit.stop_signal),
        ("TimeoutStopUSec", "t", unit.stop_timeout_us),
        *_common(me, unit.state_dir, unit.description, timeout_us, unit.environment),
        *_limits(unit.limits),
    ]
    if not host.unified:  # on v2 it costs nothing and is the default; delegated, here neither
        properties.append(("CPUAccounting", "b", True))
    if host.unified and host.systemd >= DELEGATE_SUBGROUP_SINCE and me.owns_cgroup:
        properties.append(("DelegateSubgroup", "s", SUP))
    wished = unitproperties.at_start(me.runtime.unit_properties)
    replaced = {name for name, _, _ in wished}
    return [p for p in properties if p[0] not in replaced] + wished


@dataclass(frozen=True, slots=True)
class ExecUnit:
    """All that the unit of one exec is made from."""

    identity: Identity
    state_dir: str
    runtime_argv: tuple[str, ...]
    description: str
    limits: tuple[tuple[str, int], ...] = ()
    """As of the init unit."""
    start_timeout_us: int = 300_000_000


def exec_properties(unit: ExecUnit, host: HostFacts) -> list[Property]:
    """Properties of the service that is an exec: its main process is the subreaper, the process
    itself is in the container's cgroup, where the limits are. No dependency on the init unit: any
    kind would start a dead container again, or stop and start execs with it (design 4)."""
    me = unit.identity
    streams = _streams(me, unit.state_dir)
    argv = [f"{host.launcher}/exec", unit.state_dir, *streams, "--", *unit.runtime_argv]
    hook = [f"{host.launcher}/exit-hook", unit.state_dir, me.cgroup]
    return [
        ("Type", "s", "notify"),
        ("NotifyAccess", "s", "main"),
        # The subreaper passes SIGTERM on to a process that is not there yet, and waits.
        ("TimeoutStartFailureMode", "s", "kill"),
        _exec("ExecStart", host, argv),
        _exec("ExecStopPost", host, hook, privileged=True),
        *_common(me, unit.state_dir, unit.description, unit.start_timeout_us),
        *_limits(unit.limits),
    ]


@dataclass(frozen=True, slots=True)
class SealedProgram:
    """A copy of the OCI runtime's program to run it from (runtime/sealed.py)."""

    fd: int
    link: str
    """What the unit's script executes: it leads to the descriptor, and bears the runtime's name."""


def run_from(program: SealedProgram, properties: Sequence[Property]) -> list[Property]:
    """The same init or exec unit with the runtime run from a copy of its program. systemd holds a
    descriptor that it was passed until the unit is inactive (units 6); all its lines get it."""
    changed: dict[str, Property] = {
        "StandardInput": ("StandardInputFileDescriptor", "h", program.fd),
    }
    for name, signature, value in properties:
        if name == "Environment":
            changed[name] = (name, signature, [*value, f"{SEALED}={program.link}"])
    return [changed.get(one[0], one) for one in properties]


@dataclass(frozen=True, slots=True)
class OneshotUnit:
    """All that a unit beside a container's is made from: it does one thing and ends."""

    identity: Identity
    """The container's, with the name and the token of this unit."""
    folder: str
    """Where its exit record and what it prints go."""
    commands: tuple[tuple[str, ...], ...]
    description: str
    environment: tuple[str, ...] = ()
    timeout_us: int = INFINITY


def mount_commands(me: Identity, host: HostFacts) -> tuple[tuple[str, ...], ...]:
    """The lines that mount a container's rootfs, for a unit of their own."""
    return tuple(tuple(argv) for argv in rootfs.lines(me, host))


def oneshot_properties(unit: OneshotUnit, host: HostFacts) -> list[Property]:
    """Properties of a service that does one thing and leaves how it ended in an exit record."""
    me = unit.identity
    commands = [list(argv) for argv in unit.commands]
    hook = [f"{host.launcher}/exit-hook", unit.folder]
    return [
        ("Type", "s", "oneshot"),
        _exec("ExecStart", host, *commands, privileged=True),
        _exec("ExecStopPost", host, hook, privileged=True),
        *_common(me, unit.folder, unit.description, unit.timeout_us, unit.environment),
    ]


@dataclass(frozen=True, slots=True)
class LoggerUnit:
    """All that the unit of a process's logger is made from."""

    identity: Identity
    """Of the process."""
    state_dir: str
    logger: Logger


def logger_properties(unit: LoggerUnit, host: HostFacts) -> list[Property]:
    """Properties of the service that takes a process's output (protocol 6.3, 6.4).

    SIGTERM to the program alone, 12 s, SIGKILL to what is left: `systemctl stop` is the bounded
    stop. What the program has started counts as the logger, so one that forks and ends goes on. It
    is in the namespace's slice, outside the container's limits, and, while its process lives, may
    be started again by `systemctl`. The one of a file tries again when the disk is full.
    """
    me, logger = unit.identity, unit.logger
    key = names.TaskKey(me.namespace, me.id)
    argv = [f"{host.launcher}/append", unit.state_dir, logger.path]
    if logger.scheme != loguri.FILE:
        words = [unit.state_dir, me.exec_id or me.id, me.namespace, me.bundle]
        argv = [f"{host.launcher}/log", *words, "--", logger.path, *logger.arguments]
    what = f"exec {me.exec_id} in container {key}" if me.exec_id else f"container {key}"
    tokens = [f"SDSHIM_TOKEN={me.token}", f"SDSHIM_TASK={me.task_token or me.token}"]
    again: list[Property] = [("Restart", "s", "on-failure"), ("RestartUSec", "t", 1_000_000)]
    return [
        ("Type", "s", "simple"),
        ("ExitType", "s", "cgroup"),
        _exec("ExecStart", host, argv),
        ("Description", "s", f"Logger of {what}"),
        ("Slice", "s", names.namespace_slice(me.namespace)),
        ("After", "as", ["sdshim.target"]),
        ("Environment", "as", tokens),
        *_plain(me, f"{unit.state_dir}/log.stderr"),
        ("TimeoutStopUSec", "t", LOGGER_STOP_US),
        ("CollectMode", "s", "inactive-or-failed"),
        *(again if logger.scheme == loguri.FILE else []),
    ]


def pump_properties(socket: str, idle_s: int, host: HostFacts) -> list[Property]:
    """Properties of the service that carries containers' output to the journal.

    A unit of its own, because journald goes by who sends: from the daemon's cgroup every line would
    be sdshim.service's too. An interval of 0 would not switch journald's rate limit off but leave
    the default (seen on 252 and 257: 35000 of 90000 lines); this does. Without default dependencies
    it can also be started while the machine goes down: containers have their last words then.
    """
    return [
        ("Type", "s", "exec"),
        _exec("ExecStart", host, [host.python, "-I", "-S", f"{host.launcher}/pump.py", socket]),
        ("Environment", "as", [f"SDSHIM_IDLE={idle_s}"]),
        ("Description", "s", "Output of containers on its way to the journal"),
        ("DefaultDependencies", "b", False),
        ("LogRateLimitIntervalUSec", "t", 1),
        ("LogRateLimitBurst", "u", 2**32 - 1),
        ("LimitNOFILE", "t", 16384),
        ("SyslogIdentifier", "s", "sdshim.pump"),
        ("CollectMode", "s", "inactive-or-failed"),
    ]


def _common(
    me: Identity,
    state_dir: str,
    description: str,
    timeout_us: int,
    environment: tuple[str, ...] = (),
) -> list[Property]:
    """What the units of processes and those beside them share."""
    after = ["sdshim.target"]
    if loguri.parse(me.stdio.stdout):  # at shutdown the logger hears it to the end
        after.append(names.logger_unit(names.TaskKey(me.namespace, me.id), me.exec_id))
    return [
        ("Description", "s", description),
        ("Slice", "s", me.slice),
        ("After", "as", after),
        ("Environment", "as", [*_environment(me), *environment]),
        *_plain(me, f"{state_dir}/stderr"),
        ("TimeoutStartUSec", "t", timeout_us),
        # What has ended is never run again, whoever asks (design 4, Asserts).
        ("Asserts", "a(sbbs)", [("AssertPathExists", False, True, f"{state_dir}/exit")]),
        ("CollectMode", "s", "inactive"),
    ]


def _plain(me: Identity, stderr: str) -> list[Property]:
    """What all units have alike."""
    return [
        ("StandardInput", "s", "null"),
        ("StandardOutputFileToAppend", "s", stderr),
        ("StandardErrorFileToAppend", "s", stderr),
        ("KillMode", "s", "mixed"),
        ("OOMPolicy", "s", "continue"),
        ("TasksMax", "t", INFINITY),
        ("IgnoreSIGPIPE", "b", False),
        ("AddRef", "b", True),
        ("SyslogIdentifier", "s", logs.name(me)),
        ("LogExtraFields", "aay", _log_fields(me)),
    ]


def _limits(limits: tuple[tuple[str, int], ...]) -> list[Property]:
    return [(name, "t", value) for name, value in limits]


def _streams(me: Identity, state_dir: str) -> list[str]:
    """The launcher's words for 0 to 2. A process with a terminal gets them from the pty: there the
    runtime keeps the unit's, for what it has to say itself."""
    if me.stdio.terminal:
        return ["="] * 3
    stdio = logs.process_side(me.stdio, state_dir, me.log.mode)
    return [path or "-" for path in (stdio.stdin, stdio.stdout, stdio.stderr)]


def _environment(me: Identity) -> list[str]:
    return [f"SDSHIM_TOKEN={me.token}", *([MOUNT_ENVIRONMENT] if me.rootfs else [])]


def _log_fields(me: Identity) -> list[bytes]:
    return [f"{name}={value}".encode() for name, value in logs.fields(me).items()]


def _exec(name: str, host: HostFacts, *commands: list[str], privileged: bool = False) -> Property:
    """Exec lines whose arguments arrive as they are. `privileged` (where the form can say it): what
    a drop-in takes from the unit's processes, as User= does, it does not take from these. (Not so a
    mount namespace: seen on 257 and 262, such a line is given one too, of its own. So each line
    sees to it itself that it is in the host's: mount(8)'s -N, launcher/hostmounts.sh.)"""
    if host.systemd >= EX_LINES_SINCE:
        flags = ["no-env-expand", *(["privileged"] if privileged else [])]
        return f"{name}Ex", "a(sasas)", [(argv[0], argv, flags) for argv in commands]
    plain = [[argument.replace("$", "$$") for argument in argv] for argv in commands]
    return name, "a(sasb)", [(argv[0], argv, False) for argv in plain]


def _create_argv(unit: InitUnit, host: HostFacts) -> list[str]:
    me = unit.identity
    sup = "-"
    if host.unified and host.systemd < DELEGATE_SUBGROUP_SINCE and me.owns_cgroup:
        sup = f"/sys/fs/cgroup{me.cgroup.rpartition('/')[0]}/{SUP}"
    argv = [unit.state_dir, sup, *_streams(me, unit.state_dir), "--", *unit.runtime_argv]
    return [f"{host.launcher}/create", *argv]
