"""What importing mp_plugin adds to importing lightning, and how fast `mp-plugin --help` answers.

Each sample is a fresh interpreter. What mp_plugin adds is measured behind the import of lightning in the same process,
so that the seconds lightning takes, and their noise, are not in the figure.

    python benchmarks/import_time.py [--rounds 15]
"""

import argparse
import statistics
import subprocess
import sys

from helpers.harness import circumstances, write

IMPORT = """
import time
start = time.perf_counter()
import lightning.pytorch
between = time.perf_counter()
from mp_plugin import AdaptivePrecision, LossScaling
print(between - start, time.perf_counter() - between)
"""

HELP = """
import contextlib, io, sys, time
start = time.perf_counter()
sys.argv = ["mp-plugin", "--help"]
from mp_plugin.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
assert "torch" not in sys.modules
print(time.perf_counter() - start)
"""


def sample(code: str) -> list[float]:
    """Run code in a fresh interpreter and return the seconds that it printed."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    found = circumstances()
    samples: dict[str, list[float]] = {"import lightning": [], "added by mp_plugin": [], "mp-plugin --help": []}
    for index in range(rounds + 1):
        seconds = [*sample(IMPORT), *sample(HELP)]
        if index:  # the first round fills the disk cache
            for name, value in zip(samples, seconds, strict=True):
                samples[name].append(value)
    print(f"{'':20} {'median':>9} {'min':>9} {'max':>9}   milliseconds, {rounds} rounds")
    for name, values in samples.items():
        print(f"{name:20} " + " ".join(f"{1000 * pick(values):9.1f}" for pick in (statistics.median, min, max)))
    write("import_time", {**found, "seconds": samples})


if __name__ == "__main__":
    main()
