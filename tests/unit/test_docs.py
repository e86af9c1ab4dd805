"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdshim.cli.main import parser
from sdshim.core import lifecycle
from sdshim.core.config import Config, render
from sdshim.survey.checks import CHECKS

TREE = Path(__file__).resolve().parents[2]
README = (TREE / "README.md").read_text(encoding="utf-8")
PAGES = (TREE / "README.md", *sorted((TREE / "docs").glob("*.md")))


def _targets() -> set[str]:
    """Targets of the Makefile that say what they are for."""
    return set(re.findall(r"^([a-z-]+):.*?## ", (TREE / "Makefile").read_text(), re.M))


def test_the_lifecycle_page_has_the_table_of_the_code() -> None:
    page = (TREE / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    table = lifecycle.diagram()
    assert page.endswith("\n\n" + table), f"put this at the end of docs/lifecycle.md:\n\n{table}"


def test_every_make_target_of_the_readme_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"demo", "test", "install"} <= named
    assert named <= _targets()


def test_the_readme_names_every_make_target() -> None:
    assert _targets() <= set(re.findall(r"\bmake ([a-z]+)\b", README))


def test_the_readme_has_the_default_configuration() -> None:
    assert render(Config()) in README


def test_the_operators_page_names_every_check_of_doctor() -> None:
    page = (TREE / "docs" / "operators.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.M) == [name for name, _ in CHECKS]


def test_every_command_of_the_operators_page_is_one() -> None:
    page = (TREE / "docs" / "operators.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    \$ sdshim ([^|;\n]+)", page, re.M)
    named = re.findall(r"`sdshim ([a-z]+ [^`]+)`", page)
    assert len(shown) > 8
    for words in (*shown, *named):
        parser().parse_args(words.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_layout_in_the_readme_is_the_tree() -> None:
    block = re.search(r"## Layout.*?```\n(.*?)```", README, re.S)
    assert block is not None
    for line in block[1].splitlines():
        path = line.split()[0]
        assert (TREE / path).exists(), path
