"""What do samples of the layers cost? In one process, in turn, as a ratio.

1. Budget: the time of whole trainings with default telemetry, and with `precision/telemetry=full`, beside none at all.
   The first step is left out of all: it loads what every run loads once.
2. Intervals: the same without a budget, every 1, 10 and 100 steps, beside hooks that take the same statistics and read
   each number back at once, in the manner of `wandb.watch(log="all")` (helpers/watch.py).

A perceptron in bf16 on the CPU, one thread: see `step_ms` for its step. A sample is the time of a block of steps; the
ratio is taken within a round, of which the order rotates, so that what slows down the machine slows down all.

    python benchmarks/telemetry.py [--rounds 9]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.clock import Clock
from helpers.harness import circumstances, write
from helpers.trainings import fit
from helpers.watch import Watch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mp_plugin import AdaptivePrecision, Telemetry

STEPS = 400
INTERVAL_STEPS = 101
WIDTH, DEPTH, BATCH = 512, 6, 256

Setting = tuple[Telemetry, Callable[[], list[pl.Callback]]]

NONE = Telemetry(every_n_steps=0)
FULL = {"activations": True, "histograms": True}


def ours(**options: Any) -> Setting:
    return Telemetry(**options), list


def hooks(every: int, **options: Any) -> Setting:
    return NONE, lambda: [Watch(every, **options)]


BUDGETED: dict[str, Setting] = {"none": (NONE, list), "default": ours(), "full": ours(**FULL)}
INTERVALS: dict[str, Setting] = {"none": (NONE, list)}
for each in (1, 10, 100):
    INTERVALS |= {
        f"gradients every {each}": ours(every_n_steps=each, max_overhead=1),
        f"gradients every {each}, hooks": hooks(each, activations=False, histograms=False),
        f"full every {each}": ours(every_n_steps=each, max_overhead=1, **FULL),
        f"full every {each}, hooks": hooks(each, activations=True, histograms=True),
    }


class Perceptron(pl.LightningModule):
    """Layers of one width, on random data."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = steps
        self.net = nn.Sequential(
            *(layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())), nn.Linear(WIDTH, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])

    def train_dataloader(self) -> Any:
        rows = TensorDataset(torch.randn(BATCH * 8, WIDTH), torch.randint(10, (BATCH * 8,)))
        return DataLoader(rows, batch_size=BATCH)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def block(setting: Setting, steps: int, *, warm_up: int) -> tuple[float, dict[str, Any]]:
    """Train for a block; return the seconds of its steps, and what the run says of its samples."""
    telemetry, callbacks = setting
    clock = Clock(warm_up)
    with tempfile.TemporaryDirectory() as folder:
        plugin = AdaptivePrecision("bf16", telemetry=replace(telemetry, directory=folder))
        # The epochs are short, so that steps are counted over all of them.
        fit(Perceptron(steps), plugin, AllSteps(clock), *callbacks(), max_epochs=-1)
    return sum(clock.seconds), plugin.summary()["telemetry"]


class AllSteps(pl.Callback):
    """Counts steps over all epochs for a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.step = 0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.clock.on_train_batch_start(*arguments)

    def on_train_batch_end(self, trainer: Any, training: Any, outputs: Any, batch: Any, step: int) -> None:
        self.clock.on_train_batch_end(trainer, training, outputs, batch, self.step)
        self.step += 1


def measure(settings: dict[str, Setting], steps: int, rounds: int, *, warm_up: int) -> dict[str, Any]:
    """Run all settings in turn; return the seconds of each block and the ratios to `none`."""
    names = list(settings)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    told: dict[str, dict[str, Any]] = {}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            taken, told[name] = block(settings[name], steps, warm_up=warm_up)
            seconds[name].append(taken)
    ratios = {
        name: [ours / none for ours, none in zip(seconds[name], seconds["none"], strict=True)]
        for name in names
        if name != "none"
    }
    step_ms = 1000 * statistics.median(seconds["none"]) / (steps - warm_up)
    return {"step_ms": step_ms, "steps": steps, "seconds": seconds, "ratios": ratios, "told": told}


def show(title: str, found: dict[str, Any]) -> None:
    """Print ratios as a table."""
    table = Table(title=f"{title}: time / none, median (quartiles), steps of {found['step_ms']:.1f} ms")
    for heading in ("setting", "ratio", "samples taken", "left out", "share by its own measure"):
        table.add_column(heading)
    for name, ratios in found["ratios"].items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        told = found["told"][name]
        is_ours = told["taken"] > 0
        own = [str(told["taken"]), str(told["left_out"]), f"{told['share']:.2%}"] if is_ours else ["", "", ""]
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", *own)
    Console().print(table)


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    found = circumstances()
    budgeted = measure(BUDGETED, STEPS, rounds, warm_up=1)
    show("Within the budget", budgeted)
    intervals = measure(INTERVALS, INTERVAL_STEPS, max(3, rounds // 3), warm_up=0)
    show("Without a budget", intervals)
    after = circumstances()["load_average"]
    write("telemetry", {**found, "load_average_after": after, "budgeted": budgeted, "intervals": intervals})


if __name__ == "__main__":
    main()
