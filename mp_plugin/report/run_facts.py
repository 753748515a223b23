"""What there is to know of a run besides its layers and incidents, in words."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from mp_plugin.checks import is_number
from mp_plugin.report.progress import progress
from mp_plugin.report.words import counted, percent, shown_name
from mp_plugin.report.worst_layers import fp32_layers
from mp_plugin.telemetry.panel import WIDEST_TEXT
from mp_plugin.telemetry.store import Run
from mp_plugin.telemetry.table import TELLING_SECONDS, in_seconds

LISTED_ISLANDS = 5


def run_facts(run: Run, *, now: datetime | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield what there is to know of a run besides its layers and incidents, by name, in lines of plain text.

    Args:
        run: whatever is left of it.
        now: when it is looked at, with a time zone; None for the clock.
    """
    came = progress(run, now=now)
    info = run.info
    summary: Mapping[str, Any] = info.summary if info is not None else {}
    yield "directory", [shown_name(str(run.directory), 2 * WIDEST_TEXT)]
    if info is not None:
        since = f", as of {came.updated:%Y-%m-%d %H:%M} UTC" if came.updated is not None else ""
        yield "precision", [shown_name(info.precision)]
        yield "status", [came.ending.value + since]
    yield "steps", [f"{came.steps:,}, {f'{came.skipped:,}' if came.skipped else 'none'} skipped"]
    if scale := _loss_scale(summary):
        yield "loss scale", scale
    if islands := fp32_layers(run):
        lines = [f"{shown_name(name)}: {shown_name(why)}" for name, why in list(islands.items())[:LISTED_ISLANDS]]
        more = len(islands) - LISTED_ISLANDS
        yield f"{len(islands):,} in FP32", [*lines, f"and {more:,} more"] if more > 0 else lines
    yield "samples", list(_samples(run, summary))


def _loss_scale(summary: Mapping[str, Any]) -> list[str]:
    scale: Any = summary.get("loss_scale")
    if not _has_numbers(scale, "now", "min", "max"):
        return []
    lines = [f"{scale['now']:,.15g} (min {scale['min']:,.15g}, max {scale['max']:,.15g})"]
    window: Any = summary.get("scale_window")
    if _has_numbers(window, "lowest", "highest"):
        is_empty = window["lowest"] > window["highest"]
        fitting = "none fits" if is_empty else f"{window['lowest']:,.15g} to {window['highest']:,.15g} fit"
        lines.append(f"{fitting} the gradients of all layers in the newest sample")
    return lines


def _samples(run: Run, summary: Mapping[str, Any]) -> Iterator[str]:
    import pyarrow.compute as pc

    steps = pc.count_distinct(run.samples["step"]).as_py()
    layers = pc.count_distinct(run.samples["layer"]).as_py()
    yield f"{counted(steps, 'step')} of {counted(layers, 'layer')}" if steps else "none"
    cost: Any = summary.get("telemetry")
    if _has_numbers(cost, "share", "seconds") and cost["seconds"]:
        seconds = in_seconds(cost["seconds"])
        is_telling = not _has_numbers(cost, "training_seconds") or cost["training_seconds"] >= TELLING_SECONDS
        yield f"cost {percent(cost['share'])} of the training time, {seconds}" if is_telling else f"took {seconds}"
    if _has_numbers(cost, "left_out") and cost["left_out"]:
        yield f"{counted(cost['left_out'], 'sample')} left out to keep within Telemetry.max_overhead"


def _has_numbers(table: Any, *names: str) -> bool:
    """Whether a part of the summary is what it should be: the file may be of anybody's making."""
    return isinstance(table, Mapping) and all(is_number(table.get(name), lowest=0) for name in names)
