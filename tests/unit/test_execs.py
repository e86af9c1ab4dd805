"""What an Exec request must be, before anything is made of it."""

from __future__ import annotations

import json

import pytest

from sdshim.core.errors import InvalidArgument
from sdshim.daemon.execs import process_spec
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import PROCESS_URL


def _request(value: bytes, url: str = PROCESS_URL, terminal: bool = False) -> pb.ExecProcessRequest:
    request = pb.ExecProcessRequest(id="c", exec_id="e", terminal=terminal)
    request.spec.type_url = url
    request.spec.value = value
    return request


def test_the_terminal_of_the_request_wins_over_the_spec() -> None:
    spec = process_spec(_request(b'{"args": ["sh"], "terminal": true, "cwd": "/"}'))
    assert json.loads(spec) == {"args": ["sh"], "terminal": False, "cwd": "/"}


def test_a_foreign_prefix_of_the_type_is_accepted() -> None:
    assert process_spec(_request(b'{"args": ["sh"]}', f"type.googleapis.com/{PROCESS_URL}"))


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"{}", b'{"args": "sh"}', b"\xff", b"[" * 99999]
)
def test_what_is_no_process_is_refused_clearly(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="exec spec"):
        process_spec(_request(value))


def test_a_spec_of_another_type_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"containerd\.runc\.v1\.Options"):
        process_spec(_request(b"{}", "containerd.runc.v1.Options"))
