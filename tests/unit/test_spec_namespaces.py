"""Whether a container's processes end with its init: what the spec says of its pid namespace."""

from __future__ import annotations

from typing import Any

import pytest

from sdshim.runtime.bundle import private_pids


@pytest.mark.parametrize(
    ("namespaces", "private"),
    [
        ([{"type": "pid"}], True),
        ([{"type": "mount"}, {"type": "pid", "path": ""}], True),
        ([{"type": "pid", "path": "/proc/7/ns/pid"}], False),
        ([{"type": "mount"}], False),
        ([], False),
        (None, False),
        ({"type": "pid"}, False),
        (["pid", 7], False),
    ],
)
def test_a_pid_namespace_is_private_without_a_path(namespaces: Any, private: bool) -> None:
    assert private_pids({"linux": {"namespaces": namespaces}}) is private


@pytest.mark.parametrize("spec", [{}, {"linux": None}])
def test_without_a_word_on_namespaces_it_is_the_hosts(spec: dict[str, Any]) -> None:
    assert not private_pids(spec)
