"""Protobuf messages: generated from proto/ by `make proto`, never edited (design 8).

A request needs `task_v2_pb2` (its classes also decode v3: the same fields), `events_pb2`,
`ttrpc_events_pb2` and `runc_pb2`; metrics, sandbox, bootstrap, introspection, v3 and our own
options are files of their own, imported where they are used. Any and Timestamp values are filled by
`sdshim.pb.wellknown`, not by `Any.Pack`, whose prefix containerd does not understand.
"""
