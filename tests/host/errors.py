"""What can go wrong with a host, each with one line for the reader."""

from __future__ import annotations


class HostError(Exception):
    """Something of the booted host failed; the message says what and shows the log's tail."""


class CannotBoot(HostError):
    """This machine cannot boot a host at all; the message is one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
