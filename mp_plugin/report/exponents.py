"""The exponent histograms of a run: of each layer over all samples, and what each sample says of the loss scale."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mp_plugin.formats import Format
from mp_plugin.report.grid import Floats, Grid, Ints, numbers
from mp_plugin.telemetry.tensor_stats import HIGHEST_EXPONENT, LOWEST_EXPONENT

if TYPE_CHECKING:
    from pyarrow import Table

ROWS_AT_ONCE = 20_000
"""Bounds the memory for what is unpacked."""
NUM_EXPONENTS = HIGHEST_EXPONENT - LOWEST_EXPONENT + 1


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """Histograms of a run, and bounds of the loss scale by row of its samples, as exponents of two."""

    histograms: list[dict[str, Any]] = field(default_factory=list)
    """Plain values: kind and layer by their place in the grid, number of samples, and for `all` of these, the `newest`
    and the `tightest` one the step, loss scale, lowest exponent and counts."""
    lowest: Floats = field(default_factory=lambda: np.empty(0))
    """Below it too many values vanish: -inf if none do; NaN where nobody counted."""
    highest: Floats = field(default_factory=lambda: np.empty(0))
    """Above it the largest value overflows: inf without a value, -inf with NaN or Inf."""


def read_exponents(samples: "Table", grid: Grid, *, number_format: Format, underflow_tolerance: float) -> Exponents:
    """Read the histograms of all samples.

    Args:
        samples: of the columns in `stats_files.SCHEMA`.
        grid: of the same samples.
        number_format: for the bounds of the loss scale, as in `scaling.window.scale_window`.
        underflow_tolerance: likewise.
    """
    if not samples.num_rows:
        return Exponents()
    group_of_row = grid.kind_of_row * len(grid.layers) + grid.layer_of_row
    num_groups = len(grid.kinds) * len(grid.layers)
    totals = np.zeros(num_groups * NUM_EXPONENTS)
    lowest = np.full(samples.num_rows, np.nan)
    # A value of this exponent is the smallest that does not vanish.
    needed = np.frexp(number_format.smallest_subnormal / 2)[1]
    for rows, row_of_count, exponent_of_count, counts in _unpacked(samples):
        place = group_of_row[rows][row_of_count] * NUM_EXPONENTS + exponent_of_count - LOWEST_EXPONENT
        totals += np.bincount(place, weights=counts, minlength=len(totals))
        lowest[rows] = needed - _first_to_survive(
            row_of_count, exponent_of_count, counts, len(rows), underflow_tolerance
        )
    counted = np.flatnonzero(~np.isnan(lowest))
    return Exponents(
        histograms=list(_histograms(samples, group_of_row, counted, totals.reshape(num_groups, -1), len(grid.layers))),
        lowest=lowest,
        highest=_highest(samples, number_format),
    )


def _unpacked(samples: "Table") -> Iterator[tuple[Ints, Ints, Ints, Floats]]:
    """Yield rows that have a histogram, and one entry per count: place of its row among these, exponent, count."""
    lowest = numbers(samples, "lowest_exponent")
    for start in range(0, samples.num_rows, ROWS_AT_ONCE):
        part = samples["exponent_counts"].slice(start, ROWS_AT_ONCE).combine_chunks()
        rows = start + np.flatnonzero(part.is_valid().to_numpy(zero_copy_only=False))
        part = part.drop_null()
        lengths = part.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        counts = part.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        row_of_count = np.repeat(np.arange(len(rows)), lengths)
        begin_of_row = np.cumsum(lengths) - lengths
        within_row = np.arange(len(counts)) - begin_of_row[row_of_count]
        exponents = lowest[rows][row_of_count].astype(np.int64) + within_row
        yield rows, row_of_count, np.clip(exponents, LOWEST_EXPONENT, HIGHEST_EXPONENT), counts


def _first_to_survive(
    row_of_count: Ints, exponent_of_count: Ints, counts: Floats, num_rows: int, tolerance: float
) -> Floats:
    """Return by row the smallest exponent up to which more than the tolerated share of the values lies; inf without."""
    sums = np.cumsum(counts)
    total = np.bincount(row_of_count, weights=counts, minlength=num_rows)
    before = np.cumsum(total) - total
    is_too_much = sums - before[row_of_count] > tolerance * total[row_of_count]
    found, first = np.unique(row_of_count[is_too_much], return_index=True)
    exponents = np.full(num_rows, np.inf)
    exponents[found] = exponent_of_count[is_too_much][first]
    return exponents


def _highest(samples: "Table", number_format: Format) -> Floats:
    amax = numbers(samples, "amax")
    mantissa, exponent = np.frexp(amax)
    max_mantissa, max_exponent = np.frexp(number_format.max)
    highest = np.where(amax > 0, max_exponent - exponent - (mantissa > max_mantissa), np.inf)
    is_spoiled = numbers(samples, "nans") + numbers(samples, "infs") > 0
    return np.where(is_spoiled, -np.inf, highest)


def _histograms(
    samples: "Table", group_of_row: Ints, counted: Ints, totals: Floats, num_layers: int
) -> Iterator[dict[str, Any]]:
    headroom = numbers(samples, "headroom_bits")
    groups, num_samples = np.unique(group_of_row[counted], return_counts=True)
    newest = dict(
        zip(group_of_row[counted].tolist(), counted.tolist(), strict=True)
    )  # of equal keys the last one stays
    # Sorted from the most headroom down, so that the least comes last; rows without any come first.
    down = counted[np.argsort(-np.where(np.isnan(headroom[counted]), np.inf, headroom[counted]), kind="stable")]
    tightest = dict(zip(group_of_row[down].tolist(), down.tolist(), strict=True))
    for group, num in zip(groups.tolist(), num_samples.tolist(), strict=True):
        present = np.flatnonzero(totals[group])
        first, end = (present[0], present[-1] + 1) if len(present) else (0, 0)
        yield {
            "kind": group // num_layers,
            "layer": group % num_layers,
            "samples": num,
            "all": {"lowest": LOWEST_EXPONENT + int(first), "counts": totals[group, first:end].astype(int).tolist()},
            "newest": _one(samples, newest[group]),
            "tightest": _one(samples, tightest[group]),
        }


def _one(samples: "Table", row: int) -> dict[str, Any]:
    names = {"step": "step", "scale": "loss_scale", "lowest": "lowest_exponent", "counts": "exponent_counts"}
    return {short: samples[name][row].as_py() for short, name in names.items()}
