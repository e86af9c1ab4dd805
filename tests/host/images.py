"""The images of a host, made by hand from the machine's static busybox: one OCI archive.

busybox   one layer: busybox with its applet links, users and groups
pause     the same layer, an entrypoint that sleeps and reaps
layers:8  busybox with eight small layers on top, for long overlay options
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from functools import partial
from pathlib import Path

from . import cache
from .errors import CannotBoot

RECIPE = "1"  # part of the key: raise it when the content of an image changes
BUSYBOX = "docker.io/library/busybox:latest"
PAUSE = "registry.k8s.io/pause:3.9"
LAYERS = "docker.io/library/layers:8"
ALL = (BUSYBOX, PAUSE, LAYERS)

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
app:x:1000:1000:app:/home/app:/bin/sh
alice:x:1001:1001:alice:/home/alice:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP = """\
root:x:0:
daemon:x:1:
wheel:x:10:alice
audio:x:29:app,alice
staff:x:50:alice
app:x:1000:
alice:x:1001:
nogroup:x:65534:
"""
_PAUSE = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done"
_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def archive() -> Path:
    """The archive with all of them."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise CannotBoot("busybox-static is missing; run with --install-packages")
    key = cache.key([RECIPE, hashlib.sha256(busybox.read_bytes()).hexdigest()])
    return cache.ensure("images", f"oci-{key}", partial(_build, busybox)) / "images.tar"


def layer() -> bytes:
    """busybox's one layer, a gzipped tar: `docker import` makes an image of it."""
    with tarfile.open(archive()) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        def blob(described: dict[str, str]) -> bytes:
            return read("blobs/" + described["digest"].replace(":", "/"))

        manifests = json.loads(read("index.json"))["manifests"]
        found = next(
            one for one in manifests if one["annotations"]["io.containerd.image.name"] == BUSYBOX
        )
        return blob(json.loads(blob(found))["layers"][0])


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, content: bytes | str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, mode
    if isinstance(content, str):
        member.linkname = content
        tar.addfile(member)
    else:
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _base_layer(busybox: Path) -> bytes:
    buffer = io.BytesIO()
    applets = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folders = "bin dev etc home home/app home/alice proc root run sys tmp usr usr/bin var"
        for name in folders.split():
            _add(tar, name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755, b"")
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, busybox.read_bytes())
        for applet in sorted(set(applets.stdout.split()) - {"busybox"}):
            _add(tar, f"bin/{applet}", tarfile.SYMTYPE, 0o777, "/bin/busybox")
        _add(tar, "usr/bin/env", tarfile.SYMTYPE, 0o777, "/bin/busybox")
        _add(tar, "etc/passwd", tarfile.REGTYPE, 0o644, _PASSWD.encode())
        _add(tar, "etc/group", tarfile.REGTYPE, 0o644, _GROUP.encode())
        _add(tar, "etc/hostname", tarfile.REGTYPE, 0o644, b"busybox\n")
    return buffer.getvalue()


def _small_layer(number: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, "layers", tarfile.DIRTYPE, 0o755, b"")
        _add(tar, f"layers/{number}", tarfile.REGTYPE, 0o644, f"{number}\n".encode())
        _add(tar, "layers/top", tarfile.REGTYPE, 0o644, f"{number}\n".encode())
    return buffer.getvalue()


class _Archive:
    """An OCI layout being written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._written: set[str] = set()
        self._manifests: list[dict[str, object]] = []

    def blob(self, content: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._written:
            self._written.add(digest)
            _add(self._tar, f"blobs/sha256/{digest}", tarfile.REGTYPE, 0o644, content)
        kind = f"application/vnd.oci.image.{media}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    def image(self, name: str, layers: list[bytes], config: dict[str, object]) -> None:
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
        ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        document = {
            "architecture": machine,
            "os": "linux",
            "config": {"Env": _ENV, **config},
            "rootfs": {"type": "layers", "diff_ids": ids},
        }
        packed = [self.blob(gzip.compress(layer, mtime=0), "layer.v1.tar+gzip") for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob(json.dumps(document).encode(), "config.v1+json"),
            "layers": packed,
        }
        described = self.blob(json.dumps(manifest).encode(), "manifest.v1+json")
        described["platform"] = {"architecture": machine, "os": "linux"}
        described["annotations"] = {"io.containerd.image.name": name}
        self._manifests.append(described)

    def finish(self) -> None:
        index = {"schemaVersion": 2, "manifests": self._manifests}
        layout = b'{"imageLayoutVersion": "1.0.0"}'
        _add(self._tar, "oci-layout", tarfile.REGTYPE, 0o644, layout)
        _add(self._tar, "index.json", tarfile.REGTYPE, 0o644, json.dumps(index).encode())


def _build(busybox: Path, folder: Path) -> None:
    base = _base_layer(busybox)
    with tarfile.open(folder / "images.tar", "w") as tar:
        archive = _Archive(tar)
        archive.image(BUSYBOX, [base], {"Cmd": ["sh"]})
        archive.image(PAUSE, [base], {"Entrypoint": ["/bin/sh", "-c", _PAUSE]})
        archive.image(LAYERS, [base, *map(_small_layer, range(1, 9))], {"Cmd": ["sh"]})
        archive.finish()
