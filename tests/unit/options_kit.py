"""Options of a task as messages, and what the daemon makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.core.errors import InvalidArgument
from sdshim.daemon import options
from sdshim.pb import runtimeoptions_pb2

if TYPE_CHECKING:
    from sdshim.core.options import Options


def packed(message: Any, prefix: str = "") -> AnyMessage:
    url = prefix + message.DESCRIPTOR.full_name
    return AnyMessage(type_url=url, value=message.SerializeToString())


def toml(body: str | bytes) -> AnyMessage:
    data = body.encode() if isinstance(body, str) else body
    return packed(runtimeoptions_pb2.Options(type_url="some.Type", config_body=data))


def decode(value: AnyMessage) -> Options:
    return options.decode(value, "runc")


def refusal(value: AnyMessage) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode(value)
    return str(caught.value)
