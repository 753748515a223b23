"""Runs of several precisions, compared."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mp_plugin.checks import is_number
from mp_plugin.compare.cost import Cost, cost_of
from mp_plugin.compare.find_runs import find_runs
from mp_plugin.compare.groups import Group, grouped, refuse_other_tasks
from mp_plugin.compare.judge import MetricResult, judged, measured
from mp_plugin.compare.likeness import Likeness, likeness, with_calibration
from mp_plugin.compare.metrics import Metric, default_margin, main_metric, passed_over, shown_metrics
from mp_plugin.compare.notes import notes_on
from mp_plugin.compare.predictions import Predictions
from mp_plugin.compare.read_runs import ComparedRun, read_run
from mp_plugin.compare.statistics import Line
from mp_plugin.compare.verdict import Verdict
from mp_plugin.errors import ConfigError
from mp_plugin.report.words import listed
from mp_plugin.telemetry.store import Damage

WORSE_STATUS, NOT_SHOWN_STATUS = 3, 4
"""Exit statuses of `--fail-if-worse`; 1 is an error, 2 a command line that is not understood."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupResult:
    """What is known of one precision."""

    group: Group
    results: tuple[MetricResult, ...]
    """The metric that is judged first."""
    verdict: Verdict
    p: float | None
    """Of the equivalence test."""
    line: Line | None
    """How it stands to the line of `fail_if_worse`."""
    likeness: Likeness | None
    """Of its predictions to the reference's; of the reference to itself under another seed."""
    cost: Cost
    incidents: int | None
    """Of all finished runs together, as are the next two."""
    skipped_steps: int | None
    steps: int | None
    islands: tuple[str, ...] | None
    """Layers that some run chose to run in FP32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Runs of several precisions, side by side."""

    metric: Metric
    """That is judged."""
    margin: float
    margin_is_default: bool
    fail_if_worse: float | None
    price_per_hour: float | None
    groups: tuple[GroupResult, ...]
    """The reference first."""
    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...]
    damaged: tuple[Damage, ...]

    @property
    def reference(self) -> str:
        """The label of the group that the others are judged against."""
        return self.groups[0].group.label

    @property
    def exit_status(self) -> int:
        """0 unless a line was to be held: 3 if a precision is shown to be worse, 4 if one is not shown to hold it."""
        lines = {each.line for each in self.groups}
        return WORSE_STATUS if Line.worse in lines else NOT_SHOWN_STATUS if Line.not_shown in lines else 0


def compare_runs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    margin: float | None = None,
    reference: str | None = None,
    fail_if_worse: float | None = None,
    price_per_hour: float | None = None,
) -> Comparison:
    """Compare the runs below some directories: by precision, paired by seed, against FP32.

    Args:
        paths: directories of runs, or above several, such as that of a sweep.
        metric: the one to judge by; None for the first test metric of a known kind, accuracy before loss.
        higher_is_better: of that metric; None where its name tells.
        margin: the largest difference that is taken for none, in the metric's unit; None for 0.005 of a share, and 1%
            of the reference's mean of any other metric.
        reference: label of the group to compare with; None for FP32.
        fail_if_worse: how much worse than the reference is too much, in the metric's unit; sets `exit_status`.
        price_per_hour: of one device, for what a run costs.

    Raises:
        ConfigError: for an unacceptable setting, runs of different tasks or data, and if no run finished.
        TelemetryError: for a path that holds no run.
    """
    _check(margin=margin, fail_if_worse=fail_if_worse, price_per_hour=price_per_hour)
    found = [read_run(each) for each in find_runs(paths)]
    refuse_other_tasks(found)
    runs, predictions = _with_predictions(found)
    finished = [run for run in runs if run.is_finished]
    if not finished:
        ends = [f"{run.directory} ({run.status})" for run in runs]
        raise ConfigError(f"None of the runs finished: {listed(ends)}; accepted: at least one that did.")
    groups = grouped(runs, reference)
    first = groups[0]
    if not first.finished:
        raise ConfigError(f"No run of the reference {first.label} finished; accepted: --reference with another group.")
    if fail_if_worse is not None and len(groups) < 2:
        raise ConfigError(
            f"All runs have one precision, {first.label}: there is no line to hold; accepted: runs of two or more."
        )
    main = main_metric([run.metrics for run in finished], metric, higher_is_better=higher_is_better)
    lacking = [] if metric is not None else passed_over([run.metrics for run in finished], main)
    if lacking and not (margin is None and fail_if_worse is None):
        raise ConfigError(
            f"Some runs lack {lacking[0]}, and a margin or line would be one of {main.name}, which all have; "
            "accepted: --metric with one of them."
        )
    metrics = shown_metrics([run.metrics for run in finished], main)
    own = measured(first, first, main)
    tolerated = margin if margin is not None else default_margin(main, own.mean or 0.0)
    results, problems = [], []
    for group in groups:
        alike, amiss = likeness(group, first, predictions)
        problems += amiss
        results.append(
            _result(group, first, metrics, tolerated, alike, fail_if_worse=fail_if_worse, price=price_per_hour)
        )
    notes = notes_on(groups, [each.results[0] for each in results])
    return Comparison(
        metric=main,
        margin=tolerated,
        margin_is_default=margin is None,
        fail_if_worse=fail_if_worse,
        price_per_hour=price_per_hour,
        groups=tuple(results),
        runs=tuple(run for group in groups for run in group.runs),
        notes=(
            *(f"Judged by {main.name}, which all runs have; some lack {name}." for name in lacking),
            *notes,
            *(f"No agreement of predictions: {each}" for each in problems),
        ),
        damaged=tuple(damage for run in runs for damage in run.damaged),
    )


def precisions_below(path: str | os.PathLike[str]) -> list[str]:
    """Return the precision settings of the runs at or below a directory, FP32 first; read in a moment.

    Raises:
        TelemetryError: for a path that holds no run.
    """
    return [group.label for group in grouped([read_run(each) for each in find_runs([path])])]


def _check(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not is_number(value, lowest=0):
            raise ConfigError(f"{name}={value!r} is not accepted; accepted: a number of at least 0.")
    if settings["margin"] == 0:
        raise ConfigError("margin=0 is not accepted: no finite number of runs shows equality; accepted: more than 0.")


def _with_predictions(runs: Iterable[ComparedRun]) -> tuple[list[ComparedRun], dict[Path, Predictions]]:
    completed, predictions = [], {}
    for run in runs:
        if run.is_finished:
            run, found = with_calibration(run)
            if found is not None:
                predictions[run.directory] = found
        completed.append(run)
    return completed, predictions


def _result(
    group: Group,
    reference: Group,
    metrics: Sequence[Metric],
    margin: float,
    alike: Likeness | None,
    *,
    fail_if_worse: float | None,
    price: float | None,
) -> GroupResult:
    results = tuple(measured(group, reference, metric) for metric in metrics)
    cost = cost_of(group, reference, price)
    verdict, p, line = judged(group, reference, results[0], margin, cost, line_at=fail_if_worse)
    summaries = [run.summary for run in group.finished]
    counted_incidents = [run.num_incidents for run in group.finished if run.num_incidents is not None]
    layers = [each["fp32_layers"] for each in summaries if isinstance(each.get("fp32_layers"), dict)]
    return GroupResult(
        group=group,
        results=results,
        verdict=verdict,
        p=p,
        line=line,
        likeness=alike,
        cost=cost,
        incidents=sum(counted_incidents) if counted_incidents else None,
        skipped_steps=_total(summaries, "skipped_steps"),
        steps=_total(summaries, "steps"),
        islands=tuple(dict.fromkeys(name for each in layers for name in each)) if layers else None,
    )


def _total(summaries: Iterable[Mapping[str, Any]], name: str) -> int | None:
    known = [each[name] for each in summaries if is_number(each.get(name), lowest=0)]
    return int(math.fsum(known)) if known else None
