"""A comparison as JSON, for other programs."""

import json
from dataclasses import asdict
from typing import Any

from mp_plugin.compare.comparison import Comparison, GroupResult
from mp_plugin.compare.judge import MetricResult
from mp_plugin.compare.statistics import CONFIDENCE
from mp_plugin.telemetry.events import json_values

JSON_VERSION = 1


def comparison_json(comparison: Comparison) -> str:
    """Return a comparison as JSON text; what is not known is null, and a number that is not finite a text."""
    values = {
        "version": JSON_VERSION,
        "metric": comparison.metric.name,
        "higher_is_better": comparison.metric.higher_is_better,
        "margin": comparison.margin,
        "margin_is_default": comparison.margin_is_default,
        "confidence": CONFIDENCE,
        "reference": comparison.reference,
        "fail_if_worse": comparison.fail_if_worse,
        "exit_status": comparison.exit_status,
        "groups": [_group(each) for each in comparison.groups],
        "unfinished": [
            {"run": str(run.directory), "status": run.status} for run in comparison.runs if not run.is_finished
        ],
        "notes": list(comparison.notes),
        "damaged": [{"file": str(path), "why": why} for path, why in comparison.damaged],
    }
    return json.dumps(json_values(values), indent=2) + "\n"


def _group(result: GroupResult) -> dict[str, Any]:
    return {
        "precision": result.group.label,
        "runs": [{"run": str(run.directory), "seed": run.seed} for run in result.group.finished],
        "verdict": result.verdict.kind.value,
        "sentence": result.verdict.sentence,
        "p_equivalence": result.p,
        "line": None if result.line is None else result.line.value,
        "metrics": {each.metric.name: _metric(each) for each in result.results},
        "agreement": None if result.likeness is None else asdict(result.likeness),
        "cost": asdict(result.cost),
        "incidents": result.incidents,
        "skipped_steps": result.skipped_steps,
        "steps": result.steps,
        "islands": None if result.islands is None else list(result.islands),
    }


def _metric(result: MetricResult) -> dict[str, Any]:
    found = result.difference
    return {
        "values": list(result.values),
        "mean": result.mean,
        "standard_deviation": result.deviation,
        "difference": None if found is None else {**asdict(found), "method": found.method.value},
    }
