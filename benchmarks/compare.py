"""How long `mp-plugin compare` takes for 100 runs with predictions, and how large the page is.

The runs are made on the spot: four precisions, 25 seeds each, 10,000 test samples each; the command is a process of its
own, its imports included.

    PYTHONPATH=. python benchmarks/compare.py [--seeds 25] [--samples 10000]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from helpers.harness import circumstances, write

from tests.helpers.compared_runs import write_run

COMMAND = "from mp_plugin.cli import main; main()"
PRECISIONS = (("fp32", {}), ("bf16", {}), ("fp16", {}), ("fp16", {"fallback": {"auto": True}}))


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    random = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        sweep, page = Path(folder) / "sweep", Path(folder) / "compare.html"
        for number in range(len(PRECISIONS) * chosen.seeds):
            precision, settings = PRECISIONS[number // chosen.seeds]
            label = random.integers(0, 10, chosen.samples)
            prediction = np.where(random.random(chosen.samples) < 0.9, label, (label + 1) % 10)
            columns = {"label": label, "prediction": prediction, "confidence": random.uniform(0.1, 1, chosen.samples)}
            accuracy = float((label == prediction).mean())
            seed = number % chosen.seeds
            write_run(
                sweep / str(number), precision, seed, accuracy, settings=settings, incidents=5, predictions=columns
            )
        found = circumstances()
        rounds = []
        for _ in range(chosen.rounds):
            start = perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "compare", str(sweep), "-o", str(page), "--force"],
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
    runs = len(PRECISIONS) * chosen.seeds
    write("compare", {**found, "runs": runs, "samples": chosen.samples, "rounds": rounds})


if __name__ == "__main__":
    main()
