"""Which layers end up in FP32, is it the smallest set that is enough, and what does that cost?

1. Proof: six models with planted culprits (helpers/culprits.py) are trained in fp16 under `Fallback(auto=True)` from
   five seeds, and in FP32 on the same batches, some of which do not fit into fp16. Demoted layers beside the true
   smallest set, most re-runs of a proof beside the bound for one culprit, batches lost, those lost without a fallback,
   and the loss of held-out samples: of FP32, its standard deviation between seeds, and how far ours is from it.
2. Two offline rules on the same models (helpers/layer_rules.py): a magnitude threshold in the manner of ModelOpt
   AutoCast, calibrated on healthy batches alone, and with the batch that goes wrong among them; a bisection over the
   first and over the last layers in the manner of Polygraphy. How many of the layers with parameters each keeps in
   FP32, whether the batch then comes out finite, and how many runs the search took.
3. Speed (helpers/island_cost.py): a healthy training without a fallback, with one that names nothing, with
   `Fallback(auto=True)`, with one layer in FP32, and with that layer in FP32 by hand: the ratio to expect. In turn.

On the CPU, one thread.

    python benchmarks/fallback.py [--rounds 15] [--only transformer]
"""

import argparse
import math
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from helpers.culprits import FIRST, MODELS, FP32Fault, batches, num_wrong, train
from helpers.harness import circumstances, write
from helpers.island_cost import FALLBACKS, PRECISIONS, count_operators, step_seconds
from helpers.layer_rules import above_threshold, bisect, is_finite, order_of_running
from helpers.trainings import be_quiet
from rich.console import Console
from rich.table import Table

from mp_plugin import AdaptivePrecision, Fallback
from mp_plugin.fallback.isolate import max_reruns
from mp_plugin.fallback.layers import bears_parameters, is_below, layers_by_name

SEEDS, STEPS, ROUNDS = 5, 500, 15
CALIBRATION, BLOCK = 8, 90
"""Healthy batches that the threshold is calibrated on, and the steps of one block of timing."""

Tables = tuple[Table, dict[str, Any]]


# 1. Proof.


def proved(index: int, seed: int, steps: int) -> dict[str, Any]:
    """Train one model from one seed under `Fallback(auto=True)`."""
    be_quiet()
    model = MODELS[index]
    plugin, loss = train(model, AdaptivePrecision("fp16", fallback=Fallback(auto=True)), seed=seed, steps=steps)
    proofs = [each.evidence["proof"]["reruns"] for each in plugin.incidents if "proof" in each.evidence]
    return {
        "demoted": plugin.fp32_layers,
        "is_minimal": tuple(plugin.fp32_layers) == model.culprits,
        "incidents": len(plugin.incidents),
        "reruns_of_proofs": proofs,
        "lost": plugin.skipped_steps,
        "loss": loss,
    }


def plain(index: int, seed: int, steps: int, precision: str) -> dict[str, Any]:
    """Train one model from one seed without a fallback."""
    be_quiet()
    plugin, loss = train(MODELS[index], AdaptivePrecision(precision), seed=seed, steps=steps)
    return {"lost": plugin.skipped_steps, "loss": loss}


def train_all(chosen: list[int], seeds: int, steps: int) -> Tables:
    """Train every chosen model from every seed, in as many processes as there are cores."""
    context = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        runs = {
            index: {
                "auto": [pool.submit(proved, index, seed, steps) for seed in range(seeds)],
                "fp32": [pool.submit(plain, index, seed, steps, "fp32") for seed in range(seeds)],
                "fp16": [pool.submit(plain, index, seed, steps, "fp16") for seed in range(1)],
            }
            for index in chosen
        }
        for index, by_kind in runs.items():
            found = {kind: [run.result() for run in each] for kind, each in by_kind.items()}
            bearing = bearing_layers(MODELS[index].make())
            result[MODELS[index].name] = {
                "layers": len(bearing),
                "culprits": MODELS[index].culprits,
                "bound_for_one": max_reruns(len(bearing)),
                "wrong_batches": num_wrong(steps),
                **compare([each["loss"] for each in found["auto"]], [each["loss"] for each in found["fp32"]]),
                "seeds": found,
            }
    return proof_table(result, seeds, steps), result


def compare(ours: list[float], fp32: list[float]) -> dict[str, float]:
    """Return how losses compare with those of FP32 training, seed by seed, beside the spread between seeds."""
    differences = [mine - theirs for mine, theirs in zip(ours, fp32, strict=True)]
    return {
        "loss_fp32": statistics.fmean(fp32),
        "spread_of_seeds": statistics.stdev(fp32) if len(fp32) > 1 else math.nan,
        "mean_difference": statistics.fmean(differences),
        "largest_difference": max(map(abs, differences)),
    }


def proof_table(result: dict[str, Any], seeds: int, steps: int) -> Table:
    table = Table(
        *("model", "layers", "culprits", "exactly these", "re-runs (bound)", "lost", "lost without"),
        *("FP32 loss", "spread of seeds", "difference", "largest"),
        title=f"Trainings of {steps} steps from {seeds} seeds: what `auto` moved to FP32, and what came of it",
    )
    for name, found in result.items():
        auto = found["seeds"]["auto"]
        reruns = max((count for run in auto for count in run["reruns_of_proofs"]), default=0)
        table.add_row(
            *(name, str(found["layers"]), "\n".join(found["culprits"])),
            f"{sum(run['is_minimal'] for run in auto)} of {seeds}",
            f"{reruns} ({found['bound_for_one']})" if len(found["culprits"]) == 1 else str(reruns),
            f"{sum(run['lost'] for run in auto)} of {seeds * found['wrong_batches']}",
            f"{found['seeds']['fp16'][0]['lost']} of {found['wrong_batches']}",
            f"{found['loss_fp32']:.5f}",
            f"{found['spread_of_seeds']:.5f}",
            f"{found['mean_difference']:+.5f}",
            f"{found['largest_difference']:.5f}",
        )
    return table


# 2. Two offline rules.


def choose_offline(chosen: list[int]) -> Tables:
    """Let each rule choose layers for each model, as it is before its training."""
    heads = ("model", "layers", "smallest set", "threshold, healthy", "threshold, all", "first N", "last N")
    table = Table(*heads, title="Layers kept in FP32, of those with parameters (-: the batch still goes wrong)")
    result: dict[str, Any] = {}
    for model in (MODELS[index] for index in chosen):
        found = kept_by_each_rule(model)
        num_layers = len(bearing_layers(model.make()))
        result[model.name] = {"layers": num_layers, **found}
        table.add_row(model.name, str(num_layers), *map(in_words, found.values()))
    return table, result


def kept_by_each_rule(planted: FP32Fault) -> dict[str, Any]:
    """Return which layers of a model each rule keeps, and what comes of that."""
    model = planted.make(seed=0)
    *healthy, bad = batches(planted, seed=0, steps=FIRST + 1)
    calibration = healthy[:CALIBRATION]
    order = order_of_running(model, bad)
    first, runs_first = bisect(len(order), lambda n: is_finite(model, bad, order[:n]))
    last, runs_last = bisect(len(order), lambda n: is_finite(model, bad, order[-n:]))
    kept: dict[str, tuple[Sequence[str], int | None]] = {
        "smallest set": (planted.culprits, None),
        "threshold, healthy": (above_threshold(model, calibration), None),
        "threshold, all": (above_threshold(model, [*calibration, bad]), None),
        # Where all layers together do not cure the batch, none are kept.
        "first N": (order[: first or 0], runs_first),
        "last N": (order[len(order) - (last or 0) :], runs_last),
    }
    bearing = bearing_layers(model)
    return {
        name: {
            "layers": layers,
            "with_parameters": sum(any(is_below(each, above) for above in layers) for each in bearing),
            "is_finite": is_finite(model, bad, layers),
            "runs": runs,
        }
        for name, (layers, runs) in kept.items()
    }


def in_words(kept: dict[str, Any]) -> str:
    """Return how many layers a rule keeps, whether that is enough, and in how many runs it was found."""
    runs = f" ({kept['runs']} runs)" if kept["runs"] else ""
    return f"{kept['with_parameters']}{'' if kept['is_finite'] else ' -'}{runs}"


def bearing_layers(model: Any) -> list[str]:
    """Return the layers that hold parameters themselves."""
    return [name for name, layer in layers_by_name(model).items() if bears_parameters(layer)]


# 3. Speed.


def time_steps(rounds: int, steps: int) -> Tables:
    """Measure a healthy step under every kind of fallback in turn, round by round, and count its operators."""
    kinds = list(FALLBACKS)
    table = Table(
        *("precision", "no fallback, ms", *kinds[1:], "island / by hand", "operators of a step"),
        title=f"A step beside one without a fallback: median of {rounds} rounds (quartiles)",
    )
    result: dict[str, Any] = {}
    for precision in PRECISIONS:
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for index in range(rounds):
            for kind in kinds[index % len(kinds) :] + kinds[: index % len(kinds)]:
                seconds[kind].append(step_seconds(precision, kind, steps))
        ratios = {
            kind: [ours / none for ours, none in zip(seconds[kind], seconds["none"], strict=True)] for kind in kinds[1:]
        }
        pairs = zip(seconds["island"], seconds["by hand"], strict=True)
        ratios["island / by hand"] = [ours / by_hand for ours, by_hand in pairs]
        operators = {kind: count_operators(precision, kind) for kind in kinds}
        sampled = {kind: count_operators(precision, kind, step=0) for kind in ("none", "auto")}
        result[precision] = {
            "seconds": seconds,
            "ratios": ratios,
            "operators": operators,
            "operators_of_the_first_step": sampled,
        }
        table.add_row(
            precision,
            f"{1000 * statistics.median(seconds['none']):.2f}",
            *(with_quartiles(each) for each in ratios.values()),
            "\n".join(f"{kind} {count}" for kind, count in operators.items()),
        )
    return table, result


def with_quartiles(values: list[float]) -> str:
    """Return the median of some ratios with their quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Train, choose, measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    written = "only the default is written to results/"
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of timing, at least 2; {written}")
    parser.add_argument("--only", default="", help=f"models with this in their name; {written}")
    parser.add_argument("--quick", action="store_true", help=f"a look at everything in a minute; {written}")
    options = parser.parse_args()
    chosen = [index for index, model in enumerate(MODELS) if options.only in model.name]
    if not chosen:
        parser.error(f"no model has {options.only!r} in its name; there are {[model.name for model in MODELS]}")
    be_quiet()
    found = circumstances()
    rounds = 2 if options.quick else max(options.rounds, 2)
    seeds, steps, block = (1, 30, 30) if options.quick else (SEEDS, STEPS, BLOCK)
    console = Console(width=200)
    offline, kept = choose_offline(chosen)
    trained, proofs = train_all(chosen, seeds, steps)
    timed, times = time_steps(rounds, block)
    for table in (trained, offline, timed):
        console.print(table)
    if (options.quick, options.only, options.rounds) != (False, "", ROUNDS):
        console.print("Not written down: this is a look, the default settings are the benchmark.")
        return
    after = circumstances()["load_average"]
    write("fallback", {**found, "load_average_after": after, "proofs": proofs, "offline": kept, "healthy_steps": times})


if __name__ == "__main__":
    main()
