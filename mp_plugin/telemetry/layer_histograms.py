"""The exponent histograms of each layer of a run, of all samples together and of the worst one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.tensor_stats import TensorStats

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("layer", "kind")
NUMBERS = ("step", "zeros", "nans", "infs", "amax")
COUNTS = ("lowest_exponent", "exponent_counts")


@dataclass(frozen=True, kw_only=True)
class LayerHistogram:
    """The values of one kind of one layer, of all steps that were sampled with histograms and were finite."""

    layer: str
    kind: TensorKind
    samples: int
    """Steps that count."""
    left_out: int = 0
    """Steps that do not, as some of their values were NaN or Inf."""
    broke_at: int | None = None
    """The first step whose NaN or Inf came from this layer's forward pass; None if there is none."""
    stats: TensorStats
    """Of all samples together: `amax`, `zeros`, `exponents`."""
    worst_below: Mapping[int, tuple[float, int]]
    """By exponent, the highest share that one sample has of its non-zero values at or below it, and that step."""

    def worst_at_or_below(self, exponent: int) -> tuple[float, int | None]:
        """Return the highest share of one sample's non-zero values that lie at or below an exponent, and its step."""
        if not self.worst_below or exponent < min(self.worst_below):
            return 0.0, None
        return self.worst_below[min(exponent, max(self.worst_below))]


def layer_histograms(samples: "pa.Table", *, origins: Mapping[int, str | None] | None = None) -> list[LayerHistogram]:
    """Return the histograms of a run, in the order of the model.

    A sample with NaN or Inf is left out, as its other values may be spoiled as well.

    Args:
        samples: with the columns of `stats_files.SCHEMA`, as `Run.samples`.
        origins: by step, the layer that its NaN and Inf are known to come from, None for none of them. Without one, or
            if that has no samples, they come from the first layer of the model with some among its activations.

    Raises:
        TelemetryError: for samples without histograms, or none at all.
    """
    columns: dict[str, Any] = {name: samples.column(name).combine_chunks() for name in (*NUMBERS, *COUNTS)}
    values = {name: columns[name].to_numpy(zero_copy_only=False) for name in NUMBERS}
    # As codes: in an array of its own every name would take the room of the longest.
    names = {name: samples.column(name).dictionary_encode().combine_chunks() for name in NAMES}
    codes = {name: each.indices.to_numpy(zero_copy_only=False).astype(np.int64) for name, each in names.items()}
    layers, kinds = (names[name].dictionary.to_pylist() for name in NAMES)
    counts = columns["exponent_counts"]
    is_counted = counts.is_valid().to_numpy(zero_copy_only=False)
    if not is_counted.any():
        missing = "samples without histograms"
        if not values["amax"].any():  # which leaves nothing to count
            missing = "only samples of NaN, Inf and zeros" if len(samples) else "no samples of its layers"
        raise TelemetryError(
            f"The run has {missing}, by which formats are judged; accepted: a run with precision/telemetry=full, or "
            "Telemetry(activations=True, histograms=True)."
        )
    # A tensor of zeros has nothing to count, and is no sample without histogram.
    usable = is_counted | (values["amax"] == 0)
    is_finite = (values["nans"] + values["infs"]) == 0
    is_activation = np.array([kind == TensorKind.activation.value for kind in kinds])[codes["kind"]]
    places = {layer: place for place, layer in enumerate(layers)}
    known = {
        step: None if layer is None else places[layer]
        for step, layer in (origins or {}).items()
        if layer is None or layer in places
    }
    broke_at = _broken(values["step"], codes["layer"], is_activation & ~is_finite, known)
    flat, bounds = _flattened(counts)
    lowest = columns["lowest_exponent"].fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    found = []
    for rows in _groups(codes["layer"] * len(kinds) + codes["kind"]):
        layer, kind = layers[codes["layer"][rows[0]]], TensorKind(kinds[codes["kind"][rows[0]]])
        counted = rows[usable[rows] & is_finite[rows]]
        matrix, first = _matrix(flat, bounds, lowest, counted)
        exponents, worst = _summed(matrix, first, values["step"][counted])
        found.append(
            LayerHistogram(
                layer=layer,
                kind=kind,
                samples=len(counted),
                left_out=int((~is_finite[rows]).sum()),
                broke_at=broke_at.get(int(codes["layer"][rows[0]])) if kind is TensorKind.activation else None,
                stats=TensorStats(
                    zeros=int(values["zeros"][counted].sum()),
                    amax=float(values["amax"][counted].max(initial=0.0)),
                    exponents=exponents,
                ),
                worst_below=worst,
            )
        )
    return found


def _groups(codes: Any) -> list[Any]:
    """Return the rows of each code, in the order in which the codes first come."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order]))
    return sorted(np.split(order, starts + 1), key=lambda rows: int(rows[0]))


def _broken(steps: Any, layers: Any, is_broken: Any, known: Mapping[int, int | None]) -> dict[int, int]:
    """Return the layers that NaN or Inf came from, and the first such step: all others are victims."""
    rows = np.flatnonzero(is_broken)
    broke_at: dict[int, int] = {}
    for row in rows[np.unique(steps[rows], return_index=True)[1]]:
        step = int(steps[row])
        layer = known.get(step, int(layers[row]))
        if layer is not None:
            broke_at.setdefault(layer, step)
    return broke_at


def _flattened(counts: Any) -> tuple[Any, Any]:
    """Return the counts of all rows one after the other, and where each row begins and ends."""
    lengths = counts.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = counts.flatten().to_numpy(zero_copy_only=False)
    return flat, np.concatenate([[0], np.cumsum(lengths)])


def _matrix(flat: Any, bounds: Any, lowest: Any, rows: Any) -> tuple[Any, int]:
    """Return the counts of some rows as a matrix of samples by exponents, and the exponent of its first column."""
    lengths = bounds[rows + 1] - bounds[rows]
    filled = lengths > 0
    if not filled.any():
        return np.zeros((len(rows), 0), dtype=np.int64), 0
    first = int(lowest[rows][filled].min())
    width = int((lowest[rows] + lengths)[filled].max()) - first
    matrix = np.zeros((len(rows), width), dtype=np.int64)
    which = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    matrix[which, within + (lowest[rows] - first)[which]] = flat[bounds[rows][which] + within]
    return matrix, first


def _summed(matrix: Any, first: int, steps: Any) -> tuple[dict[int, int], dict[int, tuple[float, int]]]:
    """Return the histogram of all samples, and what the worst of them has at or below each exponent."""
    totals = matrix.sum(axis=1)
    if not totals.any():
        return {}, {}
    shares = np.cumsum(matrix, axis=1) / np.maximum(totals, 1)[:, None]
    worst = shares.argmax(axis=0)
    by_exponent = {
        first + column: (float(shares[row, column]), int(steps[row])) for column, row in enumerate(worst.tolist())
    }
    merged = {first + column: count for column, count in enumerate(matrix.sum(axis=0).tolist()) if count}
    return merged, by_exponent
