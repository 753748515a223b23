"""What runs of one precision cost, beside the reference. What was not measured is not estimated."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mp_plugin.checks import is_number
from mp_plugin.compare.groups import Group
from mp_plugin.compare.read_runs import ComparedRun
from mp_plugin.peak_memory import AFTER_OTHERS

SECONDS_PER_HOUR = 3600
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as much as the reference: the median over pairs of runs, and how far these spread."""

    middle: float
    low: float
    high: float
    pairs: int
    """Runs with the same seed; 0 where the medians of the groups were divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the runs of a group cost: medians over them, None where it is not known."""

    step_ms: float | None
    samples_per_second: float | None
    train_seconds: float | None
    waiting_share: float | None
    peak_memory_bytes: float | None
    peak_memory_of: str
    energy_joules: float | None
    energy_source: str
    """How it was measured, or `not measured` and why."""
    money: float | None
    """Per run, in the currency of the price per hour."""
    speed: Ratio | None = None
    """Samples per second, or steps per second where the former are not known, as a multiple of the reference."""
    memory: Ratio | None = None
    energy: Ratio | None = None


def cost_of(group: Group, reference: Group, price_per_hour: float | None = None) -> Cost:
    """Return what the finished runs of a group cost, beside those of the reference.

    Args:
        group: of one precision.
        reference: the one to divide by; may be the group itself.
        price_per_hour: of one device; a run costs its training time on each of its ranks.
    """
    runs = group.finished
    joules = [energy_joules(run) for run in runs]
    # One run without a measurement leaves the group without: an average over the others is of other runs.
    has_energy = bool(runs) and all(each is not None for each in joules)
    return Cost(
        step_ms=_median(runs, step_ms),
        samples_per_second=_median(runs, samples_per_second),
        train_seconds=_median(runs, _number("train_seconds")),
        waiting_share=_median(runs, _number("waiting_share")),
        peak_memory_bytes=_median(runs, _number("peak_memory_bytes")),
        peak_memory_of=_only(runs, "peak_memory_of"),
        energy_joules=_median(runs, energy_joules) if has_energy else None,
        energy_source=_energy_source(runs, has_energy=has_energy),
        money=None if price_per_hour is None else _median(runs, lambda run: money(run, price_per_hour)),
        speed=_ratio(group, reference, samples_per_second) or _ratio(group, reference, _steps_per_second),
        memory=_ratio(group, reference, _number("peak_memory_bytes"), same="peak_memory_of")
        if not follows_others(group)
        else None,
        energy=_ratio(group, reference, energy_joules, same="energy_source") if has_energy else None,
    )


def step_ms(run: ComparedRun) -> float | None:
    """Return the median time of a run's steps in milliseconds."""
    steps = run.cost.get("step_ms")
    return _positive(steps.get("median")) if isinstance(steps, Mapping) else None


def samples_per_second(run: ComparedRun) -> float | None:
    """Return how many samples a run took in a second, over all ranks."""
    return _positive(run.cost.get("samples_per_second"))


def energy_joules(run: ComparedRun) -> float | None:
    """Return a run's energy in joules; None where none was measured."""
    return _positive(run.cost.get("energy_joules"))


def money(run: ComparedRun, price_per_hour: float) -> float | None:
    """Return what a run cost: its training time on each of its ranks, at a price per device and hour."""
    seconds, ranks = _positive(run.cost.get("train_seconds")), _positive(run.cost.get("ranks"))
    return None if seconds is None or ranks is None else seconds / SECONDS_PER_HOUR * ranks * price_per_hour


def follows_others(group: Group) -> bool:
    """Return whether a run's process had trained before, so that its memory tells of those runs too."""
    return any(str(run.cost.get("peak_memory_of", "")).endswith(AFTER_OTHERS) for run in group.finished)


def devices(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the devices, with the number of ranks, on which runs were timed, each once."""
    named = [f"{run.cost['device']} × {run.cost.get('ranks', '?')}" for run in runs if run.cost.get("device")]
    return list(dict.fromkeys(named))


def _steps_per_second(run: ComparedRun) -> float | None:
    milliseconds = step_ms(run)
    return None if milliseconds is None else 1000 / milliseconds


def _ratio(
    group: Group, reference: Group, value: Callable[[ComparedRun], float | None], same: str | None = None
) -> Ratio | None:
    """Divide what is known of both; `same` names what both must have measured in the same way."""
    if same is not None and len({run.cost.get(same) for run in (*group.finished, *reference.finished)}) > 1:
        return None
    ratios = list(_pair_ratios(group, reference, value))
    if ratios:
        return Ratio(middle=statistics.median(ratios), low=min(ratios), high=max(ratios), pairs=len(ratios))
    ours, theirs = _median(group.finished, value), _median(reference.finished, value)
    if ours is None or theirs is None:
        return None
    return Ratio(middle=ours / theirs, low=ours / theirs, high=ours / theirs, pairs=0)


def _pair_ratios(group: Group, reference: Group, value: Callable[[ComparedRun], float | None]) -> Iterator[float]:
    ours, theirs = group.by_seed() or {}, reference.by_seed() or {}
    for seed, run in ours.items():
        if seed in theirs:
            one, other = value(run), value(theirs[seed])
            if one is not None and other is not None:
                yield one / other


def _energy_source(runs: Sequence[ComparedRun], *, has_energy: bool) -> str:
    sources = list(dict.fromkeys(str(run.cost.get("energy_source") or NOT_MEASURED) for run in runs))
    if has_energy:
        return ", ".join(sources)
    missing = [each for each in sources if each.startswith(NOT_MEASURED)]
    return missing[0] if missing else NOT_MEASURED


def _only(runs: Sequence[ComparedRun], name: str) -> str:
    return ", ".join(dict.fromkeys(str(run.cost[name]) for run in runs if run.cost.get(name)))


def _number(name: str) -> Callable[[ComparedRun], float | None]:
    return lambda run: _positive(run.cost.get(name), lowest=0)


def _median(runs: Sequence[ComparedRun], value: Callable[[ComparedRun], float | None]) -> float | None:
    known = [each for each in map(value, runs) if each is not None]
    return statistics.median(known) if known else None


def _positive(value: Any, lowest: float = 1e-12) -> float | None:
    return float(value) if is_number(value, lowest=lowest) else None
