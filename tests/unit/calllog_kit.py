"""Shared by the tests of the call log: a call in it, and the same log read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdshim.host.calllog import CallLog

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = bytes(range(16))


def again(log: CallLog, path: Path, **options: Any) -> CallLog:
    log.close()
    return CallLog(path, **options)


def receive(log: CallLog, conn: int, stream: int, payload: bytes = b"p", **changes: Any) -> None:
    facts: dict[str, Any] = {
        "service": "s",
        "method": "m",
        "payload": payload,
        "metadata": {"k": ("a", "b"), "l": ("c",)},
        "namespace": "ns",
        "peer_pid": 7,
        "token": TOKEN,
        "received": 1.5,
        "deadline": None,
    }
    log.received((conn, stream), **(facts | changes))
