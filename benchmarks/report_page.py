"""How long `mp-plugin report` takes for a large run, how much memory, and how large the page is.

The run is synthetic, with histograms; the command is a process of its own, its imports included.

    PYTHONPATH=. python benchmarks/report_page.py [--layers 300] [--samples 1000]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from helpers.harness import circumstances, write

from tests.helpers.recorded_runs import record_run

COMMAND = "from mp_plugin.cli import main; main()"


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        run = record_run(Path(folder) / "run", num_layers=chosen.layers, num_samples=chosen.samples, incidents=12)
        page = Path(folder) / "report.html"
        found = circumstances()
        rounds = []
        for _ in range(chosen.rounds):
            start = perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "report", str(run), "-o", str(page), "--force"],
                stdout=subprocess.DEVNULL,
            )
            _, status, used = os.wait4(process.pid, 0)
            assert status == 0
            rounds.append(
                {
                    "seconds": round(perf_counter() - start, 2),
                    "CPU seconds": round(used.ru_utime + used.ru_stime, 2),
                    "MB of memory": round(used.ru_maxrss * 1024 / 1e6),
                    "MB of page": round(page.stat().st_size / 1e6, 2),
                }
            )
            print(", ".join(f"{value} {label}" for label, value in rounds[-1].items()))
    write("report_page", {**found, "layers": chosen.layers, "samples": chosen.samples, "rounds": rounds})


if __name__ == "__main__":
    main()
