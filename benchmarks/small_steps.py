"""What does the plugin cost at its worst: how long does a tiny step take beside stock `MixedPrecision`? As a ratio.

Every round trains the perceptron of helpers/trainings.py for a block of steps with stock, with our dynamic and with our
predictive scale, in an order that rotates. A sample is the median time of the steps of one block, from the start of a
batch to its end; the ratio is taken within a round, so that what slows down the machine for a while slows down all.
fp16 on the CPU, one thread: the model is small, so these ratios show the cost of the plugin at its worst.

    python benchmarks/small_steps.py [--rounds 15]
"""

import argparse
import statistics
from typing import Any

import torch
from helpers.clock import Clock
from helpers.harness import circumstances, write
from helpers.trainings import Training, fit
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.console import Console
from rich.table import Table

from mp_plugin import AdaptivePrecision, LossScaling

STEPS = 300
WARM_UP = 50
PLUGINS = {
    "stock": lambda: MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**15)),
    "dynamic": lambda: AdaptivePrecision("fp16"),
    "predictive": lambda: AdaptivePrecision("fp16", scaling=LossScaling(policy="predictive")),
}
OPTIMIZERS = {"SGD": {}, "SGD, fused": {"fused": True}, "AdamW": {}, "AdamW, fused": {"fused": True}}


class Timed(Training):
    """The digits training with another optimizer, without a look at its own loss."""

    def __init__(self, optimizer: str) -> None:
        super().__init__("digits", STEPS)
        self.optimizer = optimizer

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def configure_optimizers(self):
        kind = getattr(torch.optim, self.optimizer.partition(",")[0])
        return kind(self.parameters(), lr=0.01, **OPTIMIZERS[self.optimizer])


def block(plugin: Any, optimizer: str) -> float:
    """Train for a block and return the median seconds of a step."""
    clock = Clock(WARM_UP)
    fit(Timed(optimizer), plugin, clock)
    return statistics.median(clock.seconds)


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    found = circumstances()
    samples: dict[str, dict[str, list[float]]] = {name: {plugin: [] for plugin in PLUGINS} for name in OPTIMIZERS}
    for index in range(rounds):
        for optimizer in OPTIMIZERS:
            order = list(PLUGINS)
            for plugin in order[index % 3 :] + order[: index % 3]:
                samples[optimizer][plugin].append(block(PLUGINS[plugin](), optimizer))
    table = Table(title=f"Step time beside stock MixedPrecision: median of {rounds} rounds (quartiles)")
    for heading in ("optimizer", "stock, ms", "dynamic / stock", "predictive / stock"):
        table.add_column(heading)
    ratios: dict[str, dict[str, list[float]]] = {}
    for optimizer, taken in samples.items():
        ratios[optimizer] = {
            plugin: [ours / stock for ours, stock in zip(taken[plugin], taken["stock"], strict=True)]
            for plugin in ("dynamic", "predictive")
        }
        row = [f"{1000 * statistics.median(taken['stock']):.2f}"]
        for values in ratios[optimizer].values():
            low, middle, high = statistics.quantiles(values, n=4)
            row.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        table.add_row(optimizer, *row)
    Console().print(table)
    after = circumstances()["load_average"]
    write("small_steps", {**found, "load_average_after": after, "ratios": ratios, "seconds": samples})


if __name__ == "__main__":
    main()
