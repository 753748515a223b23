"""What the charts of a page are drawn from."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from mp_plugin.checks import is_number
from mp_plugin.config import Fallback
from mp_plugin.fallback.layers import is_below
from mp_plugin.formats import FORMATS
from mp_plugin.report.drift_points import MEASURES as DRIFT
from mp_plugin.report.drift_points import drift_points
from mp_plugin.report.embed import packed_data
from mp_plugin.report.exponents import read_exponents
from mp_plugin.report.grid import MEASURES, Grid, make_grid
from mp_plugin.report.outcome_words import outcome
from mp_plugin.report.progress import progress
from mp_plugin.report.scale_history import MAX_POINTS, scale_history
from mp_plugin.report.words import shown_name
from mp_plugin.report.worst_layers import TIGHT_BITS, WorstLayer, fp32_layers
from mp_plugin.telemetry.events import Cause, Incident
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run

DRAWN_FORMATS = ("fp16", "bf16", "e4m3", "e5m2")
LONGEST_NAME = 300
MUCH_HEADROOM = 20
"""Bits, from which on one is as good as another; the colours of the heat map end there."""
SYMBOLS = {
    Cause.backward: "triangle-up",
    Cause.forward: "square",
    Cause.loss: "diamond",
    Cause.data: "circle",
    Cause.weights: "x",
    Cause.unknown: "cross",
}
"""Plotly's, by cause, so that colour is not needed to tell them apart."""


class PageData:
    """Numbers of a run, gathered once for the page and its charts.

    Args:
        run: as read from the disk.
        tightest: the layer to show first; None for the first one.
    """

    def __init__(self, run: Run, tightest: WorstLayer | None = None) -> None:
        self.run = run
        self.grid = make_grid(run.samples)
        self.underflow_tolerance = Fallback().underflow_tolerance
        self.exponents = read_exponents(
            run.samples, self.grid, number_format=FORMATS["fp16"], underflow_tolerance=self.underflow_tolerance
        )
        islands = fp32_layers(run)
        in_fp32 = [name for name in self.grid.layers if any(is_below(name, island) for island in islands)]
        self.scale = scale_history(run, self.grid, self.exponents, in_fp32)
        self.drift = drift_points(run)
        self._tightest = tightest

    @property
    def compute_dtype(self) -> str:
        """That of the newest sample; the format that headroom is measured in."""
        return str(self.run.samples["compute_dtype"][-1].as_py())

    @property
    def first_kind(self) -> int:
        """The place of the kind of values to show first."""
        return self.grid.kinds.index(self._tightest.kind.value) if self._tightest else 0

    @property
    def first_measure(self) -> str:
        """The one of `MEASURES` to show first: headroom, unless something else tells more."""
        if not self.grid.cells:
            return "headroom"
        # Activations may have Inf in a healthy run, as the scores that a mask has left out.
        is_gradient = [kind != TensorKind.activation.value for kind in self.grid.kinds]
        is_spoiled = self.grid.cells["non_finite"][is_gradient if any(is_gradient) else slice(None)] > 0
        if is_spoiled.any((0, 1)).all():
            return "non_finite"
        least = np.fmin.reduce(self.grid.cells["headroom"][self.first_kind], axis=None)
        if self._tightest and self._tightest.vanishes and not least < TIGHT_BITS:
            return "underflow"
        return "amax" if least > MUCH_HEADROOM else "headroom"

    @property
    def marks(self) -> list[dict[str, Any]]:
        """The incidents as marks on a chart."""
        return _marks(self.run.incidents)

    @property
    def cell(self) -> str:
        """What a cell of the heat map is, in words."""
        most = max((samples for _, _, samples in self.grid.columns), default=1)
        return "one sampled step" if most == 1 else f"the worst of up to {most:,} neighbouring samples"

    @property
    def drift_names(self) -> list[str]:
        """What was measured against FP32, as the events name it."""
        return [name for name in DRIFT if any(name in each.values or name in each.lost for each in self.drift)]

    @property
    def has_lost_drift(self) -> bool:
        """Whether some of it was not finite, and so has no place on its line."""
        return any(each.lost for each in self.drift)

    def packed(self) -> str:
        """Return all of it for the page's own unpacking."""
        layers = [shown_name(name, LONGEST_NAME) for name in self.grid.layers]
        first = self._tightest
        values = {
            "kinds": self.grid.kinds,
            "layers": layers,
            "columns": self.grid.columns,
            "end": progress(self.run).steps,
            "dtypes": _dtypes(self.run, self.grid),
            "firstMeasure": self.first_measure,
            "firstKind": self.first_kind,
            "firstLayer": self.grid.layers.index(first.layer) if first else 0,
            "histograms": self.exponents.histograms,
            "formats": {name: asdict(FORMATS[name]) for name in DRAWN_FORMATS},
            "scale": {"points": self.scale.points, "window": self.scale.window},
            "marks": self.marks,
            "symbols": {cause.value: symbol for cause, symbol in SYMBOLS.items()},
            "drift": [{"step": each.step, "values": each.values, "lost": each.lost} for each in self.drift],
        }
        return packed_data(values, {measure: self.grid.cells[measure] for measure in MEASURES if self.grid.cells})


def _dtypes(run: Run, grid: Grid) -> list[list[str]]:
    """Return the newest number format of each kind and layer."""
    rows = np.full(len(grid.kinds) * len(grid.layers), -1)
    # Rows are by step, and of several the last one is written.
    rows[grid.kind_of_row * len(grid.layers) + grid.layer_of_row] = np.arange(len(grid.kind_of_row))
    found = [run.samples["dtype"][row].as_py() if row >= 0 else "" for row in rows.tolist()]
    return [found[start : start + len(grid.layers)] for start in range(0, len(found), len(grid.layers) or 1)]


def _marks(incidents: Iterable[Incident]) -> list[dict[str, Any]]:
    """Return incidents as marks: neighbours with the same cause share one when there are too many."""
    everyone = list(incidents)
    span = max((each.step for each in everyone), default=0) // (MAX_POINTS // len(SYMBOLS)) + 1
    marks: dict[tuple[int, Cause], dict[str, Any]] = {}
    for each in everyone:
        mark = marks.setdefault(
            (each.step // span, each.cause),
            {
                "step": each.step,
                "scale": _number(each.loss_scale),
                "cause": each.cause.value,
                "done": outcome(each.action, cured=each.cured, culprits=each.culprits),
                "operator": each.operator and shown_name(each.operator),
                "layer": each.layer and shown_name(each.layer),
                "count": 0,
            },
        )
        mark["count"] += 1
    return list(marks.values())


def _number(value: Any) -> float | None:
    """Return what JSON has a number for, and None for anything else."""
    return value if is_number(value, lowest=-math.inf) else None
