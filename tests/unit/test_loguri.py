"""Log URIs are taken apart as Go's net/url does it for the stock shim (protocol 6.3, 6.4)."""

from __future__ import annotations

import pytest

from sdshim.core import loguri
from sdshim.core.errors import InvalidArgument, ShimError, UnknownError
from sdshim.core.loguri import Logger
from sdshim.core.model import Stdio


@pytest.mark.parametrize("path", ["", "/run/fifo/x", "/a:b://c", "relative", "/%zz"])
def test_a_text_without_scheme_is_a_path(path: str) -> None:
    assert loguri.parse(path) is None
    assert loguri.process_side(Stdio("/i", path, "/e"), "/s") == Stdio("/i", path, "/e")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("FILE:///a", "/a"),
        ("file:/a", "/a"),
        ("file:///a b", "/a b"),
        ("file:///a%20b%25+c", "/a b%+c"),
        ("file:///a%2Fb", "/a/b"),
        ("file:////a", "//a"),
        ("file://host/a", "/a"),
        ("file://host:1/a?b=c#d", "/a"),
        ("file:///%C3%A4ä", "/ää"),
        ("file:///%0A$x", "/\n$x"),
    ],
)
def test_paths(uri: str, path: str) -> None:
    assert loguri.parse(uri) == Logger("file", path)


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("", ()),
        ("a=b", ("a", "b")),
        ("a", ("a", "")),
        ("=b", ("", "b")),
        ("b=1&a=2&b=3", ("b", "1", "a", "2")),
        ("a=b=c", ("a", "b=c")),
        ("a+b=c%2B%20d", ("a b", "c+ d")),
        ("a;b=1&c=2", ("c", "2")),
        ("%zz=1&a=%1&c=2", ("c", "2")),
        ("&&a=1&", ("a", "1")),
        ("_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib", ("_NERDCTL_INTERNAL_LOGGING", "/var/lib")),
    ],
)
def test_arguments_are_keys_and_first_values(query: str, arguments: tuple[str, ...]) -> None:
    assert loguri.parse(f"binary:///p?{query}#f") == Logger("binary", "/p", arguments)


@pytest.mark.parametrize(
    ("uri", "kind", "text"),
    [
        ("foo:///x", UnknownError, "unknown STDIO scheme foo"),
        ("fifo:///x", UnknownError, "unknown STDIO scheme fifo"),
        ("file:x", InvalidArgument, "no absolute path"),
        ("file://", InvalidArgument, "no absolute path"),
        ("binary://host", InvalidArgument, "no absolute path"),
        ("file:///%zz", InvalidArgument, "invalid URL escape '%zz'"),
        ("file:///a%2", InvalidArgument, "invalid URL escape '%2'"),
        ("file:///a\nb", InvalidArgument, "control characters"),
        ("file:///a%00b", InvalidArgument, "NUL"),
        ("file:///%ff", InvalidArgument, "not UTF-8"),
        ("binary:///x?a=%ff", InvalidArgument, "not UTF-8"),
    ],
)
def test_what_is_no_logger_is_refused(uri: str, kind: type[ShimError], text: str) -> None:
    with pytest.raises(kind, match=text):
        loguri.parse(uri)


def test_a_file_takes_both_streams_by_one_fifo_a_program_by_two() -> None:
    file = loguri.process_side(Stdio("/i", "file:///x", "ignored"), "/s")
    assert file == Stdio("/i", "/s/out", "/s/out")
    program = loguri.process_side(Stdio("", "binary:///x", "", terminal=True), "/s")
    assert program == Stdio("", "/s/out", "/s/err", terminal=True)
