"""OCI LinuxResources → the matching properties of the container's unit (pure).

The container's own cgroup has the values from the OCI runtime, and binds. The unit above it has the
same ones: so that weights count between containers, protected memory is protected, and systemctl
shows them. A unit must never be tighter than the container in it (the v1 kernel refuses a quota
above the parent's, the v2 kernel cuts cpusets): raised first, lowered last.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sdshim.core import blockio
from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.unitspec import Property

INFINITY = 2**64 - 1
_SECOND = 10**6
_PERIOD = 100_000
_MAX_CPU = 8192

OPEN: Mapping[str, Any] = {
    "MemoryMax": INFINITY,
    "MemorySwapMax": INFINITY,
    "TasksMax": INFINITY,
    "CPUQuotaPerSecUSec": INFINITY,
}
"""What would hit the unit's exit hook as well, and the value that does not."""


def decode(value: bytes) -> dict[str, Any]:
    """A LinuxResources from its JSON. Raises InvalidArgument."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("resources are not valid JSON", cause=str(error)) from error
    if not isinstance(found, dict):
        raise InvalidArgument("resources are not an OCI LinuxResources: not a JSON object")
    return found


def properties(resources: Mapping[str, Any], *, unified: bool) -> list[Property]:
    """The unit's properties for what the resources name; what they leave out stays as it is.

    `unified`: cgroup v2; hybrid v1 has other weights and neither swap alone nor cpusets.
    Raises InvalidArgument for a value of a wrong type.
    """
    made = [
        *_memory(_part(resources, "memory"), unified),
        *_cpu(_part(resources, "cpu"), unified),
        *_tasks(_part(resources, "pids")),
        *blockio.properties(_part(resources, "blockIO"), unified=unified),
    ]
    by_name = {one[0]: one for one in made}
    if unified:
        files = {name: str(text) for name, text in _part(resources, "unified").items()}
        by_name.update({one[0]: one for one in (*_raw(files), *blockio.of_files(files))})
    return list(by_name.values())


def raised(old: Mapping[str, Any], new: list[Property]) -> list[Property]:
    """Those of the new properties that must be set first: the ones that give more than `old`."""
    return [one for one in new if one[0] not in old or _more(one[2], old[one[0]])]


def fitting(given: list[Property], used: int | None) -> tuple[list[Property], list[Property]]:
    """(properties to set now, those that must wait): a unit that uses `used` bytes of memory cannot
    be given a limit below that without harm. None: nobody counts, everything fits."""
    later = [one for one in given if one[0] == "MemoryMax" and used is not None and one[2] < used]
    return [one for one in given if one not in later], later


def restored(old: Mapping[str, Any], new: list[Property]) -> list[Property]:
    """What undoes the new properties. A list of devices is added to what is there: those that were
    not in it are opened."""
    made: list[Property] = []
    for name, kind, value in new:
        before = old[name]
        if kind == blockio.KIND:
            known = {one[0] for one in before}
            before = [*before, *((path, INFINITY) for path, _ in value if path not in known)]
        made.append((name, kind, before))
    return made


def _more(new: Any, old: Any) -> bool:
    if isinstance(new, list):  # of devices: the kernel compares nothing there
        return False
    if isinstance(new, bytes):
        return not new or (bool(old) and bool(_bits(new) & ~_bits(old)))
    return bool(new > old)


def _bits(mask: bytes) -> int:
    return int.from_bytes(bytes(mask), "little")


def _part(resources: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = resources.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise InvalidArgument(f"resources: {name} is not an object")
    return part


def _number(part: Mapping[str, Any], name: str) -> int:
    """0 when it is not given; below 0 is without limit."""
    value = part.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= INFINITY:
        raise InvalidArgument(f"resources: {name} is not a number")
    return value


def _limit(value: int) -> int:
    return value if value > 0 else INFINITY


def _memory(part: Mapping[str, Any], unified: bool) -> list[Property]:
    made: list[Property] = []
    limit, swap = _number(part, "limit"), _number(part, "swap")
    if limit:
        made.append(("MemoryMax", "t", _limit(limit)))
    if unified and _number(part, "reservation"):
        made.append(("MemoryLow", "t", _limit(_number(part, "reservation"))))
    # OCI's swap is memory and swap together, as v1 had it
    if unified and (swap < 0 or (limit < 0 and not swap)):
        made.append(("MemorySwapMax", "t", INFINITY))
    elif unified and swap >= limit > 0:
        made.append(("MemorySwapMax", "t", swap - limit))
    return made


def _cpu(part: Mapping[str, Any], unified: bool) -> list[Property]:
    made: list[Property] = []
    shares, quota = _number(part, "shares"), _number(part, "quota")
    if shares > 0:
        shares = min(max(shares, 2), 262144)
        weight = ("CPUWeight", "t", 1 + (shares - 2) * 9999 // 262142)
        made.append(weight if unified else ("CPUShares", "t", shares))
    if quota:
        made += _quota(quota, _number(part, "period") or _PERIOD)
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        text = part.get(key)
        if text and unified:
            made.append((name, "ay", _mask(key, text)))
    return made


def _quota(quota: int, period: int) -> list[Property]:
    if quota < 0 or period < 0:
        return [("CPUQuotaPerSecUSec", "t", INFINITY)]
    per_second = -(-quota * _SECOND // period)  # rounded up: not tighter than the container
    per_second = min(per_second, INFINITY)
    return [("CPUQuotaPeriodUSec", "t", period), ("CPUQuotaPerSecUSec", "t", per_second)]


def _mask(key: str, text: object) -> bytes:
    """`0-3,8` as systemd's array: bit n of it is CPU n."""
    bits = 0
    for word in text.split(",") if isinstance(text, str) else ("?",):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= _MAX_CPU:
            raise InvalidArgument(f"resources: {key} is not a list such as 0-3,8")
        bits |= (1 << (last + 1)) - (1 << first)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _tasks(part: Mapping[str, Any]) -> list[Property]:
    limit = _number(part, "limit")
    return [("TasksMax", "t", _limit(limit))] if limit else []


_FILES = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}
"""Files of cgroup v2 that are one property each."""


_IDLE = 0
"""CPUWeight=idle, from systemd 252 on."""


def _raw(files: Mapping[str, str]) -> list[Property]:
    """The spec's `unified`: texts for files; what is no number there is the runtime's to refuse."""
    made: list[Property] = []
    for file, name in _FILES.items():
        text = files.get(file, "").strip()
        if text == "max":
            made.append((name, "t", INFINITY))
        elif re.fullmatch(r"[0-9]{1,18}", text):
            made.append((name, "t", int(text)))
    if files.get("cpu.idle", "").strip() == "1":
        made.append(("CPUWeight", "t", _IDLE))
    for file, name in (("cpuset.cpus", "AllowedCPUs"), ("cpuset.mems", "AllowedMemoryNodes")):
        if files.get(file, "").strip():
            made.append((name, "ay", _mask(file, files[file])))
    words = files.get("cpu.max", "").split()
    if words and re.fullmatch(r"max|[0-9]{1,15}", words[0]):
        wished = len(words) > 1 and re.fullmatch(r"[0-9]{1,15}", words[1])
        period = int(words[1]) if wished else _PERIOD
        quota = -1 if words[0] == "max" else int(words[0])
        if quota and period:
            made += _quota(quota, period)
    return made
