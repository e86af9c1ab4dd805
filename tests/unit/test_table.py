"""Tables, sizes and times: right on every width, and as systemctl writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core import table
from sdshim.core.table import Column

COLUMNS = (
    Column("NAME", shortest=6),
    Column("UNIT", spare=2),
    Column("PID", right=True),
    Column("CPU", right=True, spare=1),
)
ROWS = [["web", "sdshim-default-web.service", "7", "31ms"], ["a-long-name-of-it", "u", "12345", ""]]
S = 10**9


def test_a_pipe_gets_every_column_in_full() -> None:
    assert table.render(COLUMNS, ROWS) == (
        "NAME               UNIT                          PID   CPU\n"
        "web                sdshim-default-web.service      7  31ms\n"
        "a-long-name-of-it  u                           12345\n"
    )


def test_a_narrow_terminal_loses_the_most_dispensable_columns_first() -> None:
    assert table.render(COLUMNS, ROWS, 40).splitlines()[0] == "NAME                 PID   CPU"
    assert table.render(COLUMNS, ROWS, 27).splitlines()[0] == "NAME                 PID"


def test_what_cannot_be_left_out_is_shortened_in_its_middle() -> None:
    assert table.render(COLUMNS, ROWS, 18).splitlines() == [
        "NAME           PID",
        "web              7",
        "a-lon…of-it  12345",
    ]


@given(st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in table.render(COLUMNS, ROWS, width).splitlines())


def test_a_table_without_rows_is_its_titles() -> None:
    assert table.render(COLUMNS, []) == "NAME  UNIT  PID  CPU\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (532, "532B"),
        (1536, "1.5K"),
        (6 << 20, "6M"),
        (10300, "10K"),
        ((1 << 20) - 1, "1M"),
        (12 << 30, "12G"),
        (2**63, "8E"),
    ],
)
def test_sizes(number: int | None, text: str) -> None:
    assert table.size(number) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (None, "-"),
        (0, "0ms"),
        (31_400_000, "31ms"),
        (999_900_000, "1s"),
        (2_540_000_000, "2.5s"),
        (59_990_000_000, "59s"),
        (184 * S, "3min 4s"),
        (7620 * S, "2h 7min"),
        (3600 * S, "1h"),
    ],
)
def test_cpu_times(nanoseconds: int | None, text: str) -> None:
    assert table.cpu_time(nanoseconds) == text


@pytest.mark.parametrize(
    ("then", "text"),
    [(0, "-"), (1000 * S, "0s ago"), (1001 * S, "0s ago"), (940 * S, "1min ago"), (S, "16min ago")],
)
def test_how_long_since(then: int, text: str) -> None:
    assert table.ago(then, 1000 * S) == text


def test_times_for_programs_are_utc_with_microseconds() -> None:
    assert table.iso(1795630168165627073) == "2026-11-25T18:09:28.165627Z"
    assert table.iso(0) == ""


def test_values_of_many_lines_stay_below_each_other() -> None:
    assert table.pairs([("a", "1"), ("name", "x\ny")]) == "   a: 1\nname: x\n      y\n"
