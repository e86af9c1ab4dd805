from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

CREATED: Status
DESCRIPTOR: _descriptor.FileDescriptor
PAUSED: Status
PAUSING: Status
RUNNING: Status
STOPPED: Status
UNKNOWN: Status

class ProcessInfo(_message.Message):
    __slots__ = ["info", "pid"]
    INFO_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    info: _any_pb2.Any
    pid: int
    def __init__(self, pid: _Optional[int] = ..., info: _Optional[_Union[_any_pb2.Any, _Mapping]] = ...) -> None: ...

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
