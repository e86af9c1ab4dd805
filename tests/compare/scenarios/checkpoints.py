"""Checkpoint and restore, where criu works and containerd hands on all options (2.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.pb import runc_pb2
from tests.compare.subject import ROOTFS

if TYPE_CHECKING:
    from tests.compare.subject import Container, Subject

LOOP = ("sh", "-c", "while :; do sleep 0.1; done")


def _possible(s: Subject) -> bool:
    works = s.host.run(["criu", "check"], check=False).returncode == 0
    return works and s.host.containerd_version >= (2,)


def _folder(s: Subject) -> str:
    path = f"/run/images-{s.namespace}"
    s.host.run(["rm", "-rf", path])
    return path


def _running(s: Subject, name: str = "c") -> Container:
    box = _container(s, name)
    box.create(rootfs=_writable())
    box.start()
    return box


def _container(s: Subject, name: str) -> Container:
    return s.container(name, *LOOP, root={"readonly": False})


def _writable() -> list[dict[str, Any]]:
    """criu makes a folder in the root that it restores."""
    return [{"type": "bind", "source": ROOTFS, "options": ["rbind", "rw"]}]


def _restore(box: Container, path: str) -> None:
    options = runc_pb2.Options(criu_image_path=path)
    value = options.SerializeToString()
    wish = AnyMessage(type_url=options.DESCRIPTOR.full_name, value=value)
    box.create(rootfs=_writable(), options=wish)


def going_on(s: Subject) -> None:
    """A checkpoint leaves the container running, or paused."""
    if not _possible(s):
        return
    path = _folder(s)
    box = _running(s)
    box.checkpoint(image_path=path)
    box.state()
    box.pause()
    box.checkpoint(image_path=path)
    box.state()
    box.resume()
    end = box.wait()
    box.kill()
    end.told()
    box.delete()
    _folder(s)


def ending(s: Subject) -> None:
    """A container ends with its checkpoint, running or paused."""
    if not _possible(s):
        return
    for name, paused in (("c", False), ("d", True)):
        path = _folder(s)
        box = _running(s, name)
        if paused:
            box.pause()
        end = box.wait()
        box.checkpoint(image_path=path, exit=True)
        end.told()
        box.state()
        box.checkpoint(image_path=path)
        box.delete()
    _folder(s)


def restored(s: Subject) -> None:
    """Create, what may be asked before Start, and a whole life after it."""
    if not _possible(s):
        return
    path = _folder(s)
    box = _running(s)
    box.checkpoint(image_path=path, exit=True)
    box.waited()
    box.delete()
    new = _container(s, "n")
    _restore(new, path)
    new.state()
    new.pause()
    new.resume()
    new.checkpoint(image_path=path)
    new.exec("x", "true")
    new.start()
    new.state()
    new.start()
    end = new.wait()
    new.kill()
    end.told()
    new.state()
    new.delete()
    _folder(s)


def never_restored(s: Subject) -> None:
    """A restore that is deleted before its Start."""
    if not _possible(s):
        return
    path = _folder(s)
    box = _running(s)
    box.checkpoint(image_path=path, exit=True)
    box.waited()
    box.delete()
    new = _container(s, "n")
    _restore(new, path)
    new.state()
    new.kill()
    new.update({})
    new.delete()
    new.state()
    _folder(s)
