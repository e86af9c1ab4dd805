"""OCI blockIO and the io files of cgroup v2 → properties of the unit (pure).

Devices are named `/dev/block/MAJOR:MINOR`, which systemd understands without a file of that name.
hybrid v1 has other properties, and none for operations a second.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.unitspec import Property

INFINITY = 2**64 - 1
KIND = "a(st)"
"""D-Bus type of the lists: (device, number). What is set is added to what is there, by device."""
_V2 = {
    "throttleReadBpsDevice": "IOReadBandwidthMax",
    "throttleWriteBpsDevice": "IOWriteBandwidthMax",
    "throttleReadIOPSDevice": "IOReadIOPSMax",
    "throttleWriteIOPSDevice": "IOWriteIOPSMax",
}
_V1 = {
    "throttleReadBpsDevice": "BlockIOReadBandwidth",
    "throttleWriteBpsDevice": "BlockIOWriteBandwidth",
}
_KEYS = dict(zip(("rbps", "wbps", "riops", "wiops"), _V2.values(), strict=True))
"""Of io.max."""


def properties(part: Mapping[str, Any], *, unified: bool) -> list[Property]:
    """The properties for a LinuxBlockIO. Raises InvalidArgument for a value of a wrong type."""
    made: list[Property] = []
    if weight := _weight(part.get("weight"), unified):
        made.append(("IOWeight" if unified else "BlockIOWeight", "t", weight))
    weights = [
        (path, weight)
        for path, one in _devices(part, "weightDevice")
        if (weight := _weight(one.get("weight"), unified))
    ]
    if weights:
        made.append(("IODeviceWeight" if unified else "BlockIODeviceWeight", KIND, weights))
    for key, name in (_V2 if unified else _V1).items():
        rates = [(path, _rate(one)) for path, one in _devices(part, key)]
        if rates:
            made.append((name, KIND, rates))
    return made


def of_files(files: Mapping[str, str]) -> list[Property]:
    """The properties for io.max and io.weight; what cannot be read is the runtime's to refuse."""
    made: list[Property] = []
    match = re.fullmatch(r"(?:default\s+)?(\d{1,5})", files.get("io.weight", "").strip())
    if match and 1 <= int(match[1]) <= 10000:
        made.append(("IOWeight", "t", int(match[1])))
    limits: dict[str, list[tuple[str, int]]] = {}
    for line in files.get("io.max", "").splitlines():
        device, *words = line.split() or [""]
        if not re.fullmatch(r"\d{1,10}:\d{1,10}", device):
            continue
        for word in words:
            key, _, text = word.partition("=")
            if key in _KEYS and re.fullmatch(r"max|\d{1,18}", text):
                value = INFINITY if text == "max" else int(text)
                limits.setdefault(_KEYS[key], []).append((f"/dev/block/{device}", value))
    return [*made, *((name, KIND, value) for name, value in limits.items())]


def _devices(part: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    listed = part.get(key) or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidArgument(f"resources: {key} is not a list of objects")
    return [(f"/dev/block/{_id(one, 'major')}:{_id(one, 'minor')}", one) for one in listed]


def _id(one: Mapping[str, Any], name: str) -> int:
    value = one.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InvalidArgument(f"resources: {name} of a block device is not a number")
    return value


def _weight(value: object, unified: bool) -> int:
    """Of OCI's 10 to 1000, as the runtime converts it; 0 when it is not given or out of range."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument("resources: weight is not a number")
    if not 10 <= value <= 1000:
        return 0
    return 1 + (value - 10) * 9999 // 990 if unified else value


def _rate(one: Mapping[str, Any]) -> int:
    """Of a device; 0 is without limit."""
    value = one.get("rate")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < INFINITY:
        raise InvalidArgument("resources: rate of a block device is not a number")
    return value or INFINITY
