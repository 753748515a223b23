"""Which trials of a study count, which are lost, and what became of each."""

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

#: A trial's own notes in the study: why it failed, where it ran, and which lost trial it runs again.
ERROR, WORKER, REPEATS, ATTEMPT, SECONDS = "error", "worker", "repeats", "attempt", "seconds"

#: Times that settings are tried whose sweep was killed under way: they may be what kills it.
MOST_ATTEMPTS = 3

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count towards n_trials: all but those that are, or were, run again under a new number."""
    repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count and have come to an end."""
    return [trial for trial in counted(trials) if trial.state in FINISHED]


def repeat(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial that was cut short, with the same settings, unless that has happened too often."""
    attempt = trial.user_attrs.get(ATTEMPT, 1)
    if trial.params and attempt < MOST_ATTEMPTS:
        study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number, ATTEMPT: attempt + 1})


def recover(study: optuna.Study) -> None:
    """Record trials whose worker was killed as failed, and queue their settings again; to be called alone."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if WORKER not in trial.user_attrs:  # killed between taking a number and the first sign of life
            study.tell(trial.number, state=TrialState.FAIL)
    fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
    for trial in trials:
        # A worker that sees a trial fail writes down why.
        if trial.state == TrialState.FAIL and ERROR not in trial.user_attrs and trial.number not in repeated:
            repeat(study, trial)


def best_value(values: Sequence[float], direction: str) -> float | None:
    """The best of a trial's finite values; None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return min(finite) if direction == "minimize" else max(finite)


def shown_value(trial: FrozenTrial, direction: str) -> float | None:
    """What a trial came to: for a pruned one the best so far."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return best_value(list(trial.intermediate_values.values()), direction)


def fault(trial: FrozenTrial) -> str:
    """Why a trial failed, in a line; empty for the others."""
    if trial.state != TrialState.FAIL:
        return ""
    return str(trial.user_attrs.get(ERROR, "lost: its sweep was killed"))


def row(trial: FrozenTrial, direction: str) -> dict[str, Any]:
    """A trial as plain values."""
    return {
        "trial": trial.number,
        "state": trial.state.name,
        "value": shown_value(trial, direction),
        **trial.params,
        "validations": len(trial.intermediate_values),
        "seconds": trial.user_attrs.get(SECONDS),
        "repeats": trial.user_attrs.get(REPEATS),
        "error": fault(trial),
    }
