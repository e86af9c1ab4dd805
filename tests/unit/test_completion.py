"""Shell completion: made from the grammar, and right when bash runs it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from sdshim.cli.completion import script
from sdshim.cli.main import parser

if TYPE_CHECKING:
    from pathlib import Path

PS = """\
#!/bin/sh
case "$*" in
*-n\\ k8s.io*) echo pod1 ;;
*--wide*) printf '%s\\n' default/web k8s.io/pod1 ;;
*--quiet*) printf '%s\\n' web web:e1 pod1 ;;
*) printf '%s\\n' 'NAMESPACE  ID' 'default    web' 'k8s.io     pod1' 'default    x' ;;
esac
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with an `sdshim ps` and a systemctl of our own."""
    for name, text in (("sdshim", PS), ("systemctl", "#!/bin/sh\necho sdshim-default-web.service")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def complete(line: str, path: str) -> list[str]:
    """What bash offers at the end of a line."""
    code = script("bash", parser()) + "\n_sdshim\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        ["bash", "-uc", code],
        env={"PATH": path, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sdshim ", ["serve", "config", "ps", "inspect", "completion"]),
        ("sdshim in", ["inspect"]),
        ("sdshim ps --e", ["--execs"]),
        ("sdshim inspect w", ["web", "web:e1"]),
        ("sdshim inspect web:", ["e1"]),
        ("sdshim inspect -n k8s.io ", ["pod1"]),
        ("sdshim inspect k8s.io/", ["k8s.io/pod1"]),
        ("sdshim inspect sdshim-", ["sdshim-default-web.service"]),
        ("sdshim ps -n ", ["default", "k8s.io"]),
        ("sdshim completion z", ["zsh"]),
    ],
)
def test_bash_offers_what_may_come_next(line: str, offered: list[str], path: str) -> None:
    found = complete(line, path)
    assert set(offered) <= set(found)


def test_files_are_offered_where_a_file_is_wanted(tmp_path: Path, path: str) -> None:
    (tmp_path / "config.toml").touch()
    assert f"{tmp_path}/config.toml" in complete(f"sdshim ps --config {tmp_path}/c", path)


def test_both_scripts_know_every_command_and_option() -> None:
    for shell in ("bash", "zsh"):
        text = script(shell, parser())
        for word in ("serve", "config", "ps", "inspect", "--execs", "--json", "--namespace"):
            assert word in text


def test_the_zsh_script_says_which_command_it_is_for() -> None:
    assert script("zsh", parser()).startswith("#compdef sdshim\n")
