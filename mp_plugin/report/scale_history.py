"""The loss scale of a run over its steps, and the window of scales that would have fitted all layers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mp_plugin.checks import is_number
from mp_plugin.config import LossScaling
from mp_plugin.report.exponents import Exponents
from mp_plugin.report.grid import Floats, Grid, numbers
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run

MAX_POINTS = 2000
"""Of the line, and marks on it: more cannot be told apart, and a run may overflow on every step."""


@dataclass(frozen=True, kw_only=True)
class ScaleHistory:
    """What is drawn of the loss scale; without points the run did not scale its loss."""

    points: tuple[tuple[int, float], ...] = ()
    """Step and scale, where it is known and changed, and the last one known."""
    window: tuple[tuple[int, float | None, float], ...] = ()
    """By column of the grid: its first step, the lowest scale that fits all its samples, if histograms tell, and the
    highest one."""

    @property
    def changes(self) -> list[tuple[int, float]]:
        """Steps at which the scale was first seen to differ from before, and what it was then."""
        before = [None, *(scale for _, scale in self.points)]
        return [point for point, old in zip(self.points, before, strict=False) if point[1] != old]

    @property
    def has_band(self) -> bool:
        """Whether both bounds are known of some column."""
        return any(lowest is not None and highest > 0 for _, lowest, highest in self.window)

    @property
    def has_ceiling(self) -> bool:
        """Whether the upper bound is known of some column: one with NaN or Inf has none."""
        return any(highest > 0 for _, _, highest in self.window)

    @property
    def is_scaled(self) -> bool:
        """Whether some loss was multiplied by something."""
        return any(scale != 1 for _, scale in self.points)


def summarised_scale(summary: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Return the newest, lowest and highest loss scale of a summary: `now`, `min`, `max`; None without."""
    scale = summary.get("loss_scale")
    if not isinstance(scale, dict) or not all(is_number(scale.get(name), lowest=0) for name in ("now", "min", "max")):
        return None
    return scale


def scale_history(run: Run, grid: Grid, exponents: Exponents, fp32_layers: Iterable[str]) -> ScaleHistory:
    """Return what is known of a run's loss scale.

    Args:
        run: as read from the disk.
        grid: of its samples.
        exponents: of its samples.
        fp32_layers: layers whose gradients need no loss scale.
    """
    return ScaleHistory(points=tuple(_points(run, grid)), window=tuple(_window(run, grid, exponents, fp32_layers)))


def _points(run: Run, grid: Grid) -> list[tuple[int, float]]:
    known = {incident.step: incident.loss_scale for incident in run.incidents}
    if run.samples.num_rows:
        is_gradient = _is_gradient(grid)[grid.kind_of_row]
        steps = numbers(run.samples, "step", np.int64)[is_gradient].tolist()
        known |= dict(zip(steps, numbers(run.samples, "loss_scale")[is_gradient].tolist(), strict=True))
    summary = run.info.summary if run.info is not None else {}
    newest = summarised_scale(summary)
    if newest is not None and isinstance(summary.get("steps"), int):
        known[summary["steps"]] = newest["now"]
    points = sorted((step, scale) for step, scale in known.items() if 0 < scale < math.inf)
    changes = [
        point
        for place, point in enumerate(points)
        if place in (0, len(points) - 1) or point[1] != points[place - 1][1] or point[1] != points[place + 1][1]
    ]
    every = len(changes) // MAX_POINTS + 1
    return changes[:-1:every] + changes[-1:]


def _window(
    run: Run, grid: Grid, exponents: Exponents, fp32_layers: Iterable[str]
) -> list[tuple[int, float | None, float]]:
    if not grid.columns:
        return []
    is_fp32 = np.isin(np.arange(len(grid.layers)), [grid.layers.index(name) for name in fp32_layers])
    counts = _is_gradient(grid)[grid.kind_of_row] & ~is_fp32[grid.layer_of_row]
    column, lowest, highest = grid.column_of_row[counts], exponents.lowest[counts], exponents.highest[counts]
    # What is zero or spoiled sets no lower bound; of what nobody counted it is not known.
    lowest = np.where(np.isfinite(highest), lowest, -np.inf)
    limits = LossScaling()
    low = np.full(len(grid.columns), np.log2(limits.min_scale))
    high = np.full(len(grid.columns), np.log2(limits.max_scale))
    with np.errstate(invalid="ignore"):  # NaN goes through, as it should
        np.maximum.at(low, column, lowest)
        np.minimum.at(high, column, highest)
    seen = np.isin(np.arange(len(grid.columns)), column)
    return [
        (first, _scale(low[place]), _scale(high[place]) or 0.0)
        for place, (first, _, _) in enumerate(grid.columns)
        if seen[place]
    ]


def _is_gradient(grid: Grid) -> NDArray[np.bool_]:
    return np.array([kind != TensorKind.activation.value for kind in grid.kinds])


def _scale(exponent: Floats) -> float | None:
    return None if np.isnan(exponent) else float(np.exp2(exponent))
