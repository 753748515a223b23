"""What the Parquet parts of a run hold: a row for each sample of a layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from mp_plugin.telemetry.arrow_arrays import arrow_array
from mp_plugin.telemetry.layer_sample import LayerSample

SCHEMA_VERSION = 1
"""What a column means; a release that changes that counts it up."""
VERSION_KEY = b"mp_plugin.schema_version"
"""Under which the metadata of a part has it."""

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("step", pa.int64()),
        ("layer", pa.string()),
        ("kind", pa.string()),
        ("dtype", pa.string()),
        ("compute_dtype", pa.string()),
        ("loss_scale", pa.float64()),
        ("numel", pa.int64()),
        ("zeros", pa.int64()),
        ("nans", pa.int64()),
        ("infs", pa.int64()),
        ("flushed", pa.int64()),
        ("subnormal", pa.int64()),
        ("saturated", pa.int64()),
        ("amax", pa.float64()),
        ("rms", pa.float64()),
        ("smallest", pa.float64()),
        ("headroom_bits", pa.float64()),
        # Number of values of the exponents from the lowest one up, without gaps; null where nobody counted.
        ("lowest_exponent", pa.int16()),
        ("exponent_counts", pa.list_(pa.int64())),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION)},
)


def rows_of(samples: Sequence[LayerSample], run: str) -> pa.Table:
    """Return samples as a table, one row each.

    Args:
        samples: in the order of the model.
        run: tells the sessions that write to one directory apart.
    """
    stats = [sample.stats for sample in samples]
    lowest = [min(each.exponents, default=None) for each in stats]
    columns: dict[str, list[Any]] = {
        "run": [run] * len(samples),
        "step": [sample.step for sample in samples],
        "layer": [sample.layer for sample in samples],
        "kind": [sample.kind.value for sample in samples],
        "dtype": [sample.dtype for sample in samples],
        "compute_dtype": [sample.compute_dtype for sample in samples],
        "loss_scale": [sample.loss_scale for sample in samples],
        "numel": [each.numel for each in stats],
        "zeros": [each.zeros for each in stats],
        "nans": [each.nans for each in stats],
        "infs": [each.infs for each in stats],
        "flushed": [each.flushed for each in stats],
        "subnormal": [each.subnormal for each in stats],
        "saturated": [each.saturated for each in stats],
        "amax": [each.amax for each in stats],
        "rms": [each.rms for each in stats],
        "smallest": [each.smallest for each in stats],
        "headroom_bits": [sample.headroom_bits for sample in samples],
        "lowest_exponent": lowest,
        "exponent_counts": [_counts(each.exponents, first) for each, first in zip(stats, lowest, strict=True)],
    }
    arrays = [arrow_array(columns[field.name], field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _counts(exponents: Mapping[int, int], lowest: int | None) -> list[int] | None:
    return None if lowest is None else [exponents.get(each, 0) for each in range(lowest, max(exponents) + 1)]
