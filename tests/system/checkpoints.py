"""What the tests of checkpoints share: the options, containers that count, their restore."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.pb import runc_pb2, types_pb2
from tests.system.taskclient import ROOTFS, eventually, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from tests.host import Host
    from tests.system.taskclient import Bundle, Rig

COUNT = (
    "i=0; while :; do i=$((i+1)); echo $i; j=0; while [ $j -lt 4000 ]; do j=$((j+1)); done; done"
)
"""A number every some milliseconds, without a child: a shell whose child is frozen between vfork
and exec cannot be stopped, and criu gives up on it after its 10 s."""
IMAGES = "/run/images"
WRITABLE = {"path": ROOTFS, "readonly": False}
"""criu 4.2 makes a folder in the root that it restores; only in an overlay it does without."""


def options(**fields: Any) -> AnyMessage:
    """CheckpointOptions as containerd sends them."""
    message = runc_pb2.CheckpointOptions(**fields)
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def criu_works(host: Host) -> bool:
    """criu's own word: the kernel of the machine that runs the tests decides."""
    return bool(host.run(["criu", "check"], check=False).returncode == 0)


@contextmanager
def images(host: Host) -> Iterator[str]:
    """A folder for images, removed afterwards."""
    host.run(["rm", "-rf", IMAGES])
    try:
        yield IMAGES
    finally:
        host.run(["rm", "-rf", IMAGES])


def counting(rig: Rig, id_: str, command: str = COUNT, **spec: Any) -> Bundle:
    """A running container with all three streams that counts on stdout."""
    bundle = rig.bundle(id_, spec={**spec_of("sh", "-c", command), "root": WRITABLE, **spec})
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    rig.call("Create", id=id_, bundle=bundle.path, **streams)
    rig.call("Start", id=id_)
    if command is COUNT:
        bundle.read_line("stdout")
    return bundle


def say(bundle: Bundle, data: bytes) -> None:
    """Write to the container's stdin, as its client."""
    if "stdin" not in bundle.ends:
        bundle.ends["stdin"] = os.open(bundle.outside / "stdin", os.O_WRONLY | os.O_CLOEXEC)
    os.write(bundle.ends["stdin"], data)


def to_restore(
    rig: Rig, id_: str, checkpoint: str = IMAGES, notes: dict[str, str] | None = None, **fields: Any
) -> Bundle:
    """A container whose Create names a checkpoint: with streams, and its rootfs is mounted."""
    bundle, call = begin_restore(rig, id_, checkpoint, notes, **fields)
    assert call.result(15).pid == 0
    return bundle


def begin_restore(
    rig: Rig, id_: str, checkpoint: str = IMAGES, notes: dict[str, str] | None = None, **fields: Any
) -> tuple[Bundle, Future[Any]]:
    """The same while Create is under way."""
    spec = {**spec_of("sh", "-c", COUNT), "root": {"path": "rootfs"}, "annotations": notes or {}}
    bundle = rig.bundle(id_, spec=spec)
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    mount = types_pb2.Mount(type="bind", source=ROOTFS, options=["rbind", "rw"])
    request = {"bundle": bundle.path, "rootfs": [mount], "checkpoint": checkpoint, **streams}
    return bundle, rig.begin("Create", id=id_, **{**request, **fields})


FAKE = "/run/fake-criu"
NO_CRIU = 'case $1 in --version) echo "Version: 4.1" ;; check) ;; *) exit 1 ;; esac'
"""A criu that is all right when it is asked, and fails when it has to work."""


_HELD, _WAITING = "/run/held", "/run/waiting"
_HOLD = f"while [ -e {_HELD} ]; do touch {_WAITING}; sleep 0.01; done"
HELD_FAILS = f'case $1 in --version) echo "Version: 4.1" ;; check) ;; *) {_HOLD}; exit 1 ;; esac'
"""A criu that waits to be let go when it has to work, and then fails."""
HELD_WORKS = f'[ "$1" = swrk ] && {_HOLD}; exec /usr/sbin/criu "$@"'
"""The real one, held in the same way."""


def hold_criu(host: Host) -> None:
    """From now on a fake criu waits."""
    host.run(["touch", _HELD])


def await_criu(host: Host) -> None:
    """Until it does."""
    eventually(lambda: host.path(_WAITING).exists(), "criu is at work")


def let_go(host: Host) -> None:
    """Let it go on."""
    host.run(["rm", "-f", _HELD, _WAITING])


@contextmanager
def fake_criu(host: Host, script: str) -> Iterator[AnyMessage]:
    """Options of a task whose criu is a shell script."""
    host.run(["sh", "-c", 'cat >"$0"; chmod 755 "$0"', FAKE], input=f"#!/bin/sh\n{script}\n")
    try:
        yield with_criu(FAKE)
    finally:
        let_go(host)
        host.run(["rm", "-f", FAKE])


def with_criu(path: str) -> AnyMessage:
    """Options of a task that name its criu."""
    message = runc_pb2.Options(criu_path=path)
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
