"""How large the samples of a run are on disk, and how long it takes to write and to read them.

The samples are synthetic: normally distributed values, with the noise that real counts have.

    PYTHONPATH=. python benchmarks/store.py [--layers 300] [--samples 1000]
"""

import argparse
import statistics
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import ClassVar

from helpers.harness import circumstances, write

from mp_plugin.telemetry.layer_sample import LayerSample
from mp_plugin.telemetry.store import open_run
from mp_plugin.telemetry.write_samples import StatsFiles
from tests.helpers import recorded_runs


class TimedFiles(StatsFiles):
    """Notes what each part costs."""

    parts: ClassVar[list[tuple[int, float]]] = []

    def _write(self, samples: Sequence[LayerSample]) -> None:
        start = perf_counter()
        super()._write(samples)
        self.parts.append((len(samples), perf_counter() - start))


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1000)
    chosen = parser.parse_args()
    found = circumstances()
    result = {}
    recorded_runs.StatsFiles = TimedFiles  # type: ignore[misc]
    for histograms in (False, True):
        TimedFiles.parts = []
        with TemporaryDirectory() as directory:
            run = recorded_runs.record_run(
                directory, num_layers=chosen.layers, num_samples=chosen.samples, histograms=histograms
            )
            rows = sum(number for number, _ in TimedFiles.parts)
            sizes = sum(path.stat().st_size for path in run.rglob("*.parquet"))
            open_run(run)  # imports pyarrow
            seconds = []
            for _ in range(3):
                start = perf_counter()
                assert open_run(run).samples.num_rows == rows
                seconds.append(perf_counter() - start)
        name = "with histograms" if histograms else "without histograms"
        result[name] = {
            "rows": rows,
            "parts": len(TimedFiles.parts),
            "bytes per row": round(sizes / rows, 1),
            "microseconds per row written": round(1e6 * sum(each for _, each in TimedFiles.parts) / rows, 1),
            "seconds to open the run": round(statistics.median(seconds), 2),
        }
        print(f"{name}: " + ", ".join(f"{value:,} {label}" for label, value in result[name].items()))
    write("store", {**found, **result})


if __name__ == "__main__":
    main()
