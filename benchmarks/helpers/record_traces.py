"""Record what a loss scale has to live with: per step the largest true gradient and the highest scale that fits.

Each training of trainings.py runs in fp16 at the best feasible scale of every single batch, so that no scaler has a say
in the trajectory. One line per step: log2 of the largest magnitude of all true gradients, and log2 of that scale.

    cd benchmarks && python -m helpers.record_traces [--steps 10000]
"""

import argparse
import gzip
import math
from collections.abc import Iterator

import torch
from helpers.feasible import amax, best_feasible
from helpers.harness import FOLDER
from helpers.trainings import TRAININGS, Training


def record(name: str, steps: int) -> Iterator[tuple[float, int]]:
    """Train, and yield log2 of the largest gradient and of the best feasible scale of each step."""
    training = Training(name, steps)
    configured = training.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    parameters = list(training.parameters())
    exponent = 10
    for _, batch in zip(range(steps), training.train_dataloader(), strict=False):
        with torch.autocast("cpu", dtype=torch.float16, cache_enabled=False):
            loss = training.loss(batch)
        exponent, grads = best_feasible(loss, parameters, exponent)
        yield math.log2(amax(grads)), exponent
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        scheduler.step()


def main() -> None:
    """Record all trainings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    (FOLDER / "traces").mkdir(exist_ok=True)
    for name in TRAININGS:
        lines = [f"{bits:.3f},{exponent}\n" for bits, exponent in record(name, steps)]
        # Without a time stamp the same trace is the same file.
        data = gzip.compress("".join(lines).encode(), mtime=0)
        (FOLDER / "traces" / f"{name}.csv.gz").write_bytes(data)
        print(f"{name}: {len(lines)} steps, {len(data)} bytes")


if __name__ == "__main__":
    main()
