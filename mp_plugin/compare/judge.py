"""What a group's numbers are, and what is shown of them beside the reference."""

import math
import statistics
from dataclasses import dataclass, replace

from mp_plugin.compare.cost import Cost
from mp_plugin.compare.groups import Group
from mp_plugin.compare.metrics import Metric
from mp_plugin.compare.statistics import Difference, Line, Method, equivalence_p, line, paired, spread, unpaired
from mp_plugin.compare.verdict import Kind, Verdict, cost_words, kind_of, line_words, metric_words
from mp_plugin.report.words import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """A metric of a group's finished runs."""

    metric: Metric
    values: tuple[float, ...]
    mean: float | None
    """None without a value, or if one is not finite; as are the others."""
    deviation: float | None
    """Standard deviation over the runs, which differ in their seeds."""
    difference: Difference | None
    """From the reference; None of itself too."""


def measured(group: Group, reference: Group, metric: Metric) -> MetricResult:
    """Return a metric of a group, and how far it lies from the reference."""
    values = _values(group, metric)
    is_sound = bool(values) and all(map(math.isfinite, values))
    return MetricResult(
        metric=metric,
        values=values,
        mean=statistics.fmean(values) if is_sound else None,
        deviation=spread(values) if is_sound else None,
        difference=None if group is reference else _difference(group, reference, metric),
    )


def judged(
    group: Group, reference: Group, result: MetricResult, margin: float, cost: Cost, *, line_at: float | None
) -> tuple[Verdict, float | None, Line | None]:
    """Return the verdict on a group, the p value of its equivalence test, and how it stands to a line.

    Args:
        group: the one to judge, or the reference itself.
        reference: to judge it by.
        result: its main metric.
        margin: within which a difference is taken for none.
        cost: what was saved.
        line_at: how much worse than the reference is too much; None for no line.
    """
    metric, difference = result.metric, result.difference
    if group is reference:
        words = f"{group.label}: the reference, {counted(len(group.finished), 'run')}"
        return Verdict(kind=Kind.reference, sentence=words), None, None
    p = None if difference is None else equivalence_p(difference, margin)
    if not group.finished:
        kind, words = Kind.empty, f"none of its {counted(len(group.runs), 'run')} finished"
    elif difference is None:
        kind, words = Kind.broken, f"no verdict, as {_broken(group, reference, metric)}"
    else:
        kind = kind_of(difference, p, metric, margin)
        words = metric_words(kind, difference, p, metric, margin, reference.label)
    parts = [words, *cost_words(cost)]
    stands = None
    if line_at is not None:
        stands = _stands(group, difference, metric, line_at)
        parts.append(line_words(stands, difference, line_at, metric, reference.label))
        if missing := len(group.runs) - len(group.finished):
            parts[-1] += f", as {missing} of {len(group.runs)} did not finish" if group.finished else ""
    return Verdict(kind=kind, sentence=f"{group.label}: {'; '.join(parts)}"), p, stands


def _stands(group: Group, difference: Difference | None, metric: Metric, line_at: float) -> Line:
    """A group holds no line with a run that ended in NaN, nor with runs that crashed or lack the metric.

    The others prove nothing.
    """
    if difference is None:
        return Line.worse if group.finished else Line.not_shown
    found = line(difference, line_at, higher_is_better=bool(metric.higher_is_better))
    is_whole = len(_values(group, metric)) == len(group.runs)
    return found if found is Line.worse or is_whole else Line.not_shown


def _difference(group: Group, reference: Group, metric: Metric) -> Difference | None:
    ours, theirs = _values(group, metric), _values(reference, metric)
    if not ours or not theirs or not all(map(math.isfinite, (*ours, *theirs))):
        return None
    pairs = paired_values(group, reference, metric)
    # With one run on a side there is no unpaired test either, and a pair tells more than two means.
    if len(pairs) >= 2 or (pairs and min(len(ours), len(theirs)) == 1):
        found = paired([one - other for _, one, other in pairs])
        is_whole = len(ours) == len(theirs) == len(pairs)
        # Runs without a partner may have other results.
        return found if is_whole or found.method is not Method.same else replace(found, method=Method.point)
    return unpaired(ours, theirs)


def paired_values(group: Group, reference: Group, metric: Metric) -> list[tuple[int, float, float]]:
    """Return the seeds that both have, each with the metric of both."""
    seeds, others = group.by_seed() or {}, reference.by_seed() or {}
    return [
        (seed, run.metrics[metric.name], others[seed].metrics[metric.name])
        for seed, run in sorted(seeds.items())
        if seed in others and metric.name in run.metrics and metric.name in others[seed].metrics
    ]


def _values(group: Group, metric: Metric) -> tuple[float, ...]:
    return tuple(run.metrics[metric.name] for run in group.finished if metric.name in run.metrics)


def _broken(group: Group, reference: Group, metric: Metric) -> str:
    for each in (group, reference):
        values = _values(each, metric)
        if not values:
            return f"no run of {each.label} has {metric.name}"
        lost = sum(not math.isfinite(value) for value in values)
        if lost:
            return f"{metric.name} of {each.label} is not finite in {lost} of {counted(len(values), 'run')}"
    return "the two have nothing in common"
