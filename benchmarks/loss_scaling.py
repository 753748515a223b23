"""How many steps does a loss scale lose, and how far below the best feasible scale does it stay?

Four scalers: our `dynamic` and `predictive` with default settings, our `static`, and `torch.amp.GradScaler` with its
own defaults. A static scale needs somebody who knows it: it gets the highest power of two that never overflows in the
recorded run of the same training, found with hindsight, and goes on skipping where it overflows all the same.

1. Traces: what a real training needed, recorded by helpers/record_traces.py, and a few synthetic ones, named as such.
   Every scaler sees the same gradients.
2. Trainings: the same three trainings through a real Lightning trainer, each scaler on a trajectory of its own.

A step counts as lost when the optimizer did not step, as retried when it stepped with a second run of the same batch.
`below` is the mean of log2(best feasible scale / scale), over all steps of a trace, and over every 50th step of a
training, where the best feasible scale is found by trying on that very batch. Negative: the scale was too high.
Steps up to the 100th are warm-up and counted apart.

    python benchmarks/loss_scaling.py [--steps 10000]
"""

import argparse
import gzip
import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.feasible import amax, best_feasible, scaled_gradients
from helpers.harness import FOLDER, circumstances, write
from helpers.trainings import TRAININGS, Training, fit
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.console import Console
from rich.table import Table

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.scaling.scaler import LossScaler

SCALERS = ("dynamic", "predictive", "static", "GradScaler")
FULL = 10_000
WARM_UP = 100
PROBE_EVERY = 50
SYNTHETIC = ("synthetic: drift", "synthetic: step change", "synthetic: spikes", "synthetic: gap")


# Settings.


def scaling(policy: str, steady: int) -> LossScaling:
    """Return our settings: the defaults, for static a scale that does not overflow."""
    if policy != "static":
        return LossScaling(policy=policy)
    return LossScaling(policy="static", init_scale=2.0**steady, at_min_scale="skip")


def steady_exponent(name: str) -> int:
    """Return the exponent of the highest scale that never overflows in a trace."""
    return min(24, *(exponent for _, exponent in trace(name)))


def trace(name: str) -> list[tuple[float, int]]:
    """Return log2 of the largest gradient and of the best feasible scale, step by step."""
    if name in SYNTHETIC:
        return synthetic(name)
    lines = gzip.decompress((FOLDER / "traces" / f"{name}.csv.gz").read_bytes()).decode().split()
    return [(float(bits), int(exponent)) for bits, exponent in (line.split(",") for line in lines)]


def synthetic(name: str, steps: int = 10_000) -> list[tuple[float, int]]:
    """Return a normal log2 amax with a spread of half a bit around a level that does what the name says."""
    rng = random.Random(0)
    rows = []
    for step in range(steps):
        level = {
            "synthetic: drift": 2 - 16 * step / steps,  # sixteen bits down
            "synthetic: step change": -4 if step < steps // 2 else 0,
            "synthetic: spikes": -3 + (4 if rng.random() < 0.002 else 0),
            "synthetic: gap": -6,  # inside the backward pass gradients are larger, at first by six bits
        }[name]
        gap = 6 * (1 - step / steps) if name == "synthetic: gap" else 0
        bits = rng.gauss(level, 0.5)
        rows.append((bits, math.floor(math.log2(65504) - bits - gap)))
    return rows


# 1. Traces.


def replay(scaler_name: str, trace_name: str) -> dict[str, Any]:
    """Walk a real scaler through a trace."""
    steady = steady_exponent(trace_name)
    ours = scaler_name != "GradScaler"
    scaler: Any = LossScaler(scaling(scaler_name, steady)) if ours else torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler.scale(torch.zeros(1))
    retries = scaler.config.retries if ours and scaler_name != "static" else 0
    lost, retried, below = Steps(), Steps(), []
    for step, (bits, exponent) in enumerate(trace(trace_name)):
        for attempt in range(retries + 1):
            scale = scaler.get_scale()
            overflows = scale > 2.0**exponent
            parameter.grad = torch.tensor([math.inf if overflows else scale * 2.0**bits])
            if attempt == 0:
                below.append(exponent - math.log2(scale))
            scaler.step(optimizer)
            if not overflows:
                scaler.update()
                retried.count(step, bool(attempt))
                break
            scaler.update(**({"run_again": attempt < retries} if ours else {}))
        lost.count(step, overflows)
    return {"lost": lost.numbers, "retried": retried.numbers, "bits_below": statistics.fmean(below)}


class Steps:
    """Count steps in and after the warm-up."""

    def __init__(self) -> None:
        self.numbers = {"warm_up": 0, "after": 0}

    def count(self, step: int, happened: int) -> None:
        self.numbers["warm_up" if step < WARM_UP else "after"] += happened


# 2. Trainings.


class Probe(pl.Callback):
    """Look at every 50th batch: the best feasible scale and what underflows; and count what happened to the steps."""

    def __init__(self) -> None:
        self.lost, self.retried = Steps(), Steps()
        self.below: list[float] = []
        self.flushed: list[float] = []
        self.seconds = 0.0
        self._before = (0, 0)
        self._exponent = 10

    def on_train_batch_start(self, trainer: Any, training: Any, batch: Any, step: int) -> None:
        self._scale = trainer.precision_plugin.scaler.get_scale()
        if step % PROBE_EVERY:
            return
        start = time.perf_counter()
        parameters = list(training.parameters())
        with torch.autocast("cpu", dtype=torch.float16, cache_enabled=False):
            loss = training.loss(batch)
        self._exponent, _ = best_feasible(loss, parameters, self._exponent)
        self.below.append(self._exponent - math.log2(self._scale))
        used = scaled_gradients(loss, parameters, math.log2(self._scale))
        if amax(used) < math.inf:
            exact = torch.autograd.grad(training.loss(batch), parameters)
            self.flushed.append(share_flushed(used, list(exact)))
        self.seconds += time.perf_counter() - start

    def on_train_batch_end(self, trainer: Any, training: Any, outputs: Any, batch: Any, step: int) -> None:
        plugin = trainer.precision_plugin
        if isinstance(plugin, AdaptivePrecision):
            now = (plugin.skipped_steps, plugin.retried_steps)
            self.lost.count(step, now[0] - self._before[0])
            self.retried.count(step, now[1] - self._before[1])
            self._before = now
        else:  # a GradScaler backs off when it skips, and only then
            self.lost.count(step, plugin.scaler.get_scale() < self._scale)


def share_flushed(used: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Return the share of gradient values, among those that are not zero in fp32, which are zero at the scale used."""
    nonzero = sum(int(e.count_nonzero()) for e in exact)
    lost = sum(int(((u == 0) & (e != 0)).sum()) for u, e in zip(used, exact, strict=True))
    return lost / max(nonzero, 1)


def train(scaler_name: str, name: str, steps: int) -> dict[str, Any]:
    """Train with one scaler; return what was lost and what came of it."""
    if scaler_name == "GradScaler":
        plugin: Any = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    else:
        plugin = AdaptivePrecision("fp16", scaling=scaling(scaler_name, steady_exponent(name)))
    probe, training = Probe(), Training(name, steps)
    start = time.perf_counter()
    fit(training, plugin, probe)
    return {
        "lost": probe.lost.numbers,
        "retried": probe.retried.numbers,
        "bits_below": statistics.fmean(probe.below),
        "bits_below_after_warm_up": statistics.fmean(probe.below[WARM_UP // PROBE_EVERY :] or [math.nan]),
        "flushed_to_zero": statistics.fmean(probe.flushed) if probe.flushed else None,
        "probes": len(probe.below),
        "final_scale": plugin.scaler.get_scale(),
        "final_loss": statistics.fmean(training.losses[-200:]),
        "seconds": time.perf_counter() - start - probe.seconds,
    }


# Output.


def show(title: str, results: dict[str, dict[str, dict[str, Any]]], console: Console) -> None:
    """Print one table: a row per run and scaler, warm-up + later steps."""
    headings = {"flushed_to_zero": "flushed", "final_loss": "loss", "seconds": "s"}
    further = [key for key in headings if key in next(iter(results.values()))["static"]]
    table = Table(title=title)
    for heading in ("", "scaler", "lost", "retried", "below", *(headings[key] for key in further)):
        table.add_column(heading, no_wrap=True)
    for name, by_scaler in results.items():
        for scaler, found in by_scaler.items():
            counts = [f"{found[key]['warm_up']} + {found[key]['after']}" for key in ("lost", "retried")]
            values = ["-" if found[key] is None else f"{found[key]:.2g}" for key in further]
            table.add_row(name, scaler, *counts, f"{found['bits_below']:.2f}", *values)
        table.add_section()
    console.print(table)


def run_all(work: Callable[..., dict[str, Any]], names: tuple[str, ...], *arguments: Any) -> dict[str, dict[str, Any]]:
    """Run every scaler on every name, in as many processes as there are cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        runs = {(n, s): pool.submit(work, s, n, *arguments) for n in names for s in SCALERS}
        return {name: {scaler: runs[name, scaler].result() for scaler in SCALERS} for name in names}


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    written = "of each training; only the default is written to results/"
    parser.add_argument("--steps", type=int, default=FULL, help=f"optimizer steps {written}")
    steps = parser.parse_args().steps
    console = Console()
    found = circumstances()
    traces = run_all(replay, (*TRAININGS, *SYNTHETIC))
    show(f"Traces: steps in the first {WARM_UP} + later steps", traces, console)
    trainings = run_all(train, TRAININGS, steps)
    show(f"Trainings of {steps:,} steps: in the first {WARM_UP} + later", trainings, console)
    static = {name: 2.0 ** steady_exponent(name) for name in (*TRAININGS, *SYNTHETIC)}
    note = "trainings run in parallel, one per core: their seconds compare among themselves only"
    if steps != FULL:
        console.print(f"Not written down: {steps:,} steps are a look, {FULL:,} the benchmark.")
        return
    write("loss_scaling", {**found, "note": note, "static_scales": static, "traces": traces, "trainings": trainings})


if __name__ == "__main__":
    main()
