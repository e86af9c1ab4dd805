"""Unit properties that the options of a task may add: which, and how their texts become D-Bus
values (pure).

Written as in a unit file (systemd's sizes, percentages and time spans), checked before anything is
made. Allowed is what concerns the unit as a whole; what systemd would do to the process that it
starts (Nice=, Limit…=, sandboxing) would hit the OCI runtime and belongs in the OCI spec, and what
the unit's life rests on (Type=, KillMode=, dependencies, Slice= …) is ours.

Limits are `late`: at the start of the unit they would hit the OCI runtime's `create` (design 4).
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sdshim.core.unitspec import Property

INFINITY = 2**64 - 1
_MAX_TEXT = 256
_MAX_CPU = 8192
_SECOND = 10**6
_SIZES = {"": 1, **{suffix: 1024**power for power, suffix in enumerate("BKMGTPE")}}
_SPANS: dict[str, int] = {
    **dict.fromkeys(("us", "usec", "\N{MICRO SIGN}s", "\N{GREEK SMALL LETTER MU}s"), 1),
    **dict.fromkeys(("ms", "msec"), 1000),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), _SECOND),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60 * _SECOND),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600 * _SECOND),
    **dict.fromkeys(("d", "day", "days"), 86400 * _SECOND),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400 * _SECOND),
    **dict.fromkeys(("M", "month", "months"), 2629800 * _SECOND),
    **dict.fromkeys(("y", "year", "years"), 31557600 * _SECOND),
}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_SIZE = re.compile(rf"{_NUMBER}\s*([BKMGTPE]?)")
_SPAN = re.compile(rf"\s*{_NUMBER}\s*([A-Za-z\N{{MICRO SIGN}}\N{{GREEK SMALL LETTER MU}}]*)\s*")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]{1,2})?)%")
_TRUE = ("1", "yes", "y", "true", "t", "on")
_FALSE = ("0", "no", "n", "false", "f", "off")


def size(text: str) -> int:
    """Bytes of `64M`, `1.5G`, `infinity`. Raises ValueError."""
    if text == "infinity":
        return INFINITY
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("not a size (such as 64M, 1.5G or infinity)")
    return _fits(int(Fraction(match[1]) * _SIZES[match[2]]))


def time_span(text: str) -> int:
    """Microseconds of `90`, `1min 30s`, `infinity`. Raises ValueError."""
    if text == "infinity":
        return INFINITY
    total, at = Fraction(0), 0
    while at < len(text) or not at:
        match = _SPAN.match(text, at)
        if not match or match[2] not in _SPANS:
            raise ValueError("not a time span (such as 90, 1min 30s or infinity)")
        total += Fraction(match[1]) * _SPANS[match[2]]
        at = match.end()
    return _fits(int(total))


def permyriad(text: str) -> int | None:
    """Hundredths of a percent of `50%` or `12.5%`; None when it is no percentage."""
    match = _PERCENT.fullmatch(text)
    return int(Fraction(match[1]) * 100) if match else None


def _fits(number: int) -> int:
    if number >= INFINITY:
        raise ValueError("too large")
    return number


def _positive(number: int) -> int:
    if number <= 0:
        raise ValueError("must be above 0")
    return number


def _number(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
        raise ValueError(f"not a number from {low} to {high}")
    return int(text)


# --- one function for each kind of value: (D-Bus name, text) → property


def _text(name: str, text: str) -> Property:
    if not text or not text.isprintable() or len(text) > _MAX_TEXT:
        raise ValueError(f"must be 1 to {_MAX_TEXT} printable characters")
    return name, "s", text


def _switch(name: str, text: str) -> Property:
    word = text.lower()
    if word not in _TRUE + _FALSE:
        raise ValueError("not yes or no")
    return name, "b", word in _TRUE


def _signal(name: str, text: str) -> Property:
    word = text.removeprefix("SIG")
    if re.fullmatch(r"[0-9]{1,3}", word):
        return name, "i", _number(word, 1, signal.SIGRTMAX)
    if match := re.fullmatch(r"RTMIN(?:\+([0-9]{1,2}))?", word):
        number = signal.SIGRTMIN + int(match[1] or 0)
        return name, "i", _number(str(number), signal.SIGRTMIN, signal.SIGRTMAX)
    known = signal.Signals.__members__.get(f"SIG{word}")
    if known is None:
        raise ValueError("not a signal")
    return name, "i", int(known)


def _span(name: str, text: str) -> Property:
    return name, "t", _positive(time_span(text))


def _timeout(name: str, text: str) -> Property:
    """0 switches the timeout off, as in a unit file."""
    return name, "t", time_span(text) or INFINITY


def _cpu_weight(name: str, text: str) -> Property:
    return (name, "t", 0) if text == "idle" else _weight(name, text)


def _numbers(name: str, text: str) -> Property:
    """`0-3 8` or `0-3,8`: bit n of the array is CPU (or node) n."""
    bits = 0
    for word in re.split(r"[\s,]+", text):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= _MAX_CPU:
            raise ValueError("not a list such as 0-3,8")
        bits |= (1 << (last + 1)) - (1 << first)
    return name, "ay", bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _of_device(text: str) -> tuple[str, str]:
    device, _, value = text.partition(" ")
    if not device.startswith("/") or ".." in device.split("/") or not value.strip():
        raise ValueError("not a device or file and a value (such as /dev/vda 10M)")
    return device, value.strip()


def _rate(name: str, text: str) -> Property:
    """Bytes or operations a second of one device; K, M … are powers of 1000 here."""
    device, value = _of_device(text)
    match = _SIZE.fullmatch(value)
    if value != "infinity" and (not match or match[2] == "B"):
        raise ValueError("not a rate (such as /dev/vda 10M or /dev/vda infinity)")
    power = "KMGTPE".find(match[2]) + 1 if match and match[2] else 0
    rate = _fits(int(Fraction(match[1]) * 1000**power)) if match else INFINITY
    return name, "a(st)", [(device, _positive(rate))]


def _device_weight(name: str, text: str) -> Property:
    device, value = _of_device(text)
    return name, "a(st)", [(device, _number(value, 1, 10000))]


def _weight(name: str, text: str) -> Property:
    return name, "t", _number(text, 1, 10000)


def _quota(name: str, text: str) -> Property:
    share = permyriad(text)
    if share is None:
        raise ValueError("not a percentage (such as 50% or 200%)")
    return name, "t", _fits(_positive(share * _SECOND // 10000))


def _burst(name: str, text: str) -> Property:
    return name, "u", _number(text, 1, 2**32 - 1)


def _memory(name: str, text: str) -> Property:
    """A percentage, of the machine's memory, goes by a property of its own."""
    share = permyriad(text)
    return _scaled(name, share) if share is not None else (name, "t", size(text))


def _memory_above_0(name: str, text: str) -> Property:
    made = _memory(name, text)
    _positive(made[2])
    return made


def _tasks(name: str, text: str) -> Property:
    share = permyriad(text)
    if share is not None:
        made = _scaled(name, share)
        _positive(made[2])
        return made
    return name, "t", INFINITY if text == "infinity" else _number(text, 1, INFINITY - 1)


def _scaled(name: str, share: int) -> Property:
    if share > 10000:
        raise ValueError("more than 100%")
    return f"{name}Scale", "u", (share * (2**32 - 1) + 5000) // 10000


@dataclass(frozen=True, slots=True)
class Setting:
    """One property that may be given."""

    bus_name: str
    parse: Callable[[str, str], Property]
    late: bool = False
    """Set when the runtime's `create` has ended."""


SETTINGS: dict[str, Setting] = {
    "Description": Setting("Description", _text),
    "KillSignal": Setting("KillSignal", _signal),
    "LogRateLimitIntervalSec": Setting("LogRateLimitIntervalUSec", _span),
    "LogRateLimitBurst": Setting("LogRateLimitBurst", _burst),
    "RuntimeMaxSec": Setting("RuntimeMaxUSec", _span),
    "TimeoutStopSec": Setting("TimeoutStopUSec", _timeout),
    "CPUAccounting": Setting("CPUAccounting", _switch),
    "IOAccounting": Setting("IOAccounting", _switch),
    "IPAccounting": Setting("IPAccounting", _switch),
    "MemoryAccounting": Setting("MemoryAccounting", _switch),
    "TasksAccounting": Setting("TasksAccounting", _switch),
    "CPUQuota": Setting("CPUQuotaPerSecUSec", _quota, late=True),
    "CPUQuotaPeriodSec": Setting("CPUQuotaPeriodUSec", _span, late=True),
    "CPUWeight": Setting("CPUWeight", _cpu_weight, late=True),
    "AllowedCPUs": Setting("AllowedCPUs", _numbers, late=True),
    "AllowedMemoryNodes": Setting("AllowedMemoryNodes", _numbers, late=True),
    "IOWeight": Setting("IOWeight", _weight, late=True),
    "IODeviceWeight": Setting("IODeviceWeight", _device_weight, late=True),
    "IOReadBandwidthMax": Setting("IOReadBandwidthMax", _rate, late=True),
    "IOWriteBandwidthMax": Setting("IOWriteBandwidthMax", _rate, late=True),
    "IOReadIOPSMax": Setting("IOReadIOPSMax", _rate, late=True),
    "IOWriteIOPSMax": Setting("IOWriteIOPSMax", _rate, late=True),
    "MemoryHigh": Setting("MemoryHigh", _memory_above_0, late=True),
    "MemoryLow": Setting("MemoryLow", _memory, late=True),
    "MemoryMax": Setting("MemoryMax", _memory_above_0, late=True),
    "MemoryMin": Setting("MemoryMin", _memory, late=True),
    "MemorySwapMax": Setting("MemorySwapMax", _memory, late=True),
    "TasksMax": Setting("TasksMax", _tasks, late=True),
}
"""By their names in unit files."""


def faults(texts: Mapping[str, str]) -> list[str]:
    """What is wrong with the texts, one sentence each; nothing when all can be used."""
    found = []
    refused = sorted(name for name in texts if name not in SETTINGS)
    if refused:
        names = ", ".join(repr(name[:64]) for name in refused)
        found.append(f"unit properties {names} may not be given (allowed: {', '.join(SETTINGS)})")
    for name, text in texts.items():
        if name in SETTINGS:
            try:
                _property(name, text)
            except ValueError as error:
                found.append(f"unit property {name}={text[:64]!r}: {error}")
    return found


def at_start(texts: Mapping[str, str]) -> list[Property]:
    """The properties that the unit starts with."""
    return _chosen(texts, late=False)


def late(texts: Mapping[str, str]) -> list[Property]:
    """The properties for the time when the runtime's `create` has ended."""
    return _chosen(texts, late=True)


def _chosen(texts: Mapping[str, str], *, late: bool) -> list[Property]:
    """Names not known here were checked by a newer version, whose record this is."""
    return [_property(n, t) for n, t in texts.items() if n in SETTINGS and SETTINGS[n].late == late]


def _property(name: str, text: str) -> Property:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"longer than {_MAX_TEXT} characters")
    setting = SETTINGS[name]
    return setting.parse(setting.bus_name, text.strip())
