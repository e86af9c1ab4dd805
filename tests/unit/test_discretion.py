"""No environment value of a container leaves with an error text."""

from __future__ import annotations

import pytest

from sdshim.core.discretion import discreet

ENVIRONMENT = [
    "PATH=/bin:/usr/bin",
    "TOKEN=s3cr3t-s3cr3t",
    "N=1",
    "HOME=/root",
    "no-equals-canary",
    "E=",
]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bad: s3cr3t-s3cr3t!", "bad: …!"),
        ("env [TOKEN=s3cr3t-s3cr3t N=1]", "env [TOKEN=… N=…]"),
        ("invalid environment variable no-equals-canary", "invalid environment variable …"),
        ('exec: "x": stat /root/x: exit status 1', 'exec: "x": stat /root/x: exit status 1'),
        ("PATH=/bin:/usr/bin", "PATH=…"),
        ("executable file not found in $PATH", "executable file not found in $PATH"),
    ],
)
def test_values_are_hidden_and_ordinary_words_stay(text: str, told: str) -> None:
    assert discreet(text, ENVIRONMENT) == told


def test_a_value_within_a_value_leaves_nothing_of_the_longer_one() -> None:
    assert discreet("longsecret-and-more", ["A=longsecret", "B=longsecret-and-more"]) == "…"


@pytest.mark.parametrize(
    "text",
    [
        'env: ["KEY=one\\n\\"two\\" \\u00e4"]',
        'env: ["KEY=one\\n\\"two\\" ä"]',
        'env: [KEY=one "two" ä]',
        'env: [KEY=one\n"two" ä]',
    ],
)
def test_a_value_is_found_as_json_quotes_it_and_when_its_lines_are_one(text: str) -> None:
    assert "two" not in discreet(text, ['KEY=one\n"two" ä'])
