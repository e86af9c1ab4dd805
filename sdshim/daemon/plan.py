"""A CreateTaskRequest → what will be made, with every fault found before anything is touched."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdshim.core import annotation, logs, names, rootfs, systemdmode
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import Identity, Mount, Stdio
from sdshim.daemon import images, options, output, streams
from sdshim.runtime import bundle

if TYPE_CHECKING:
    from sdshim.core.config import Config
    from sdshim.pb import task_v2_pb2 as pb
    from sdshim.ttrpc.server import Call


@dataclass(frozen=True, slots=True)
class Plan:
    """What Create will make."""

    identity: Identity
    spec: dict[str, Any]
    """As the OCI runtime gets it, but for the cgroup."""
    description: str
    systemd: bool = False
    """The first process is one (core/systemdmode.py)."""


def make(
    request: pb.CreateTaskRequest, call: Call, config: Config, containerd: str, *, unified: bool
) -> Plan:
    """Check the request and its bundle. The call's token, which stands in the call log with the
    request, is the incarnation's. `unified`: the host has cgroup v2 only. Raises InvalidArgument
    or NotFound."""
    key = names.TaskKey(
        names.check_id(call.namespace, "namespace"), names.check_id(request.id, "container id")
    )
    folder = bundle_folder(request.bundle)
    if request.parent_checkpoint:  # containerd never sends one
        raise InvalidArgument("parent_checkpoint: no OCI runtime restores from two folders")
    stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
    streams.check(stdio)
    spec = bundle.load_spec(folder)
    unit = names.init_unit(key)
    wished = options.decode(request.options, config.runtime)
    runtime, left_out = annotation.applied(wished.runtime, bundle.notes(spec))
    checkpoint = request.checkpoint or runtime.criu_image_path
    slice_name, cgroup, ours = place(spec, key, unit, restored=bool(checkpoint))
    asked = {name: getattr(wished.runtime, name) for name in logs.KEYS}
    log = logs.decide(asked, bundle.notes(spec), config.logging(key.namespace), stdio)
    output.check(log)
    options.warn(key, wished, bundle.read_start(folder), left_out)
    systemd = systemdmode.wanted(spec, bundle.notes(spec))
    if systemd:
        spec = systemdmode.prepare(spec, key, cgroup, unified=unified)
        runtime = systemdmode.stopped(runtime)
    identity = Identity(
        namespace=key.namespace,
        id=key.id,
        token=call.token.hex(),
        bundle=str(folder),
        unit=unit,
        slice=slice_name,
        cgroup=cgroup,
        owns_cgroup=ours,
        containerd=containerd,
        runtime=runtime,
        stdio=stdio,
        log=log,
        rootfs=tuple(_mount(m) for m in request.rootfs),
        create_call=call.key,
        private_pids=bundle.private_pids(spec),
        checkpoint=checkpoint,
    )
    if identity.rootfs:
        _check_rootfs(folder)
    if checkpoint:
        images.check(identity)
    return Plan(identity, spec, describe(key, spec), systemd)


def bundle_folder(path: str) -> Path:
    """The bundle of a request. Raises InvalidArgument when that cannot be one."""
    if not path.startswith("/") or ".." in path.split("/") or not path.isprintable():
        raise InvalidArgument(f"bundle {path[:256]!r} is not a clean absolute path")
    try:
        facts = Path(path).stat()
    except OSError as error:
        text = f"bundle {path[:256]} is not a directory"
        raise InvalidArgument(text, cause=error.strerror or "") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise InvalidArgument(f"bundle {path} is not a directory")
    if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # What lies there is obeyed by root, and looked at more than once.
        who = f"it is uid {facts.st_uid}'s, mode {stat.S_IMODE(facts.st_mode):04o}"
        raise InvalidArgument(f"bundle {path} can be changed by others than root: {who}")
    return Path(path)


def _check_rootfs(folder: Path) -> None:
    """mount(8) would follow a link."""
    if (folder / "rootfs").is_symlink():
        raise InvalidArgument(f"{folder}/rootfs is a symbolic link: nothing is mounted there")


def place(
    spec: dict[str, Any], key: names.TaskKey, unit: str, *, restored: bool = False
) -> tuple[str, str, bool]:
    """(slice, container's cgroup, whether it is ours) for a spec's cgroupsPath (design 4): a pod's
    slice when the CRI or POD names one, else the namespace's.

    Empty, `/<ns>/<id>`, `/docker/<id>` and `slice:prefix:name` are ours; another absolute path is
    somebody else's and honoured as given. The spec of what is restored is that of the container
    that was checkpointed: there `<id>` may be another.
    """
    path = bundle.cgroups_path(spec)
    pod = _pod(bundle.notes(spec))
    slice_name = (
        names.pod_slice(key.namespace, pod) if pod else names.namespace_slice(key.namespace)
    )
    parts = path.split(":")
    if len(parts) == 3 and parts[0].endswith(".slice"):
        slice_name = parts[0]
    elif path.startswith("/") and not _is_default(path, key, restored=restored):
        return slice_name, path, False
    return slice_name, f"{names.unit_cgroup(slice_name, unit)}/container", True


def _pod(notes: dict[str, str]) -> str:
    """What names the container's pod (protocol 8.2), empty without one."""
    told = logs.named(notes)
    name, namespace = told.get("POD_NAME"), told.get("POD_NAMESPACE")
    by_name = f"{namespace}_{name}" if name and namespace else ""
    return notes.get(annotation.POD) or by_name or told.get("POD_ID", "")


def _is_default(path: str, key: names.TaskKey, *, restored: bool) -> bool:
    """Whether a cgroupsPath is what clients write who have no wish."""
    parent, _, last = path.rpartition("/")
    return parent in (f"/{key.namespace}", "/docker") and (last == key.id or restored)


def _mount(message: Any) -> Mount:
    mount = Mount(message.type, message.source, message.target, tuple(message.options))
    rootfs.check(mount)
    return mount


def describe(key: names.TaskKey, spec: dict[str, Any]) -> str:
    """`systemctl status`'s first line: containerd's name, then image, pod and container name."""
    told = logs.named(bundle.notes(spec))
    words = [told.get(field, "") for field in ("IMAGE_NAME", "POD_NAME", "CONTAINER_NAME")]
    # It becomes a line of the unit's file: no line breaks, nothing unprintable, no novel.
    extra = ", ".join(word[:100] for word in words if word)
    extra = "".join(char if char.isprintable() else "?" for char in extra)
    return f"Container {key}" + (f" ({extra})" if extra else "")
