from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Options(_message.Message):
    __slots__ = ["log", "log_namespace", "log_stderr_priority", "log_stdout_priority", "notify", "oci_runtime", "unit_properties"]
    class UnitPropertiesEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    LOG_STDERR_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LOG_STDOUT_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_FIELD_NUMBER: _ClassVar[int]
    OCI_RUNTIME_FIELD_NUMBER: _ClassVar[int]
    UNIT_PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    log: str
    log_namespace: str
    log_stderr_priority: str
    log_stdout_priority: str
    notify: bool
    oci_runtime: str
    unit_properties: _containers.ScalarMap[str, str]
    def __init__(self, oci_runtime: _Optional[str] = ..., log: _Optional[str] = ..., notify: bool = ..., unit_properties: _Optional[_Mapping[str, str]] = ..., log_namespace: _Optional[str] = ..., log_stdout_priority: _Optional[str] = ..., log_stderr_priority: _Optional[str] = ...) -> None: ...
