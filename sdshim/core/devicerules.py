"""The device rules of an OCI spec → DeviceAllow= of the unit, for people to see (pure).

The OCI runtime sets the rules on the container's cgroup, and they bind there. The unit's are never
tighter: what systemd cannot say (an exception from what is allowed, a minor number of every major)
is left out or widened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.unitspec import Property

_KINDS = {"c": "char", "u": "char", "b": "block"}
_EVERY = "rwm"


def properties(rules: object) -> list[Property]:
    """The unit's properties; none for a container that may use every device, or for what are no
    rules."""
    allowed: dict[str, str] = {}
    closed = False
    for rule in rules if isinstance(rules, list) else []:
        if not isinstance(rule, dict):
            return []
        allows = rule.get("allow") is True
        if _is_for_all(rule):
            closed, allowed = not allows, {}
        elif allows:
            for name in _names(rule):
                allowed[name] = _joined(allowed.get(name, ""), str(rule.get("access") or _EVERY))
    if not closed:
        return []
    # `closed` lets systemd's own pseudo devices in: the exit hook needs /dev/null.
    return [("DevicePolicy", "s", "closed"), ("DeviceAllow", "a(ss)", list(allowed.items()))]


def _is_for_all(rule: dict[str, Any]) -> bool:
    whole = sorted(str(rule.get("access") or _EVERY)) == sorted(_EVERY)
    return rule.get("type") in (None, "", "a") and whole and not any(_numbers(rule))


def _names(rule: dict[str, Any]) -> Sequence[str]:
    kind = _KINDS.get(str(rule.get("type") or ""))
    major, minor = _numbers(rule)
    kinds = [kind] if kind else ["char", "block"]
    if not major:
        return [f"{one}-*" for one in kinds]
    return [f"/dev/{one}/{major}:{minor}" if minor else f"{one}-{major}" for one in kinds]


def _numbers(rule: dict[str, Any]) -> tuple[str, str]:
    """Major and minor; empty for any."""
    found = (rule.get(name) for name in ("major", "minor"))
    major, minor = (str(n) if isinstance(n, int) and n >= 0 else "" for n in found)
    return major, minor


def _joined(one: str, other: str) -> str:
    return "".join(letter for letter in _EVERY if letter in one + other)
