"""`sdshim doctor`: what is wrong on this node, and what to do about it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from sdshim.core.diagnosis import Level, exit_status, lasting
from sdshim.core.errors import ShimError
from sdshim.survey import checks, facts

if TYPE_CHECKING:
    import argparse

    from sdshim.core.config import Config
    from sdshim.core.diagnosis import Finding
    from sdshim.survey.facts import Facts

SECOND_LOOK_S = 0.5
"""Far more than an operation needs between two steps, also on a slow machine."""
CANNOT_TELL = 3


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Look, repair if asked to, tell; returns the exit status for monitoring."""
    try:
        return asyncio.run(_run(arguments, config))
    except ShimError as error:
        if arguments.json:
            print(json.dumps({"exit_status": CANNOT_TELL, "error": str(error)}))
        else:
            print(f"sdshim doctor: {error}")
        return CANNOT_TELL


async def _run(arguments: argparse.Namespace, config: Config) -> int:
    seen, findings = await look(config)
    repaired: list[tuple[Finding, str]] = []
    tried: set[tuple[str, str]] = set()
    while arguments.fix:
        wanted = [f for f in findings if f.repair and f.identity not in tried]
        if not wanted:
            break
        from sdshim.survey.repair import repair

        tried |= {finding.identity for finding in wanted}
        repaired += await repair(config, wanted)
        seen, findings = await look(config)  # one repair may bare the next remains
    status = exit_status(findings)
    if arguments.json:
        document = _json(seen, findings, repaired, status)
        print(json.dumps(document, indent=2))
    else:
        _tell(seen, findings, repaired, verbose=arguments.verbose)
    return status


async def look(config: Config) -> tuple[Facts, list[Finding]]:
    """The node and what is wrong with it; what may be an operation under way is looked at twice."""
    seen = await facts.gather(config)
    found = checks.run(seen)
    if any(finding.passing for finding in found):
        await asyncio.sleep(SECOND_LOOK_S)
        seen = await facts.gather(config)
        found = lasting(found, checks.run(seen))
    return seen, found


def _tell(
    seen: Facts, findings: list[Finding], repaired: list[tuple[Finding, str]], *, verbose: bool
) -> None:
    for finding, problem in repaired:
        if problem:
            print(f"not repaired: {finding.text}: {finding.repair}: {problem}")
        else:
            print(f"repaired: {finding.text}: {finding.repair}")
    for finding in sorted(findings, key=_order):
        print(f"{_word(finding.level)} [{finding.check}] {finding.text}")
        if finding.advice:
            print(f"  → {finding.advice}")
    if verbose:
        for name, value in _about(seen).items():
            print(f"{name}: {value if value not in ('', None) else 'not there'}")
        passed = {name for name, _ in checks.CHECKS} - {finding.check for finding in findings}
        print(f"passed: {', '.join(name for name, _ in checks.CHECKS if name in passed)}")


def _word(level: Level) -> str:
    return "cannot tell" if level is Level.UNKNOWN else level.name.lower()


def _order(finding: Finding) -> int:
    return (Level.FAULT, Level.UNKNOWN, Level.WARNING).index(finding.level)


def _about(seen: Facts) -> dict[str, Any]:
    """What was looked at, for the record."""
    return {
        **seen.versions,
        "daemon": seen.daemon.get("ActiveState"),
        "daemon restarts": seen.daemon.get("NRestarts"),
        "fd store": seen.daemon.get("NFileDescriptorStore"),
        "fd store max": seen.daemon.get("FileDescriptorStoreMax"),
        "tasks": len(seen.tasks),
        "units": len(seen.units) if seen.units is not None else None,
        "containerds": ", ".join(view.address for view in seen.views),
    }


def _json(
    seen: Facts, findings: list[Finding], repaired: list[tuple[Finding, str]], status: int
) -> dict[str, Any]:
    return {
        "exit_status": status,
        "findings": [_finding(finding) for finding in sorted(findings, key=_order)],
        "repairs": [{**_finding(f), "error": problem or None} for f, problem in repaired],
        "facts": _about(seen),
        "checks": [name for name, _ in checks.CHECKS],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "level": _word(finding.level),
        "subject": finding.subject,
        "text": finding.text,
        "advice": finding.advice or None,
        "repair": str(finding.repair) if finding.repair else None,
    }
