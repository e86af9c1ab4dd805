"""Options of the test run; `tests/system` boots the host they name once per session."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sdshim")
    group.addoption(
        "--host-root", default="self", choices=("self", "trixie", "forky"), help="root to boot"
    )
    group.addoption(
        "--host-cgroup", default="v2", choices=("v2", "v1"), help="cgroup flavour of the host"
    )
