"""The launcher's little protobuf agrees with the real one."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from sdshim.launcher.wire import Message, delete_response, encode
from sdshim.pb import bootstrap_pb2, task_v2_pb2

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(TEXTS, TEXTS, st.sampled_from([0, -8, -4, 4, 12, 2**31 - 1, -(2**31)]))
def test_encoding_is_what_the_real_library_writes(one: str, two: str, level: int) -> None:
    params = bootstrap_pb2.BootstrapParams(instance_id=one, namespace=two)
    params.log_level = level  # type: ignore[assignment]
    data = params.SerializeToString()
    assert encode((1, one), (2, two), (3, level)) == data
    message = Message(data)
    assert (message.text(1), message.text(2), message.number(3)) == (one, two, level)


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(1, 2**63 - 1))
def test_a_delete_response_reads_as_containerds(pid: int, status: int, time_ns: int) -> None:
    seconds, nanos = divmod(time_ns, 10**9)
    expected = task_v2_pb2.DeleteResponse(
        pid=pid, exit_status=status, exited_at=Timestamp(seconds=seconds, nanos=nanos)
    )
    read = task_v2_pb2.DeleteResponse.FromString(delete_response(pid, status, time_ns))
    assert read == expected


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_value_error(data: bytes) -> None:
    try:
        Message(data)
    except ValueError:
        assert isinstance(Message(data, before=8).fields, dict)


def test_a_cut_message_keeps_the_fields_before_the_cut() -> None:
    data = encode((1, "id"), (2, "ns"), (8, "extension"))
    assert Message(data[:-3], before=8).text(2) == "ns"
    with pytest.raises(ValueError, match="not a protocol buffer"):
        Message(data[:-3])
