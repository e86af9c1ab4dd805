"""The house: arrows point one way, modules stay small, the libraries have one importer each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdshim"
MIDDLE = {"ttrpc", "systemd", "runtime", "host", "stdio", "telemetry"}
ALLOWED = {
    "core": {"core"},
    "pb": {"core", "pb"},
    **{room: {"core", "pb", room} for room in MIDDLE},
    "daemon": {"core", "pb", "daemon", *MIDDLE},
    "api": {"core", "pb", "daemon", "api", *MIDDLE},
    "survey": {"core", "pb", "survey", *MIDDLE},
    "cli": {"core", "pb", "daemon", "api", "survey", "cli", *MIDDLE},
    "launcher": {"launcher"},
}
ONE_IMPORTER: dict[str, str | tuple[str, ...]] = {
    "dbus_next": ("sdshim/systemd/bus.py", "sdshim/systemd/wire.py"),
    "systemd": "sdshim/systemd/journal.py",
    "opentelemetry": "sdshim/telemetry/",
}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    room = parts[0] if len(parts) > 1 else ""
    for name in _imports(path):
        words = name.split(".")
        if words[0] == "sdshim" and len(words) > 1 and room:
            target = words[1]
            assert target in ALLOWED[room] or not (PACKAGE / target).is_dir(), name
        for library, owner in ONE_IMPORTER.items():
            if words[0] == library:
                assert str(path.relative_to(ROOT)).startswith(owner), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_stay_small_and_documented(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text, "a module says what it owns"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_the_core_is_pure() -> None:
    for path in (PACKAGE / "core").glob("*.py"):
        for name in _imports(path):
            assert name.split(".")[0] not in ("asyncio", "os", "socket", "subprocess"), (path, name)
