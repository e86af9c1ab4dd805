"""What the emulated machine boots from: kernel, initramfs and disk, made once and cached."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from tests.host import cache, install, roots
from tests.host.errors import CannotBoot, HostError
from tests.host.progress import step

RECIPE = "1"
BASE = "trixie"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = ("python3-pytest", "python3-pytest-timeout", "python3-hypothesis")
MODULES = (  # in the order of their dependencies
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
)
_INITRAMFS = """\
#!/bin/busybox sh
for module in {modules}; do /bin/busybox insmod /$module.ko; done
/bin/busybox mkdir -p /root /dev
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /emulated-init
"""
_PACKAGES = """\
set -eu
mount -t proc proc "$1/proc"
root=$1
shift
apt() { chroot "$root" apt-get --quiet "$@"; }
apt update
apt --yes --no-install-recommends install "$@"
apt clean
rm -rf "$root"/var/lib/apt/lists/*
umount "$root/proc"
"""


def ensure() -> Path:
    """The folder with `vmlinuz`, `initramfs` and `disk`."""
    base = roots.by_name(BASE)
    init = Path(__file__).with_name("init").read_text()
    path = roots.ensure(base)
    deps, _ = install.layers(base, path)
    parts = [RECIPE, roots.cache_name(base), deps.name, init, *PACKAGES, *MODULES]
    name = f"emulated-{cache.key(parts)}"
    return cache.ensure("emulated", name, partial(_build, path, deps, init))


def _run(command: list[str], **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise HostError(f"{' '.join(command[:3])} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _build(base: Path, deps: Path, init: str, out: Path) -> None:
    with (
        step("Building the emulated machine (once, some minutes)") as running,
        tempfile.TemporaryDirectory(prefix="sdshim-emulated-") as scratch,
    ):
        running.tell("kernel")
        modules = _kernel(Path(scratch, "kernel"), out)
        _initramfs(Path(scratch, "initramfs"), modules, out)
        running.tell("disk")
        _disk(Path(scratch, "disk"), base, deps, init, modules, out)


def _kernel(scratch: Path, out: Path) -> Path:
    """Fetch and unpack the kernel's package; returns its folder of modules."""
    scratch.mkdir()
    _run(["apt-get", "download", KERNEL], cwd=scratch)
    package = next(scratch.glob("*.deb"))
    depends = subprocess.check_output(["dpkg-deb", "-f", package, "Depends"], text=True)
    _run(["apt-get", "download", depends.split()[0]], cwd=scratch)
    real = next(p for p in scratch.glob("linux-image-*.deb") if p != package)
    _run(["dpkg-deb", "-x", str(real), str(scratch / "x")])
    shutil.copyfile(next((scratch / "x/boot").glob("vmlinuz-*")), out / "vmlinuz")
    return next((scratch / "x/lib/modules").iterdir())


def _initramfs(scratch: Path, modules: Path, out: Path) -> None:
    (scratch / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", scratch / "bin/busybox")
    names = [name.rpartition("/")[2] for name in MODULES]
    for name, short in zip(MODULES, names, strict=True):
        shutil.copyfile(modules / "kernel" / f"{name}.ko", scratch / f"{short}.ko")
    (scratch / "init").write_text(_INITRAMFS.format(modules=" ".join(names)))
    (scratch / "init").chmod(0o755)
    script = f"find . | cpio --quiet -o -H newc >{out}/initramfs"
    _run(["sh", "-c", script], cwd=scratch)


def _disk(scratch: Path, base: Path, deps: Path, init: str, modules: Path, out: Path) -> None:
    _run(["cp", "-a", str(base), str(scratch)])
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    _run([*isolated, "sh", "-c", _PACKAGES, "sh", str(scratch), *PACKAGES])
    (scratch / "emulated-init").write_text(init)
    (scratch / "emulated-init").chmod(0o755)
    (scratch / "usr/lib/modules").mkdir(exist_ok=True)
    _run(["cp", "-a", str(modules), str(scratch / "usr/lib/modules")])
    _run(["depmod", "-b", str(scratch), modules.name])
    # The hosts in there find their Python dependencies made: no registry is reachable from it.
    place = scratch / "var/cache/sdshim/deps" / _deps_name(scratch)
    place.parent.mkdir(parents=True)
    _run(["cp", "-a", str(deps), str(place)])
    with (out / "disk").open("wb") as file:
        file.truncate(6 << 30)
    _run(["mkfs.ext4", "-q", "-F", "-d", str(scratch), str(out / "disk")])


def _deps_name(root: Path) -> str:
    """The cache's name for the dependencies of root `self`, as install.layers has it."""
    me = roots.by_name("self")
    return f"{me.name}-{install.deps_key(me, root, install.source_tree())}"


def check_tools() -> None:
    """Raises CannotBoot with what is missing."""
    for tool, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("cpio", "cpio"),
        ("mkfs.ext4", "e2fsprogs"),
        ("depmod", "kmod"),
    ):
        if shutil.which(tool) is None:
            raise CannotBoot(f"{tool} is missing (Debian: {package})")
