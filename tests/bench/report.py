"""The figures as tables for people and as JSON for whoever keeps them. No verdicts."""

from __future__ import annotations

from statistics import median, quantiles
from typing import TYPE_CHECKING

from tests.bench.lives import OURS, PHASES, STOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.bench.lives import Life

POINTS = (50, 90, 99)

# design 9: what sdshim must reach, and aims at
BUDGETS = {"1": (1.1, 0.9), "8": (1.0, 0.8), "cpu": (1.2, 1.0)}
DAEMON_MIB = 45
FURTHER_KIB = (60, 25)
LAUNCHER_MS = 3


def percentile(values: Sequence[float], point: int) -> float:
    """The value that `point` percent are not above, between neighbours."""
    if len(values) < 2 or point == 50:
        return median(values)
    return quantiles(values, n=100, method="inclusive")[point - 1]


def summary(lives: Sequence[Life]) -> dict[str, dict[str, float]]:
    """Phase → {p50, p90, p99} in ms."""
    return {
        phase: {
            f"p{point}": round(percentile([life[phase] for life in lives], point), 2)
            for point in POINTS
        }
        for phase in (*PHASES, "life")
    }


def lives_table(title: str, found: dict[str, list[Life]], key: str) -> Iterable[str]:
    """Both shims phase by phase, and the ratio of their medians."""
    ours, stock = summary(found[OURS]), summary(found[STOCK])
    heads = "".join(f"{f'p{point}':>8}" for point in POINTS)
    yield f"{title} (ms, {len(found[OURS])} lives each)"
    yield f"{'':10}{'sdshim':>8}{'':16}{'runc-v2':>8}{'':16}{'ratio':>8}"
    yield f"{'':10}{heads}{heads}{'p50':>8}"
    for phase in (*PHASES, "life"):
        cells = [*ours[phase].values(), *stock[phase].values()]
        ratio = ours[phase]["p50"] / (stock[phase]["p50"] or float("nan"))
        budget = _budget(key) if phase == "life" else ""
        shown = f"{ratio:8.2f}" if ratio < 10 else f"{'':8}"
        yield f"  {phase:8}{''.join(f'{cell:8.1f}' for cell in cells)}{shown}{budget}"


def _budget(key: str) -> str:
    must, aim = BUDGETS[key]
    return f"   (must ≤ {must}, aim ≤ {aim})"


def cpu_line(found: dict[str, list[float]], parallel: int) -> str:
    """CPU per life: all processes of the host, the driver is outside."""
    ours, stock = median(found[OURS]), median(found[STOCK])
    return (
        f"CPU per life, {parallel} at once: sdshim {ours:.1f} ms, runc-v2 {stock:.1f} ms, "
        f"ratio {ours / stock:.2f}{_budget('cpu')}"
    )


def floor_lines(found: dict[str, list[Life]]) -> Iterable[str]:
    """The bare steps, and what each shim takes beyond them."""
    lives = found["floor"]
    bare = summary(lives)
    yield f"Floor: the same steps without a shim, one at a time (p50 ms, {len(lives)} lives)"
    yield f"{'':10}{'bare':>8}{'sdshim +':>10}{'runc-v2 +':>11}"
    for phase in (*PHASES, "life"):
        base = bare[phase]["p50"]
        ours, stock = (summary(found[runtime])[phase]["p50"] - base for runtime in (OURS, STOCK))
        yield f"  {phase:8}{base:8.1f}{ours:10.1f}{stock:11.1f}"


def memory_lines(
    idle: tuple[float, float], after: float, found: dict[str, dict[int, float]]
) -> Iterable[str]:
    """Pss of all processes of each shim."""
    yield "Memory of all shim processes (Pss, MiB)"
    for name, runtime in (("sdshim", OURS), ("runc-v2", STOCK)):
        counts = found[runtime]
        low, high = min(counts), max(counts)
        further = (counts[high] - counts[low]) / (high - low) * 1024
        cells = ", ".join(f"{n} containers {mib:.1f}" for n, mib in counts.items())
        limits = f"   (must ≤ {FURTHER_KIB[0]}, aim ≤ {FURTHER_KIB[1]})" if runtime == OURS else ""
        yield f"  {name:8}{cells}; each further one {further:.0f} KiB{limits}"
    yield (
        f"  daemon idle, no tracing: {idle[0]:.1f} (Rss {idle[1]:.1f}), after this run "
        f"{after:.1f}   (must < {DAEMON_MIB})"
    )


def launcher_line(true: Sequence[float], start: Sequence[float]) -> str:
    """The launcher's start beside the cheapest process there is."""
    low, high = median(true), median(start)
    return (
        f"Launcher: start {high:.2f} ms, /bin/true {low:.2f} ms, on top {high - low:.2f} ms "
        f"(medians of {len(true)})   (must < {LAUNCHER_MS})"
    )
