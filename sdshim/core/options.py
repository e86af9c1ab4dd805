"""The options of a task, wherever they come from: plain values → RuntimeOptions (pure).

Three messages carry them: containerd.runc.v1.Options, our own sdshim.v1.Options, and
runtimeoptions.v1.Options with TOML, whose keys are ours (as in our message) and runc's as the CRI
writes them. Each becomes a dict of the messages' field names; this module checks names, types and
values, and reports every fault at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdshim.core import logs, unitproperties
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_ID = 2**32 - 1
"""(uid_t) -1, "leave it" to chown(2): nobody's id."""
_MAX_TEXT = 4095
_TABLE = "unit_properties"

RUNC_KEYS = {
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ShimCgroup": "shim_cgroup",
    "IoUid": "io_uid",
    "IoGid": "io_gid",
    "BinaryName": "binary_name",
    "Root": "root",
    "CriuPath": "criu_path",
    "SystemdCgroup": "systemd_cgroup",
    "CriuImagePath": "criu_image_path",
    "CriuWorkPath": "criu_work_path",
}
"""The CRI's keys → fields of containerd.runc.v1.Options."""
GENERIC_KEYS = {"TypeUrl": "type_url", "ConfigPath": "config_path"}
"""The CRI's own two, which stand in the table that it hands on."""
OUR_KEYS = {name: name for name in ("oci_runtime", *logs.KEYS, "notify", _TABLE)}
KEYS = {**OUR_KEYS, **RUNC_KEYS, **GENERIC_KEYS}
_SWITCHES = ("no_pivot_root", "no_new_keyring", "systemd_cgroup", "notify")
_IDS = ("io_uid", "io_gid")
_PATHS = ("root", "criu_path", "criu_image_path", "criu_work_path")


@dataclass(frozen=True, slots=True)
class Options:
    """What the options of a task come to."""

    runtime: RuntimeOptions
    ignored: tuple[str, ...] = ()
    """Wishes that one daemon for all tasks cannot fulfil, for a warning."""


def from_toml(document: Mapping[str, Any], default_runtime: str, source: str) -> Options:
    """The options in a TOML document. Raises InvalidArgument naming every fault."""
    unknown = [key for key in document if key not in KEYS]
    faults = []
    if unknown:
        faults.append(f"unknown keys {', '.join(repr(key[:100]) for key in unknown)}")
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key in KEYS:
            fault = _wrong_type(KEYS[key], value)
            if fault:
                faults.append(f"{key} must be {fault}")
            else:
                values[KEYS[key]] = _plain(value)
    if values.get("config_path"):
        faults.append("ConfigPath cannot stand inside a configuration")
    return _make(values, default_runtime, source, faults)


def from_message(values: Mapping[str, Any], default_runtime: str, source: str) -> Options:
    """The options in the fields of a message. Raises InvalidArgument naming every fault."""
    return _make(values, default_runtime, source, [])


def _plain(value: Any) -> Any:
    """A table's values as the texts that a unit file would have."""
    if not isinstance(value, dict):
        return value
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in value.items()}


def _wrong_type(name: str, value: object) -> str:
    """What a value should have been, and is not; empty when it is."""
    if name in _SWITCHES:
        return "" if isinstance(value, bool) else f"true or false, not {shown(value)}"
    if name in _IDS:
        right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < NO_ID
        return "" if right else f"a number from 0 to {NO_ID - 1}, not {shown(value)}"
    if name != _TABLE:
        return "" if isinstance(value, str) else f"text, not {shown(value)}"
    if not isinstance(value, dict):
        return f"a table, not {shown(value)}"
    wrong = [
        key
        for key, one in value.items()
        if not isinstance(one, str | int) or (isinstance(one, int) and abs(one) > 2**64)
    ]
    return f"a table of texts, but {', '.join(repr(k[:100]) for k in wrong)}" if wrong else ""


def shown(value: object) -> str:
    """A value that was refused, cut short."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 64 else text[:61] + "…"


def _make(
    values: Mapping[str, Any], default_runtime: str, source: str, faults: list[str]
) -> Options:
    faults += _check(values)
    if faults:
        raise InvalidArgument(f"{source}: " + "; ".join(faults))
    defaults = RuntimeOptions()
    runtime = RuntimeOptions(
        binary=values.get("oci_runtime") or values.get("binary_name") or default_runtime,
        root=values.get("root") or defaults.root,
        no_pivot_root=values.get("no_pivot_root", False),
        no_new_keyring=values.get("no_new_keyring", False),
        io_uid=values.get("io_uid", 0),
        io_gid=values.get("io_gid", 0),
        criu_path=values.get("criu_path", ""),
        criu_image_path=values.get("criu_image_path", ""),
        criu_work_path=values.get("criu_work_path", ""),
        **{key: values.get(key, "") for key in logs.KEYS},
        unit_properties=dict(sorted((values.get(_TABLE) or {}).items())),
        notify=values.get("notify", False),
    )
    group = values.get("shim_cgroup")
    return Options(runtime, (f"shim_cgroup {group!r}",) if group else ())


def _check(values: Mapping[str, Any]) -> list[str]:
    texts = {name: text for name, text in values.items() if isinstance(text, str)}
    faults = [
        f"{name} {shown(text)} has NUL or other unprintable characters"
        for name, text in texts.items()
        if not text.isprintable()
    ]
    faults += [
        f"{name} {shown(text)} is longer than {_MAX_TEXT} characters"
        for name, text in texts.items()
        if len(text) > _MAX_TEXT
    ]
    faults += [
        f"{name} {shown(values[name])} is not an absolute path"
        for name in _PATHS
        if values.get(name) and not values[name].startswith("/")
    ]
    faults += [f"{name} {NO_ID} is not an id" for name in _IDS if values.get(name) == NO_ID]
    return faults + _check_runtime(values) + _check_ours(values)


def _check_runtime(values: Mapping[str, Any]) -> list[str]:
    named = [values[name] for name in ("oci_runtime", "binary_name") if values.get(name)]
    faults = [
        f"OCI runtime {shown(name)} is neither a name nor an absolute path"
        for name in named
        if "/" in name and not name.startswith("/")
    ]
    if len(set(named)) > 1:
        faults.append(f"two OCI runtimes, {shown(named[0])} and {shown(named[1])}")
    return faults


def _check_ours(values: Mapping[str, Any]) -> list[str]:
    faults = logs.faults({key: values.get(key, "") for key in logs.KEYS})
    return faults + unitproperties.faults(values.get(_TABLE) or {})
