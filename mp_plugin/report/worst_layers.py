"""Which layers of a run came closest to an end of their number format."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mp_plugin.fallback.layers import is_below
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run

if TYPE_CHECKING:
    import pyarrow as pa

WIDE = ("fp32", "fp64")
HALF = ("fp16", "bf16")

TIGHT_BITS = 1.0
"""Below it a value that doubles overflows. Scaled gradients do come as close: their loss scale grows until then."""

MUCH_UNDERFLOW = 0.05
"""Share of a layer's gradient values; `Fallback.underflow_tolerance` has the same by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstLayer:
    """The worst that was seen of one kind of values of a layer, over all samples."""

    layer: str
    """Qualified name."""
    kind: TensorKind
    dtype: str
    """Number format of the values, in the newest of these samples."""
    is_at_risk: bool
    """Whether its values are computed in the run's compute dtype; False for a layer in FP32 of a half-precision run."""
    samples: int
    """Steps in which it was sampled."""
    headroom_bits: float | None
    """Least of them; None if no sample had a finite value other than zero."""
    headroom_step: int | None
    """The first step that had it."""
    loss_scale: float
    """Of that step; 1.0 for activations and without loss scaling."""
    underflow: float
    """Largest share of the non-zero values that a sample had below the smallest normal one, flushed ones included."""
    underflow_step: int | None
    """The first step that had it; None if nothing underflowed."""
    mean_underflow: float
    """That share of the values of all samples."""
    saturated: int
    """Values of all samples that are too large for the compute dtype."""
    nans: int
    infs: int
    is_zero: bool
    """Whether every value of all samples is zero."""

    @property
    def vanishes(self) -> bool:
        """Whether much of a gradient underflows. Activations may: the tail of a softmax is no loss."""
        return self.kind is not TensorKind.activation and self.mean_underflow > MUCH_UNDERFLOW


def worst_layers(run: Run, limit: int | None = 10) -> list[WorstLayer]:
    """Return the layers that came closest to an end of the compute dtype, the worst first, each kind by itself.

    First those with NaN, Inf or saturated values, origins of incidents before their victims; then those whose gradients
    vanish or whose values are within a bit of overflow; then by least headroom; last those that are not at risk. Of a
    layer that was moved to FP32 only the samples from before count.

    Args:
        run: with any number of samples; takes about a second per million.
        limit: entries at most; None for all.
    """
    return [*_ranked(run)[:limit]]


@lru_cache(maxsize=1)  # a page and its verdict ask for the same
def _ranked(run: Run) -> tuple[WorstLayer, ...]:
    found: dict[tuple[str, str], WorstLayer] = {}
    for row in _extremes(run):
        key = row["layer"], row["kind"]
        if key not in found or row["is_at_risk"]:
            found[key] = _worst_layer(row)
    origins = {each.layer for each in run.incidents}
    return tuple(sorted(found.values(), key=lambda each: _by_danger(each, is_origin=each.layer in origins)))


def fp32_layers(run: Run) -> dict[str, str]:
    """Return the layers that were chosen to run in FP32, and why: of the newest summary, else of the precision map."""
    listed = run.info.summary.get("fp32_layers") if run.info is not None else None
    if isinstance(listed, dict):
        return {str(name): str(why) for name, why in listed.items()}
    return {} if run.precision_map is None else run.precision_map.islands


def _by_danger(layer: WorstLayer, *, is_origin: bool) -> tuple[Any, ...]:
    has_broken = bool(layer.nans or layer.infs or layer.saturated)
    headroom = float("inf") if layer.headroom_bits is None else layer.headroom_bits
    is_in_trouble = layer.vanishes or headroom < TIGHT_BITS
    rank = (0 if is_origin else 1) if has_broken else 2 if is_in_trouble else 3
    return (not layer.is_at_risk, rank, headroom, -layer.underflow, layer.layer, layer.kind.value)


def _worst_layer(row: dict[str, Any]) -> WorstLayer:
    return WorstLayer(
        layer=row["layer"],
        kind=TensorKind(row["kind"]),
        dtype=row["dtype"],
        is_at_risk=row["is_at_risk"],
        samples=row["step_count"],
        headroom_bits=row["headroom_bits_min"],
        headroom_step=None if row["headroom_bits_min"] is None else row["headroom_step"],
        loss_scale=row["loss_scale"],
        underflow=row["underflow_max"],
        underflow_step=row["underflow_step"] if row["underflow_max"] else None,
        mean_underflow=row["small_sum"] / row["nonzero_sum"] if row["nonzero_sum"] else 0.0,
        saturated=row["saturated_sum"],
        nans=row["nans_sum"],
        infs=row["infs_sum"],
        is_zero=row["zeros_sum"] > 0 and not (row["nonzero_sum"] or row["nans_sum"] or row["infs_sum"]),
    )


def _extremes(run: Run) -> list[dict[str, Any]]:
    """Return a row for each layer and kind, at risk and not: extremes, where they were, and sums."""
    import pyarrow as pa
    import pyarrow.compute as pc

    of = run.samples
    names = ("step", "layer", "kind", "dtype", "loss_scale", "zeros", "nans", "infs", "saturated", "headroom_bits")
    columns = {name: of[name] for name in names}
    # Sorting and grouping a million strings is slow, a million numbers is not.
    for name in ("layer", "kind"):
        columns[name] = columns[name].dictionary_encode().unify_dictionaries()
    small = pc.add(of["flushed"], of["subnormal"])
    nonzero = pc.subtract(of["numel"], pc.add(of["zeros"], pc.add(of["nans"], of["infs"])))
    share = pc.divide(pc.cast(small, pa.float64()), pc.cast(pc.max_element_wise(nonzero, 1), pa.float64()))
    columns |= {"small": small, "nonzero": nonzero, "underflow": share, "is_at_risk": _at_risk(run)}
    table = pa.table(columns)
    keys = ["layer", "kind", "is_at_risk"]

    def first(order: list[tuple[str, str]], *wanted: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Return what a column holds in the first row of each group."""
        # With threads the first row of a group would be any.
        groups = table.select([*keys, *wanted, *(name for name, _ in order if name not in wanted)]).sort_by(order)
        rows = groups.group_by(keys, use_threads=False).aggregate([(name, "first") for name in wanted]).to_pylist()
        return {tuple(row[name] for name in keys): row for row in rows}

    least = first([("headroom_bits", "ascending"), ("step", "ascending")], "step", "loss_scale")
    most = first([("underflow", "descending"), ("step", "ascending")], "step")
    newest = first([("step", "descending")], "dtype")
    sums = [(name, "sum") for name in ("small", "zeros", "nonzero", "saturated", "nans", "infs")]
    extremes = [("headroom_bits", "min"), ("underflow", "max"), ("step", "count")]
    rows: list[dict[str, Any]] = table.group_by(keys).aggregate([*sums, *extremes]).to_pylist()
    for row in rows:
        key = tuple(row[name] for name in keys)
        row["headroom_step"], row["loss_scale"] = least[key]["step_first"], least[key]["loss_scale_first"]
        row["underflow_step"], row["dtype"] = most[key]["step_first"], newest[key]["dtype_first"]
    return rows


def _at_risk(run: Run) -> "pa.ChunkedArray":
    """Return for each sample whether its values were computed in the compute dtype, and so may leave its range.

    In a half-precision run, values in FP32 were not. The gradients of FP32 weights are FP32 even where autocast
    computed them in half precision: they are safe only if their layer is in FP32, or if they exceed the half format.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    of = run.samples
    is_half_run = pc.is_in(of["compute_dtype"], value_set=pa.array(HALF))
    is_wide = pc.and_(is_half_run, pc.is_in(of["dtype"], value_set=pa.array(WIDE)))
    is_of_weights = pc.equal(of["kind"], TensorKind.parameter_gradient.value)
    wide_layers = _wide_layers(run, pc.unique(of["layer"].filter(pc.and_not(is_wide, is_of_weights))).to_pylist())
    is_of_wide_layer = pc.is_in(of["layer"], value_set=pa.array(wide_layers, pa.string()))
    exceeds = pc.fill_null(pc.less(of["headroom_bits"], 0.0), False)
    is_safe = pc.or_(pc.invert(is_of_weights), pc.or_(is_of_wide_layer, exceeds))
    return pc.invert(pc.and_(is_wide, is_safe))


def _wide_layers(run: Run, with_wide_values: list[str]) -> list[str]:
    """Return the sampled layers that are known to run in FP32: by their values, as chosen, or by the precision map."""
    import pyarrow.compute as pc

    mapped = run.precision_map.layers if run.precision_map is not None else {}
    chosen = fp32_layers(run)
    known = {*with_wide_values, *(name for name, layer in mapped.items() if layer.format in WIDE)}
    names = pc.unique(run.samples["layer"]).to_pylist()
    return [name for name in names if name in known or any(is_below(name, above) for above in chosen)]
