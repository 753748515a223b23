"""A comparison as one HTML page that needs nothing else: no network, no server, no other file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mp_plugin.compare.comparison import Comparison, GroupResult
from mp_plugin.compare.cost import Cost, Ratio
from mp_plugin.compare.judge import MetricResult
from mp_plugin.compare.read_runs import ComparedRun
from mp_plugin.compare.statistics import CONFIDENCE, SIGNIFICANCE, equivalence_interval
from mp_plugin.compare.table import cost_rows, metric_rows
from mp_plugin.compare.verdict import amount
from mp_plugin.report.embed import packed_data
from mp_plugin.report.page_words import FILTERS
from mp_plugin.report.shell import render

ASSETS = Path(__file__).parent / "assets"
LISTED_RUNS = 500
BADGES = {
    "reference": "Reference",
    "equivalent": "Equivalent",
    "better": "Better",
    "worse": "Worse",
    "unclear": "Not shown",
    "same": "The same",
    "untested": "No test",
    "broken": "Broken",
    "empty": "No result",
}


def build_comparison_page(comparison: Comparison) -> str:
    """Return a comparison as a page of HTML. Names of runs, groups and metrics are escaped."""
    candidates = comparison.groups[1:]
    return render(
        ASSETS / "compare.html",
        scripts=[ASSETS / "compare_charts.js", ASSETS / "compare.js"],
        filters=FILTERS,
        packed_data=packed_data(_chart_data(comparison), {}),
        comparison=comparison,
        labels=[each.group.label for each in comparison.groups],
        verdicts=[(each.verdict, BADGES[each.verdict.kind.value]) for each in candidates or comparison.groups],
        margin=amount(comparison.margin, comparison.metric),
        confidence=CONFIDENCE,
        significance=SIGNIFICANCE,
        metric_rows=metric_rows(comparison),
        cost_rows=cost_rows(comparison),
        rows=_run_rows(comparison)[:LISTED_RUNS],
    )


def _run_rows(comparison: Comparison) -> list[tuple[ComparedRun, str, float | None]]:
    """Return each run with its group and the metric that is judged."""
    return [
        (run, result.group.label, run.metrics.get(comparison.metric.name))
        for result in comparison.groups
        for run in result.group.runs
    ]


def _chart_data(comparison: Comparison) -> dict[str, Any]:
    return {
        "metric": {
            "name": comparison.metric.name,
            "isShare": comparison.metric.is_share,
            "higherIsBetter": comparison.metric.higher_is_better,
        },
        "margin": comparison.margin,
        "line": comparison.fail_if_worse,
        "groups": [_group(each, comparison) for each in comparison.groups],
        "bars": [
            {"name": name, "measure": measure, "bars": bars}
            for name, measure, bars in _bars(comparison)
            if any(bar is not None for bar in bars)
        ],
    }


def _group(result: GroupResult, comparison: Comparison) -> dict[str, Any]:
    main: MetricResult = result.results[0]
    finite = main.mean is not None
    points = [
        {"seed": run.seed, "value": run.metrics[main.metric.name], "run": run.directory.name}
        for run in result.group.finished
        if finite and main.metric.name in run.metrics
    ]
    found = main.difference
    difference = (
        None
        if found is None
        else {"mean": found.mean, "low": found.low, "high": found.high, "tested": equivalence_interval(found)}
    )
    return {
        "label": result.group.label,
        "kind": result.verdict.kind.value,
        "mean": main.mean,
        "points": points,
        "difference": difference,
    }


def _bars(comparison: Comparison) -> Iterator[tuple[str, str, list[dict[str, float] | None]]]:
    """Yield the ratios to the reference, of which a bar stands for each group: only of what was measured of both."""
    costs = [each.cost for each in comparison.groups]
    yield "Speed", "more is better", [_bar(each.speed, each) for each in costs]
    yield "Peak memory", "less is better", [_bar(each.memory, each) for each in costs]
    yield "Energy", "less is better", [_bar(each.energy, each) for each in costs]


def _bar(ratio: Ratio | None, cost: Cost) -> dict[str, float] | None:
    return None if ratio is None else {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}
