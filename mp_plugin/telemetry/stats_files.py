"""The samples of a run on disk: Parquet parts, each complete when it appears."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
    return pa.Table.from_pylist([_row(sample, run) for sample in samples], schema=SCHEMA)


def _row(sample: LayerSample, run: str) -> dict[str, object]:
    stats = sample.stats
    lowest = min(stats.exponents, default=None)
    counts = None
    if lowest is not None:
        counts = [stats.exponents.get(each, 0) for each in range(lowest, max(stats.exponents) + 1)]
    return {
        "run": run,
        "step": sample.step,
        "layer": sample.layer,
        "kind": sample.kind.value,
        "dtype": sample.dtype,
        "compute_dtype": sample.compute_dtype,
        "loss_scale": sample.loss_scale,
        "numel": stats.numel,
        "zeros": stats.zeros,
        "nans": stats.nans,
        "infs": stats.infs,
        "flushed": stats.flushed,
        "subnormal": stats.subnormal,
        "saturated": stats.saturated,
        "amax": stats.amax,
        "rms": stats.rms,
        "smallest": stats.smallest,
        "headroom_bits": sample.headroom_bits,
        "lowest_exponent": lowest,
        "exponent_counts": counts,
    }


class StatsFiles:
    """Write samples to `telemetry/stats/part-*.parquet`, a part at a time.

    Args:
        directory: of the run.
        run: tells the sessions that write to one directory apart: the time when this one began.
    """

    def __init__(self, directory: str | os.PathLike[str], *, run: str) -> None:
        self.directory = Path(directory) / "telemetry" / "stats"
        self._run = run
        self._waiting: list[LayerSample] = []

    def append(self, samples: Sequence[LayerSample]) -> None:
        """Take samples of one step; they are on disk after the next flush at the latest."""
        self._waiting.extend(samples)

    def flush(self) -> None:
        """Write what waits as the next part."""
        if not self._waiting:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"part-{len(list(self.directory.glob('part-*.parquet'))):05d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(rows_of(self._waiting, self._run), partial, compression="zstd")
        partial.replace(path)
        self._waiting = []
