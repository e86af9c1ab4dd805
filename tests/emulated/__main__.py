"""`python -m tests.emulated`: system tests on cgroup v2 with all controllers."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.host.errors import HostError
from tests.host.install import source_tree
from tests.host.progress import step

from . import disk

DEFAULT = "tests/system/test_update.py tests/system/test_stats.py tests/system/test_oom.py"
# Debian's protobuf of trixie cannot be imported where warnings are errors: the hosts' own is taken.
# A test's time limit is the test's own, without the host's boot: the first waits 23 s to a minute.
PYTEST = (
    "PYTHONPATH=$(echo /var/cache/sdshim/deps/*/lib/sdshim/deps) "
    "python3 -m pytest -p no:cacheprovider -o timeout=900 -o timeout_func_only=true --hosts self/v2"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulated",
        description="Runs system tests on an emulated machine whose cgroup v2 has controllers.",
        epilog=f"Without arguments for pytest: {DEFAULT}. The run takes some ten minutes.",
    )
    parser.add_argument("--memory", type=int, default=2048, help="of the machine, MiB")
    parser.add_argument("--command", default="", help="a shell command to run instead of pytest")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    return parser


def _tree(target: Path) -> None:
    """The working tree as a tar: what git knows or would know, without the virtual environment."""
    tree = source_tree()
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=tree
    )
    present = [name for name in listed.split(b"\0") if name and (tree / name.decode()).exists()]
    subprocess.run(
        ["tar", "-cf", target, "--null", "--files-from=-"],
        input=b"\0".join(present),
        cwd=tree,
        check=True,
    )


def _block(path: Path) -> None:
    """A drive is a multiple of a sector."""
    size = path.stat().st_size
    with path.open("ab") as file:
        file.truncate(-(-size // 512) * 512)


def _boot(command: str, memory: int) -> int:
    made = disk.ensure()
    with tempfile.TemporaryDirectory(prefix="sdshim-emulated-") as scratch:
        tree, line = Path(scratch, "tree"), Path(scratch, "command")
        _tree(tree)
        line.write_text(command)
        for path in (tree, line):
            _block(path)
        argv = ["qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "Nehalem"]
        # Its clock counts instructions: a busy machine makes it slow, but no time-out come early.
        # While it waits its time leaps to the next timer, so its disk must answer at once.
        argv += ["-icount", "shift=1,sleep=off", "-rtc", "clock=vm"]
        argv += ["-m", str(memory), "-nographic", "-no-reboot", "-nic", "none"]
        argv += ["-kernel", str(made / "vmlinuz"), "-initrd", str(made / "initramfs")]
        argv += ["-append", "console=ttyS0 quiet panic=-1 psi=1"]
        # What the machine writes goes with it, so nothing of it is ever flushed.
        drive = "format=raw,if=virtio,snapshot=on,cache=unsafe"
        argv += ["-drive", f"file={made}/disk,{drive}"]
        for path in (tree, line):
            argv += ["-drive", f"file={path},format=raw,if=virtio,read-only=on"]
        return _follow(argv)


def _follow(argv: list[str]) -> int:
    """Show the console until the machine is off; the status its command has told."""
    status = 1
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as machine:
        assert machine.stdout is not None
        try:
            for text in machine.stdout:
                print(text.rstrip(), flush=True)
                if text.startswith("emulated: exit status "):
                    status = int(text.split()[-1])
        finally:
            machine.kill()
    return status


def main() -> int:
    arguments = _parser().parse_args()
    words = " ".join(map(shlex.quote, arguments.pytest)) or DEFAULT
    try:
        disk.check_tools()
        with step("Emulating"):
            return _boot(arguments.command or f"{PYTEST} {words}", arguments.memory)
    except HostError as error:
        print(f"tests.emulated: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
