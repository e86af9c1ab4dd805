"""The configuration: defaults, and every fault of a file at once."""

from __future__ import annotations

import tomllib

import pytest

from sdshim.core.config import Config, parse, render
from sdshim.core.errors import InvalidArgument


def test_the_printed_configuration_reads_back_as_itself() -> None:
    assert parse(tomllib.loads(render(Config()))) == Config()


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse({"run_dir": "relative", "stop_timeout": -1.0, "nonsense": 1, "log_level": "loud"})
    for word in ("run_dir", "stop_timeout", "nonsense", "log_level"):
        assert word in str(caught.value)


def test_a_wrong_type_is_named_with_what_is_wanted() -> None:
    with pytest.raises(InvalidArgument, match="stop_timeout must be a float"):
        parse({"stop_timeout": "ten"})
