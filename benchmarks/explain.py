"""Ten planted incidents under torch's anomaly mode, under hooks as in Hugging Face's debugger, and under ours.

The first table is what each tool names: a dash where it is silent, an exclamation mark where it names a victim for the
culprit. The hooks are a short re-implementation of the idea: a forward hook on every module that raises at the first
output that is not finite. Both rivals run under stock `MixedPrecision` with a `GradScaler`.

The second table is what each costs on healthy steps beside stock: a character model of one transformer block, in one
process, in turn; a sample is the median step of one block of steps, the ratio is taken within a round.

The third one is what an incident costs us: how often its batch ran again, plainly and traced, and how long the traced
run and the whole step took, in eager steps of the same model.

fp16 on the CPU, one thread.

    python benchmarks/explain.py [--rounds 9]
"""

import argparse
import statistics
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from helpers.clock import Clock
from helpers.harness import circumstances, write
from helpers.planted import CODE, Cost, culprit, ten_faults, train_ours, train_stock
from helpers.rivals import Answer, CheckOutputs, ask_anomaly_mode, ask_hooks
from helpers.trainings import Training, be_quiet, fit
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.console import Console
from rich.table import Table

from mp_plugin import AdaptivePrecision

STEPS, WARM_UP = 60, 10
TOOLS = ("anomaly mode", "hooks", "ours")
FIELDS = ("operator", "layer", "line", "direction", "cause")


def ask_ours(planted: Any) -> tuple[Answer, Cost]:
    """Train with our plugin and tell what its first incident says."""
    plugin, cost = train_ours(planted)
    incident = plugin.incidents[0]
    line = (incident.location or "-").partition(" in ")[0].rpartition("/")[2]
    direction = incident.direction.value if incident.direction else "-"
    layer = "-" if incident.layer is None else incident.layer or "(outside of all)"
    return Answer(incident.operator or "-", layer, line, direction, incident.cause.value), cost


def is_wrong(planted: Any, field: str, value: str) -> bool:
    """Whether a tool names something else than the culprit; operators, which each tool spells differently, aside."""
    if value == "-" or field == "operator":
        return False
    accepted = {
        "layer": {layer or "(outside of all)" for origin in planted.accepted for layer in origin.layers},
        "line": {culprit(planted)},
        "direction": {origin.direction.value for origin in planted.accepted if origin.direction},
        "cause": {origin.cause.value for origin in planted.accepted},
    }[field]
    # A fault of the loss or the data has no direction.
    return value not in accepted and (field != "direction" or bool(accepted))


def step_seconds(tool: str) -> float:
    """Train a healthy model for a block of steps under a tool, and return the median seconds of a step."""
    clock = Clock(WARM_UP)
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**15))
    plugin = AdaptivePrecision("fp16") if tool == "ours" else stock
    callbacks = [CheckOutputs(), clock] if tool == "hooks" else [clock]
    fit(Training("text", STEPS), plugin, *callbacks, detect_anomaly=tool == "anomaly mode")
    return statistics.median(clock.seconds)


def name_incidents() -> tuple[Table, Table, dict[str, Any]]:
    """Ask every tool about every fault."""
    names = Table("fault", "tool", *FIELDS, "the run", title="Ten incidents: what each tool names (!: not the culprit)")
    costs = Table(
        *("fault", "plain re-runs", "traced re-runs", "the traced one", "whole step"),
        title="One incident: re-runs, and durations in eager steps",
    )
    result: dict[str, Any] = {}
    for planted in ten_faults():
        ours, cost = ask_ours(planted)
        answers = (
            ask_anomaly_mode(partial(train_stock, planted), CODE),
            ask_hooks(partial(train_stock, planted)),
            ours,
        )
        for tool, answer in zip(TOOLS, answers, strict=True):
            values = [getattr(answer, field) for field in FIELDS]
            shown = [f"{v} !" if is_wrong(planted, f, v) else v for f, v in zip(FIELDS, values, strict=True)]
            heading = planted.name if tool == TOOLS[0] else ""
            names.add_row(heading, tool, *shown, "goes on" if answer.goes_on else "stops", end_section=tool == "ours")
        runs = (str(cost.plain_runs), str(cost.traced_runs))
        costs.add_row(planted.name, *runs, f"{cost.traced_ratio:.1f}", f"{cost.whole_ratio:.1f}")
        named = {tool: asdict(answer) for tool, answer in zip(TOOLS, answers, strict=True)}
        result[planted.name] = {"culprit": culprit(planted), **named, "cost": cost._asdict()}
    return names, costs, result


def time_healthy_steps(rounds: int) -> tuple[Table, dict[str, Any]]:
    """Measure every tool in turn, round by round."""
    kinds = ("stock", *TOOLS)
    samples: dict[str, list[float]] = {tool: [] for tool in kinds}
    for index in range(rounds):
        for tool in kinds[index % len(kinds) :] + kinds[: index % len(kinds)]:
            samples[tool].append(step_seconds(tool))
    stock = 1000 * statistics.median(samples["stock"])
    title = f"Healthy steps beside stock ({stock:.1f} ms): median of {rounds} rounds (quartiles)"
    table = Table("tool", "step / stock step", title=title)
    ratios = {
        tool: [theirs / stock for theirs, stock in zip(samples[tool], samples["stock"], strict=True)] for tool in TOOLS
    }
    for tool, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        table.add_row(tool, f"{middle:.3f} ({low:.3f} to {high:.3f})")
    return table, {"ratios": ratios, "seconds": samples}


def main() -> None:
    """Ask, measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="at least 2, for quartiles")
    rounds = max(parser.parse_args().rounds, 2)
    be_quiet()
    found = circumstances()
    names, costs, incidents = name_incidents()
    healthy, times = time_healthy_steps(rounds)
    console = Console(width=160)
    for table in (names, healthy, costs):
        console.print(table)
    after = circumstances()["load_average"]
    write("explain", {**found, "load_average_after": after, "incidents": incidents, "healthy_steps": times})


if __name__ == "__main__":
    main()
