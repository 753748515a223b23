"""What the predictions of whole groups tell: each run's calibration, and how often it agrees with its FP32 twin."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from mp_plugin.compare.groups import Group
from mp_plugin.compare.metrics import CALIBRATION
from mp_plugin.compare.predictions import Predictions, agreement, calibration_error, read_predictions
from mp_plugin.compare.read_runs import ComparedRun
from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.store import Damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How much alike pairs of runs predict on the same test samples."""

    is_share: bool
    """Whether these are shares of equal predictions, or mean absolute differences of predicted numbers."""
    mean: float
    low: float
    """Of the pair that is least so."""
    high: float
    pairs: int
    of_tokens: bool


def with_calibration(run: ComparedRun) -> tuple[ComparedRun, Predictions | None]:
    """Return a run with the calibration error of its predictions among its metrics, and these predictions."""
    if run.predictions is None:
        return run, None
    found = None
    try:
        found = read_predictions(run.predictions)
        error = calibration_error(found)
    except TelemetryError as problem:
        damage: Damage = (run.predictions, str(problem).removeprefix(f"{run.predictions} ").removesuffix("."))
        return replace(run, damaged=(*run.damaged, damage)), found
    return (run if error is None else replace(run, metrics={**run.metrics, CALIBRATION: error})), found


def likeness(
    group: Group, reference: Group, predictions: Mapping[Path, Predictions]
) -> tuple[Likeness | None, list[str]]:
    """Return how much alike the runs of a group and those of the reference with the same seed predict.

    Of the reference itself: its runs of neighbouring seeds, which is how much alike two runs predict that differ in
    nothing but their seed.

    Returns:
        None without pairs that can be compared; and what was amiss with some.
    """
    seeds = group.by_seed() or {}
    if group is reference:
        pairs = [(seeds[one], seeds[other]) for one, other in pairwise(sorted(seeds))]
    else:
        others = reference.by_seed() or {}
        pairs = [(run, others[seed]) for seed, run in seeds.items() if seed in others]
    return _of_pairs(pairs, predictions)


def _of_pairs(
    pairs: Iterable[tuple[ComparedRun, ComparedRun]], predictions: Mapping[Path, Predictions]
) -> tuple[Likeness | None, list[str]]:
    found: list[tuple[str, float]] = []
    problems: list[str] = []
    of_tokens = False
    for one, other in pairs:
        ours, theirs = predictions.get(one.directory), predictions.get(other.directory)
        if ours is None or theirs is None:
            continue
        try:
            found.append(agreement(ours, theirs))
        except TelemetryError as problem:
            problems.append(f"{one.directory} and {other.directory}: {problem}")
        of_tokens = of_tokens or ours.tokens is not None
    kinds = {kind for kind, _ in found}
    if len(kinds) != 1:
        return None, problems
    values: Sequence[float] = [value for _, value in found]
    likeness = Likeness(
        is_share=kinds == {"same"},
        mean=statistics.fmean(values),
        low=min(values),
        high=max(values),
        pairs=len(values),
        of_tokens=of_tokens,
    )
    return likeness, problems
