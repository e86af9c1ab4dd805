"""Options of a run: which hosts the system and fault tests are run on, and how long each took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.host import keeper

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS = ("self/v2", "self/v1", "trixie/v2", "trixie/v1", "forky/v2")
NO_HOST = "without a host"
MINUTES = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("sdshim").addoption(
        "--hosts",
        default="self/v2",
        metavar="ROOT/CGROUP,…",
        help=f"hosts for the system and fault tests (default self/v2; all: {','.join(HOSTS)})",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MINUTES] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for the host runs once on each."""
    if "host" in metafunc.fixturenames and metafunc.definition.get_closest_marker("system"):
        names = metafunc.config.getoption("--hosts").split(",")
        for name in names:
            if name not in HOSTS:
                raise pytest.UsageError(f"--hosts: {name!r} is not one of {', '.join(HOSTS)}")
        metafunc.parametrize("host", names, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a host does not have: its cgroup flavour (`@pytest.mark.cgroup("v1")`), or
    the controllers (`@pytest.mark.controllers`)."""
    for item in list(items):
        flavour = item.get_closest_marker("cgroup")
        callspec = getattr(item, "callspec", None)
        host = str(callspec.params.get("host", "")) if callspec else ""
        wrong = flavour and not host.endswith(flavour.args[0])
        bare = item.get_closest_marker("controllers") and not keeper.has_controllers(host[-2:])
        if wrong or bare:
            items.remove(item)
            config.hook.pytest_deselected(items=[item])


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
