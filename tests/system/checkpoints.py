"""What the tests of checkpoints share: the options, containers that count, their restore."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.pb import runc_pb2, types_pb2
from tests.system.taskclient import ROOTFS, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host import Host
    from tests.system.taskclient import Bundle, Rig

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
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


def to_restore(rig: Rig, id_: str, checkpoint: str = IMAGES, **fields: Any) -> Bundle:
    """A container whose Create names a checkpoint: with streams, and its rootfs is mounted."""
    bundle = rig.bundle(id_, spec={**spec_of("sh", "-c", COUNT), "root": {"path": "rootfs"}})
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    mount = types_pb2.Mount(type="bind", source=ROOTFS, options=["rbind", "rw"])
    request = {"bundle": bundle.path, "rootfs": [mount], "checkpoint": checkpoint, **streams}
    answer = rig.call("Create", id=id_, **{**request, **fields})
    assert answer.pid == 0
    return bundle


FAKE = "/run/fake-criu"
NO_CRIU = 'case $1 in --version) echo "Version: 4.1" ;; check) ;; *) exit 1 ;; esac'
"""A criu that is all right when it is asked, and fails when it has to work."""


@contextmanager
def fake_criu(host: Host, script: str) -> Iterator[AnyMessage]:
    """Options of a task whose criu is a shell script."""
    host.run(["sh", "-c", 'cat >"$0"; chmod 755 "$0"', FAKE], input=f"#!/bin/sh\n{script}\n")
    try:
        yield with_criu(FAKE)
    finally:
        host.run(["rm", "-f", FAKE])


def with_criu(path: str) -> AnyMessage:
    """Options of a task that name its criu."""
    message = runc_pb2.Options(criu_path=path)
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
