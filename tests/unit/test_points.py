"""The list of crash points and the code that passes them say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from sdshim.core.points import POINTS, nowhere

CODE = Path(__file__).parents[2] / "sdshim"
NAMES = ("crash", "_crash")


def _called(tree: ast.AST) -> list[str]:
    """Patterns of the names that a module's calls of `crash` are given."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in NAMES:
                found.append(_pattern(node.args[0]))
    return found


def _pattern(name: ast.expr) -> str:
    if isinstance(name, ast.Constant):
        return re.escape(str(name.value))
    assert isinstance(name, ast.JoinedStr), "a point is named where it is passed"
    words = (
        re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"\w+" for p in name.values
    )
    return "".join(words)


def test_every_point_is_in_the_code_and_the_code_has_no_other() -> None:
    patterns = {p for path in CODE.rglob("*.py") for p in _called(ast.parse(path.read_text()))}
    for point in POINTS:
        assert any(re.fullmatch(pattern, point) for pattern in patterns), point
    for pattern in patterns:
        assert any(re.fullmatch(pattern, point) for point in POINTS), pattern


def test_points_are_named_once_and_do_nothing_by_themselves() -> None:
    assert len(POINTS) == len(set(POINTS))
    for point in POINTS:
        nowhere(point)


def test_nothing_but_a_test_makes_another_crash() -> None:
    """No setting leads there: the command line serves with what does nothing."""
    text = (CODE / "cli" / "main.py").read_text()
    assert "return serve(config)" in text
