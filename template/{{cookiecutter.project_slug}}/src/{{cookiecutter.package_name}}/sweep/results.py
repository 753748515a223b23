"""What a sweep leaves: a table on screen, results.csv, best.yaml and a page of plots."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table

from {{cookiecutter.package_name}}.sweep.best import write_best
from {{cookiecutter.package_name}}.sweep.ledger import counted, row
from {{cookiecutter.package_name}}.sweep.page import make_page
from {{cookiecutter.package_name}}.sweep.study import alone

#: Rows of the table on screen.
SHOWN_TRIALS = 20
#: Columns that a CSV has and the table on screen has not.
LONG = ("validations", "repeats")


def write_results(
    study: optuna.Study, folder: Path, metric: str, train: Sequence[str], is_group: Mapping[str, bool]
) -> None:
    """Write all results below the study's folder and print them.

    Args:
        study: with or without finished trials.
        folder: the study's.
        metric: that was compared.
        train: fixed settings.
        is_group: for each key of the space, whether it is a config group.
    """
    direction = study.direction.name.lower()
    trials = study.get_trials(deepcopy=False)
    rows = [row(trial, direction) for trial in trials]
    complete = [trial for trial in counted(trials) if trial.state == TrialState.COMPLETE]
    console = Console(soft_wrap=True, highlight=False)
    with alone(folder):
        replace_file(folder / "results.csv", as_csv(rows))
        replace_file(folder / "sweep.html", make_page(study, metric))
        console.print(as_table(trials, rows, metric, direction))
        counts = {state: sum(trial.state == state for trial in counted(trials)) for state in TrialState}
        console.print(", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count))
        console.print(f"[bold]results[/bold]  {folder / 'results.csv'}\n[bold]plots[/bold]    {folder / 'sweep.html'}")
        if not complete:
            return
        best = study.best_trial
        header = f"Trial {best.number} of the sweep {study.study_name}: {metric} {best.value:.6g}"
        command = write_best(folder, train, best.params, is_group, header)
        console.print(f"[bold]best[/bold]     trial {best.number}, {metric} {best.value:.4g}; train with it:")
        console.print(command, markup=False)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Trials as a CSV file; a setting that a trial does not have stays empty."""
    stream = io.StringIO(newline="")
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(stream, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_table(trials: Sequence[FrozenTrial], rows: Sequence[Mapping[str, Any]], metric: str, direction: str) -> Table:
    """The best trials, complete ones first."""
    sign = 1 if direction == "minimize" else -1
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
    ranked = sorted(
        zip(trials, rows, strict=True),
        key=lambda pair: (order.get(pair[0].state, 2), sign * (pair[1]["value"] or 0.0), pair[0].number),
    )
    left_out = f", {len(rows) - SHOWN_TRIALS} more in results.csv" if len(rows) > SHOWN_TRIALS else ""
    best = ranked[:SHOWN_TRIALS]
    used = (name for _, cells in best for name, value in cells.items() if value not in (None, "") and name not in LONG)
    names = list(dict.fromkeys(used))
    # Few lines, and long names broken at their dots, so that numbers stay whole in a narrow terminal.
    table = Table(title=f"Trials{left_out}", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        narrow = name in ("trial", "state", "value", "seconds")
        header = metric if name == "value" else name.replace(".", ".\n")
        table.add_column(header, overflow="fold", no_wrap=narrow)
    for _, cells in best:
        table.add_row(*[_cell(cells.get(name)) for name in names])
    return table


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("[", r"\[")
