"""How long does a step take beside stock Lightning, with everything switched on? In one process, in turn, as a ratio.

GPT-2, ResNet-50 and ViT-B/16 train in fp16 and in bf16, with and without clipping, with fused and with foreach AdamW:
with stock `MixedPrecision`, and with ours under telemetry none, light and full (conf/precision/telemetry/*.yaml).
Every training is a real `Trainer.fit`, and all four take turns of a few steps in an order that rotates, so that a ratio
is taken between neighbours in time. A turn ends when the device is done; within it nobody waits for the clock.

Stock refuses to clip with a fused optimizer; ours is compared with what stock has instead there, foreach and clipping.

Beside it: how often the host waits for the device in a healthy step, and, on a GPU, the memory beyond stock's.

    python benchmarks/step_time.py [--device cuda] [--minutes 6] [--only GPT] [--quick]
"""

import gc
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers.devices import allocated_bytes, check_device, forget_peak, parser_of, peak_bytes
from helpers.goals import syncs
from helpers.harness import circumstances, print_table, show_spread, spread, turns, write
from helpers.models import MODELS
from helpers.paced_fit import PacedFit, be_quiet
from helpers.waits import counted_waits
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry

CONF = Path(__file__).parents[1] / "conf" / "precision" / "telemetry"
TELEMETRY = ("none", "light", "full")
NAMES = ("stock", *TELEMETRY)
WARM_UP = {"cpu": 5, "cuda": 6}
EXACT_STEPS = {"cpu": 0, "cuda": 16}
"""That ours makes before it no longer waits for each verdict."""
COUNTED = 4
SCALE = 2.0**8
"""Of every fp16 training: none of these gradients overflows at it."""
CLIP = 1.0
STEPS_OF_A_TURN = {"cpu": 2, "cuda": 10}
MOST_STEPS, FEWEST_ROUNDS = 100, 3


@dataclass(frozen=True)
class Cell:
    """What is compared: four trainings that differ in their plugin."""

    model: str
    precision: str
    optimizer: str
    clips: bool

    @property
    def stock_optimizer(self) -> str:
        """What stock steps with: fused optimizers cannot clip there."""
        return "foreach" if self.clips else self.optimizer


def size_of(cell: Cell, device: str, *, is_quick: bool) -> str:
    """Return which size of a model suits a device: CPUs only emulate fp16."""
    if is_quick:
        return "tiny"
    return "full" if device == "cuda" else {"bf16": "small", "fp16": "tiny"}[cell.precision]


def plugin_for(name: str, cell: Cell, device: str, folder: str) -> Any:
    """Return stock, or ours with the telemetry of that name."""
    if name == "stock":
        scaler = torch.amp.GradScaler(device, init_scale=SCALE) if cell.precision == "fp16" else None
        return MixedPrecision("16-mixed" if scaler else "bf16-mixed", device, scaler)
    chosen = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del chosen["_target_"]
    scaling = LossScaling(init_scale=SCALE) if cell.precision == "fp16" else None
    telemetry = Telemetry(**{**chosen, "directory": f"{folder}/{name}"})
    return AdaptivePrecision(cell.precision, scaling=scaling, telemetry=telemetry)


def start(name: str, cell: Cell, device: str, size: str, folder: str) -> PacedFit:
    """Begin a training, which then stands before its first step."""
    chosen = cell.stock_optimizer if name == "stock" else cell.optimizer
    return PacedFit(
        MODELS[cell.model][size],
        plugin_for(name, cell, device, folder),
        device=device,
        optimizer={chosen: True},
        trainer={"gradient_clip_val": CLIP if cell.clips else None, "default_root_dir": folder},
    )


def measure(cell: Cell, device: str, size: str, *, seconds: float, is_quick: bool) -> dict[str, Any]:
    """Run the four trainings of a cell in turn, for about so long; return what was found."""
    steps = STEPS_OF_A_TURN[device]
    held: dict[str, int] = {}
    fits: dict[str, PacedFit] = {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for name in NAMES:
            before = allocated_bytes(device)
            fits[name] = start(name, cell, device, size, folder)
            fits[name].run(WARM_UP[device] + (EXACT_STEPS[device] if name != "stock" else 0))
            if before is not None:
                held[name] = (allocated_bytes(device) or 0) - before
        gc.collect()
        gc.freeze()  # the more trainings stand by, the longer a collection would take each of them
        round_seconds = sum(fit.run(steps) for fit in fits.values())
        left = seconds - (time.perf_counter() - began)
        rounds = 2 if is_quick else max(FEWEST_ROUNDS, min(MOST_STEPS // steps, int(left / round_seconds)))
        taken: dict[str, list[float]] = {name: [] for name in NAMES}
        for _, order in turns(NAMES, rounds):
            for name in order:
                taken[name].append(fits[name].run(steps) / steps)
        waits = {name: _count_waits(fit, device) for name, fit in fits.items()}
        peaks = {name: held[name] + _peak(fit, device) for name, fit in fits.items()} if held else None
        told = {name: _told(fit) for name, fit in fits.items() if name != "stock"}
        for fit in fits.values():
            fit.finish()
        gc.unfreeze()
    return {
        **asdict(cell),
        "stock_optimizer": cell.stock_optimizer,
        "size": size,
        "batch_size": MODELS[cell.model][size].batch_size,
        "shapes": MODELS[cell.model][size].shapes,
        "parameter_tensors": len([*fits["stock"].training.parameters()]),
        "steps_of_a_turn": steps,
        "seconds": taken,
        "ratios": {name: _ratios(taken, name) for name in TELEMETRY},
        "spread": {name: spread(_ratios(taken, name)) for name in TELEMETRY},
        # In which the steps of a sample have their part; a median passes over them.
        "of_all_time": {name: sum(taken[name]) / sum(taken["stock"]) for name in TELEMETRY},
        "waits_per_step": waits,
        "peak_bytes": peaks,
        "told": told,
    }


def _ratios(taken: dict[str, list[float]], name: str) -> list[float]:
    return [ours / stock for ours, stock in zip(taken[name], taken["stock"], strict=True)]


def _count_waits(fit: PacedFit, device: str) -> dict[str, float]:
    found: Counter[str] = Counter()
    fit.run(COUNTED, within=counted_waits(found, device, fit.optimizer))
    return {name: number / COUNTED for name, number in found.items()}


def _peak(fit: PacedFit, device: str) -> int:
    before = allocated_bytes(device) or 0
    forget_peak(device)
    fit.run(2)
    return (peak_bytes(device) or 0) - before


def _told(fit: PacedFit) -> dict[str, Any]:
    summary = fit.plugin.summary()
    return {"skipped_steps": summary["skipped_steps"], "samples": summary["telemetry"]}


def show(found: list[dict[str, Any]], rounds: str) -> None:
    """Print what was found, a row for each cell."""
    headings = ["model", "precision", "optimizer", "clipping", "stock, ms", *TELEMETRY, "light, of all time"]
    headings += ["syncs: stock", "light", "bytes beyond stock per tensor"]
    rows = []
    for each in found:
        differs = each["optimizer"] != each["stock_optimizer"]
        optimizer = each["optimizer"] + (f", stock {each['stock_optimizer']}" if differs else "")
        peaks = each["peak_bytes"]
        beyond = "-" if peaks is None else f"{(peaks['light'] - peaks['stock']) / each['parameter_tensors']:,.0f}"
        rows.append(
            [
                f"{each['model']}, {each['size']}",
                each["precision"],
                optimizer,
                f"{CLIP:g}" if each["clips"] else "-",
                f"{1000 * statistics.median(each['seconds']['stock']):.1f}",
                *(show_spread(each["ratios"][name]) for name in TELEMETRY),
                f"{each['of_all_time']['light']:.3f}",
                *(f"{syncs(each['waits_per_step'][name]):g}" for name in ("stock", "light")),
                beyond,
            ]
        )
    skipped = {name: sum(each["told"][name]["skipped_steps"] for each in found) for name in TELEMETRY}
    if any(skipped.values()):
        print(f"Not healthy: steps were skipped, {skipped}; lower SCALE and measure again.")
    print_table(f"Step time / stock by telemetry: median of {rounds} rounds (quartiles)", headings, rows)


def main() -> None:
    """Measure, print and write down."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, help="about how long all of it may take; 4 on a GPU, else 6")
    parser.add_argument("--only", choices=MODELS, help="one model; writes no result")
    chosen = parser.parse_args()
    check_device(chosen.device)
    be_quiet()
    around = circumstances(chosen.device)
    models = [chosen.only] if chosen.only else [*MODELS]
    cells = [Cell(*each) for each in product(models, ("fp16", "bf16"), ("fused", "foreach"), (False, True))]
    if chosen.device == "cuda" and not chosen.quick:
        # The first trainings of a process allocate cuBLAS's workspaces for all that follow, and compile the kernel.
        measure(cells[0], chosen.device, "tiny", seconds=0.0, is_quick=True)
    ends = time.perf_counter() + 60 * (chosen.minutes or {"cpu": 6.0, "cuda": 4.0}[chosen.device])
    found = []
    for index, cell in enumerate(cells):
        seconds = (ends - time.perf_counter()) / (len(cells) - index)
        size = size_of(cell, chosen.device, is_quick=chosen.quick)
        found.append(measure(cell, chosen.device, size, seconds=seconds, is_quick=chosen.quick))
        print(".", end="", flush=True)
    print()
    rounds = sorted({len(each["seconds"]["stock"]) for each in found})
    show(found, " to ".join(str(each) for each in dict.fromkeys((rounds[0], rounds[-1]))))
    if not chosen.quick and not chosen.only:
        after = circumstances()["load_average"]
        write("step_time", {**around, "load_average_after": after, "cells": found}, chosen.device)


if __name__ == "__main__":
    main()
