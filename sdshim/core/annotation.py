"""What annotations of an OCI spec ask for: ours, and those of other programs that mean the same
(pure). They stand for options (core/options.py), which win.

A container's labels (containerd's `io.containerd.image.config.stop-signal`, which ctr and nerdctl
set) are not in the spec and do not reach a shim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sdshim.core import unitproperties
from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdshim.core.model import RuntimeOptions

POD = "io.sdshim.pod"
"""The name of the container's pod, for clients that are no CRI."""
NOTIFY = "io.sdshim.notify"
_SWITCHES = {"true": True, "false": False}
_OURS = {"io.sdshim.stop-signal": "KillSignal", "io.sdshim.stop-timeout": "TimeoutStopSec"}
_FOREIGN = {
    "org.opencontainers.image.stopSignal": "KillSignal",
    "nerdctl/stop-timeout": "TimeoutStopSec",
}
"""The first is the image specification's (conversion.md); the second `nerdctl run --stop-timeout`
in seconds: nerdctl copies its own labels to annotations."""


def applied(options: RuntimeOptions, notes: Mapping[str, str]) -> tuple[RuntimeOptions, list[str]]:
    """The options with what the annotations ask for beside them, and what is left out of others'
    annotations because it cannot be read. Raises InvalidArgument naming every fault of ours."""
    foreign = {_FOREIGN[name]: notes[name] for name in _FOREIGN if name in notes}
    unread = [name for name in foreign if unitproperties.faults({name: foreign[name]})]
    ours = {_OURS[name]: notes[name] for name in _OURS if name in notes}
    faults = unitproperties.faults(ours)
    wish = notes.get(NOTIFY, "false")
    if wish not in _SWITCHES:
        faults.append(f"{NOTIFY} {wish[:64]!r} is neither true nor false")
    if faults:
        raise InvalidArgument("annotations: " + "; ".join(faults))
    properties = {**foreign, **ours, **options.unit_properties}
    for name in unread:
        if properties[name] == foreign[name]:
            del properties[name]
    left_out = [f"{key}={notes[key][:64]!r}" for key, name in _FOREIGN.items() if name in unread]
    changed = replace(
        options,
        notify=options.notify or _SWITCHES[wish],
        unit_properties=dict(sorted(properties.items())),
    )
    return changed, left_out
