"""What the samples of a run say of each layer over its steps, few enough numbers to draw and to send along."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyarrow import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MEASURES = ("headroom", "underflow", "flushed", "saturation", "non_finite", "amax")
"""Of a cell: least headroom in bits; of the finite values that are not zero the largest share that underflows, that is
comes out subnormal or zero, that comes out zero, and that saturates; largest share of all values that is NaN or Inf;
largest magnitude."""

MAX_COLUMNS = 250
MAX_CELLS = 180_000
"""Of all layers and kinds together: bounds the size of the page however large the model is."""
MIN_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The worst of each measure by kind, layer and column; a column is one sample, or several neighbouring ones."""

    kinds: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    """In the order of the model."""
    columns: tuple[tuple[int, int, int], ...] = ()
    """First step, last step, number of samples."""
    cells: dict[str, Floats] = field(default_factory=dict)
    """By measure: an array of kinds, layers and columns, NaN where nothing is known."""
    kind_of_row: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    layer_of_row: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    column_of_row: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Where each row of the samples went."""


def make_grid(samples: "Table", *, max_columns: int = MAX_COLUMNS, max_cells: int = MAX_CELLS) -> Grid:
    """Gather samples by kind, layer and column.

    Args:
        samples: of the columns in `stats_files.SCHEMA`, in the order of `Run.samples`.
        max_columns: at most so many; neighbouring samples share one if there are more.
        max_cells: fewer columns if kinds, layers and columns multiply to more than that.
    """
    if not samples.num_rows:
        return Grid()
    kinds, kind_of_row = codes(samples, "kind")
    layers, layer_of_row = codes(samples, "layer")
    steps, sample_of_row = np.unique(numbers(samples, "step", np.int64), return_inverse=True)
    fitting = max(MIN_COLUMNS, max_cells // (len(kinds) * len(layers)))
    num_columns = min(len(steps), max_columns, fitting)
    column_of_sample = np.arange(len(steps)) * num_columns // len(steps)
    first = np.searchsorted(column_of_sample, np.arange(num_columns))
    last = np.append(first[1:], len(steps)) - 1
    columns = tuple(zip(steps[first].tolist(), steps[last].tolist(), (last - first + 1).tolist(), strict=True))
    column_of_row = column_of_sample[sample_of_row]
    place = (kind_of_row * len(layers) + layer_of_row) * num_columns + column_of_row
    shape = (len(kinds), len(layers), num_columns)
    return Grid(
        kinds=tuple(kinds),
        layers=tuple(layers),
        columns=columns,
        cells=_worst(samples, place, shape),
        kind_of_row=kind_of_row,
        layer_of_row=layer_of_row,
        column_of_row=column_of_row,
    )


def numbers(samples: "Table", name: str, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a column as an array; null is NaN."""
    values = samples[name].to_numpy()
    return np.asarray(values, dtype)


def codes(samples: "Table", name: str) -> tuple[list[str], Ints]:
    """Return the different values of a column, in the order in which they first appear, and which one each row has."""
    encoded = samples[name].dictionary_encode().combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _worst(samples: "Table", place: Ints, shape: tuple[int, ...]) -> dict[str, Floats]:
    order = np.argsort(place, kind="stable")
    filled, starts = np.unique(place[order], return_index=True)
    cells = {}
    # One at a time: each takes as much memory as there are samples.
    for measure, values in _by_row(samples):
        worse = np.fmin if measure == "headroom" else np.fmax
        cells[measure] = np.full(shape, np.nan)
        cells[measure].reshape(-1)[filled] = worse.reduceat(values[order], starts)
    return cells


def _by_row(samples: "Table") -> Iterator[tuple[str, Floats]]:
    yield "headroom", numbers(samples, "headroom_bits")
    amax = numbers(samples, "amax")
    # Where every value is zero or not finite there is no largest magnitude to show.
    yield "amax", np.where(amax > 0, amax, np.nan)
    non_finite = numbers(samples, "nans") + numbers(samples, "infs")
    numel = numbers(samples, "numel")
    yield "non_finite", share(non_finite, numel)
    countable = numel - numbers(samples, "zeros") - non_finite
    flushed = numbers(samples, "flushed")
    yield "flushed", share(flushed, countable)
    yield "underflow", share(flushed + numbers(samples, "subnormal"), countable)
    yield "saturation", share(numbers(samples, "saturated"), countable)


def share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole; NaN where there is nothing."""
    shares = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
