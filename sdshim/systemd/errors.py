"""Errors of the bus and of systemd: D-Bus error names in, our exceptions out, once. Pure.

Three questions decide the kind: what it means to a client (the base class), whether the call may be
sent again (`NotDelivered`: yes; `Uncertain`: only after a look), and what callers tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdshim.core.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ShimError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DBUS = "org.freedesktop.DBus"
SYSTEMD = "org.freedesktop.systemd1"
DISCONNECTED = f"{DBUS}.Error.Disconnected"
NO_SERVER = f"{DBUS}.Error.NoServer"


class BusError(ShimError):
    """An error reply; `name` is the D-Bus error name, `text` what came with it."""

    def __init__(self, name: str, text: str, call: str = "") -> None:
        super().__init__(call or name, cause=f"{text} ({name})" if call else text)
        self.name = name
        self.text = text


class NoSuchUnit(BusError, NotFound):
    """systemd has no unit of this name in memory (or cannot load one)."""


class NoSuchJob(BusError, NotFound):
    """The job has ended."""


class UnitExists(BusError, AlreadyExists):
    """A unit of this name is loaded or has a unit file."""


class BadProperty(BusError, InvalidArgument):
    """systemd refused a property: unknown, wrong type, or a value it cannot take."""


class AccessDenied(BusError, PermissionDenied):
    """The bus or systemd does not let us do this."""


class Destructive(BusError, Unavailable):
    """A queued job stands in the way (TransactionIsDestructive); a moment later it may not."""


class Uncertain(BusError, Unavailable):
    """No answer: the call may or may not have been carried out. Look, then decide."""


class NotDelivered(BusError, Unavailable):
    """The call never reached its destination; it can be sent again."""


_ERRORS: Mapping[str, type[BusError]] = {
    f"{SYSTEMD}.NoSuchUnit": NoSuchUnit,
    f"{SYSTEMD}.LoadFailed": NoSuchUnit,
    f"{SYSTEMD}.NoSuchJob": NoSuchJob,
    f"{SYSTEMD}.UnitExists": UnitExists,
    f"{SYSTEMD}.TransactionIsDestructive": Destructive,
    f"{DBUS}.Error.InvalidArgs": BadProperty,
    f"{DBUS}.Error.PropertyReadOnly": BadProperty,
    "System.Error.ENXIO": BadProperty,
    f"{DBUS}.Error.AccessDenied": AccessDenied,
    f"{DBUS}.Error.NoReply": Uncertain,
    f"{DBUS}.Error.Timeout": Uncertain,
    DISCONNECTED: Uncertain,
    f"{DBUS}.Error.ServiceUnknown": NotDelivered,
    f"{DBUS}.Error.NameHasNoOwner": NotDelivered,
    NO_SERVER: NotDelivered,
}


def error_from(name: str, text: str, call: str = "") -> BusError:
    """The exception for a D-Bus error name; unknown ones are plain `BusError`."""
    kind = _ERRORS.get(name)
    if kind is None:
        # systemd1 cannot be activated by the bus: while PID 1 has no name, that is what is tried
        kind = NotDelivered if name.startswith(f"{DBUS}.Error.Spawn.") else BusError
    return kind(name, text, call)
