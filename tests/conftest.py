"""Options of a run: which hosts the system and fault tests are run on, and how long each took."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.host import keeper

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS = ("self/v2", "self/v1", "trixie/v2", "trixie/v1", "forky/v2", "mixed/v2", "mixed/v1")
NO_HOST = "without a host"
MINUTES = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("sdshim").addoption(
        "--hosts",
        default="self/v2",
        metavar="ROOT/CGROUP[=MARK],…",
        help="hosts for the system and fault tests (default self/v2), with =MARK only for those of "
        f"that mark; there are {', '.join(HOSTS)}",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MINUTES] = {}
    # no test is about time: a busy machine is no fault
    hypothesis.settings.register_profile("sdshim", deadline=None)
    hypothesis.settings.load_profile("sdshim")


def _hosts(config: pytest.Config) -> dict[str, str]:
    """The hosts asked for, each with the mark that its tests must have (or nothing)."""
    found = {}
    for word in config.getoption("--hosts").split(","):
        name, _, mark = word.partition("=")
        if name not in HOSTS:
            raise pytest.UsageError(f"--hosts: {name!r} is not one of {', '.join(HOSTS)}")
        found[name] = mark
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for the host runs once on each."""
    if "host" in metafunc.fixturenames and metafunc.definition.get_closest_marker("system"):
        names = list(_hosts(metafunc.config))
        metafunc.parametrize("host", names, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not fit a host: see the marks `cgroup`, `controllers` and `roots`, and
    `--hosts`; and what is run by hand."""
    asked = _hosts(config)
    for item in list(items):
        callspec = getattr(item, "callspec", None)
        host = str(callspec.params.get("host", "")) if callspec else ""
        if not _fits(item, host, asked.get(host, "")):
            items.remove(item)
            config.hook.pytest_deselected(items=[item])


def _fits(item: pytest.Item, host: str, mark: str) -> bool:
    root, _, cgroup = host.partition("/")
    flavour, roots = item.get_closest_marker("cgroup"), item.get_closest_marker("roots")
    if (flavour and cgroup not in flavour.args) or (roots and root not in roots.args):
        return False
    if item.get_closest_marker("controllers") and not keeper.has_controllers(cgroup):
        return False
    by_hand = item.get_closest_marker("by_hand")
    if by_hand and not any(map(os.environ.get, by_hand.args)):
        return False
    return not mark or item.get_closest_marker(mark) is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Add up the time of each stage."""
    begun = time.monotonic()
    yield
    callspec = getattr(item, "callspec", None)
    stage = callspec.params.get("host", NO_HOST) if callspec else NO_HOST
    stage = stage if stage in HOSTS else NO_HOST
    spent = item.config.stash[MINUTES]
    spent[stage] = spent.get(stage, 0.0) + time.monotonic() - begun


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for stage, seconds in config.stash[MINUTES].items():
        terminalreporter.write_line(f"stage {stage}: {seconds / 60:.1f} min")
