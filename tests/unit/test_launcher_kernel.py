"""System calls of the mount API (launcher/kernel.py)."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from sdshim.launcher import kernel

if TYPE_CHECKING:
    from pathlib import Path


def test_a_path_below_a_root_is_found_while_others_rename_and_stays_below_it(
    tmp_path: Path,
) -> None:
    """The kernel gives up at `..` when anything is renamed meanwhile."""
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "etc").mkdir(parents=True)
    other.mkdir()
    rename = "import os, sys\nos.chdir(sys.argv[1]); os.mkdir('a'); print(flush=True)\n"
    rename += "while True: os.rename('a', 'b'); os.rename('b', 'a')"
    folder = os.open(root, os.O_PATH)
    argv = ["python3", "-ISc", rename, str(other)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as renamer:
        try:
            assert renamer.stdout is not None
            renamer.stdout.readline()
            wanted = (root / "etc").stat().st_ino
            for _ in range(3000):
                found = kernel.open_below(folder, "../../" * 20 + "etc")
                assert os.fstat(found).st_ino == wanted
                os.close(found)
        finally:
            renamer.kill()
            os.close(folder)
