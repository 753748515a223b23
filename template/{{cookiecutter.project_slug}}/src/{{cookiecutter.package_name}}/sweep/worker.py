"""Running trials until a study has enough of them."""

import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from {{cookiecutter.package_name}}.sweep.command import command_of, overrides_of
from {{cookiecutter.package_name}}.sweep.ledger import (
    ERROR,
    SECONDS,
    WORKER,
    best_value,
    counted,
    fault,
    finished,
    recover,
    repeat,
    row,
)
from {{cookiecutter.package_name}}.sweep.process import TrialProcess
from {{cookiecutter.package_name}}.sweep.space import Space
from {{cookiecutter.package_name}}.sweep.study import alone

#: Seconds between two looks at processes that have nothing to say, and at a study that has nothing left to start.
LOOK_SECONDS, STUDY_SECONDS = 0.2, 1.0


@dataclass(frozen=True)
class Plan:
    """What a worker is to do.

    Args:
        folder: of the study.
        space: what varies.
        train: what does not.
        metric: what to compare.
        direction: minimize or maximize.
        n_trials: in all.
        n_jobs: at the same time, in this worker.
        max_seconds: after which no trial starts; None for no limit.
        max_failures: one after the other.
        heartbeat_seconds: between two signs of life.
        sampler: makes a sampler, given the number of trials so far.
    """

    folder: Path
    space: Space
    train: Sequence[str]
    metric: str
    direction: str
    n_trials: int
    n_jobs: int
    max_seconds: float | None
    max_failures: int
    heartbeat_seconds: float
    sampler: Callable[[int], BaseSampler]


@dataclass
class Running:
    """A trial under way.

    Args:
        trial: in the study.
        process: that trains.
        slot: 0 to n_jobs - 1; no two trials of a worker share one.
        values: reported so far.
        pruned: whether it was told to stop.
    """

    trial: Trial
    process: TrialProcess
    slot: int
    values: list[float] = field(default_factory=list)
    pruned: bool = False


class Worker:
    """Runs the trials of a study; several may do so at the same time.

    Args:
        study: open.
        plan: what to do.
        show: is called with a line of text whenever something has happened.
    """

    def __init__(self, study: optuna.Study, plan: Plan, show: Callable[[str], None]) -> None:
        self.study, self.plan, self.show = study, plan, show
        self.running: list[Running] = []
        self.failures: list[str] = []
        self.started = self.last_heartbeat = time.monotonic()
        self.next_start = 0.0
        self.said_waiting = self.told_to_stop = False

    def stop(self, number: int, frame: object) -> None:
        """End the running trials and the sweep at the next look at them; a handler of signals.

        Not at once, as that could be in the midst of a transaction with the study. A second signal is not as patient.
        """
        self.told_to_stop = True
        signal.signal(number, signal.default_int_handler)

    def run(self) -> None:
        """Run trials until there are as many as asked for, or the time is over.

        Raises:
            ValueError: if the metric is not logged, or too many trials in a row have failed.
            KeyboardInterrupt: when told to stop, after the running trials have been ended and recorded.
        """
        try:
            while self._start() or self.running or self._others_at_work():
                wait([each.process.connection for each in self.running], LOOK_SECONDS)
                if self.told_to_stop:
                    raise KeyboardInterrupt
                self._keep_alive()
                for each in list(self.running):
                    self._look_after(each)
        except BaseException as error:
            # Whatever ends the sweep, no trial goes on unseen; the settings of those under way get another chance.
            self._end_all("stopped with its sweep" + (" (Ctrl-C)" if isinstance(error, KeyboardInterrupt) else ""))
            raise

    def _start(self) -> bool:
        """Start as many trials as may run; return whether there was one."""
        before = len(self.running)
        if time.monotonic() < self.next_start:
            return False
        while len(self.running) < self.plan.n_jobs and not self._out_of_time():
            with alone(self.plan.folder):
                trial = self._next_trial()
            if trial is None:
                self.next_start = time.monotonic() + STUDY_SECONDS
                break
            self._launch(trial)
        return len(self.running) > before

    def _next_trial(self) -> Trial | None:
        recover(self.study)
        trials = self.study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        taken = len(counted(trials))
        if len(finished(trials)) >= self.plan.n_trials or (taken >= self.plan.n_trials and not waiting):
            return None
        self.study.sampler = self.plan.sampler(len(trials))
        trial = self.study.ask(self.plan.space)
        self._beat(trial)
        trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
        return trial

    def _launch(self, trial: Trial) -> None:
        folder = self.plan.folder / "trials" / f"{trial.number:04d}"
        slot = min(set(range(self.plan.n_jobs)) - {each.slot for each in self.running})
        overrides = overrides_of(self.plan.train, trial.params, self.plan.metric, folder)
        gpus = visible_gpus() if self.plan.n_jobs > 1 else []
        variables = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {}
        process = TrialProcess(command_of(overrides), folder, variables)
        self.running.append(Running(trial, process, slot))
        self.show(f"trial {trial.number} starts: {' '.join(f'{k}={shown(v)}' for k, v in trial.params.items())}")

    def _look_after(self, each: Running) -> None:
        ended = each.process.ended()  # before the messages, of which none must be missed
        for message in each.process.messages():
            if "unknown_metric" in message:
                self.running.remove(each)
                each.process.end()
                self._tell(each, TrialState.FAIL, error=message["unknown_metric"])
                raise ValueError(message["unknown_metric"])
            each.values.append(message["value"])
            each.trial.report(message["value"], message["validation"])
            stop = each.trial.should_prune()
            each.pruned |= stop
            each.process.answer(stop)
        if ended:
            self.running.remove(each)
            self._record(each)

    def _record(self, each: Running) -> None:
        value = best_value(each.values, self.plan.direction)
        error = each.process.fault()
        if error is None and value is None:
            metric = self.plan.metric
            error = f"{metric} was never finite" if each.values else f"it ended before {metric} was ever logged"
        if error is not None:
            self._tell(each, TrialState.FAIL, error=error)
            self.failures.append(error)
        else:
            state = TrialState.PRUNED if each.pruned else TrialState.COMPLETE
            self._tell(each, state, value=value)
            self.failures.clear()
        if len(self.failures) >= self.plan.max_failures:
            raise ValueError(
                f"{len(self.failures)} trials in a row have failed, so something is wrong with all of them; "
                f"the last one: {self.failures[-1]}"
            )

    def _tell(self, each: Running, state: TrialState, value: float | None = None, error: str | None = None) -> None:
        """Record the end of a trial in the study and in its folder."""
        try:
            each.trial.set_user_attr(SECONDS, round(each.process.seconds(), 1))
            if error is not None:
                each.trial.set_user_attr(ERROR, error)
            # Optuna takes a pruned trial's last value from its reports.
            self.study.tell(each.trial, value if state == TrialState.COMPLETE else None, state)
        except UpdateFinishedTrialError:
            self.show(f"trial {each.trial.number} was given up by another worker: this one was silent for too long")
            return
        frozen = self.study.get_trials(deepcopy=False)[each.trial.number]
        report = {
            "study": self.study.study_name,
            "metric": self.plan.metric,
            **row(frozen, self.plan.direction),
            "params": frozen.params,
            "values": {str(step): value if math.isfinite(value) else None for step, value in enumerate(each.values, 1)},
        }
        (each.process.folder / "trial.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        what = fault(frozen) or f"{self.plan.metric} {shown(report['value'])}"
        self.show(f"trial {frozen.number} {state.name.lower()} after {each.process.seconds():.0f} s: {what}")

    def _end_all(self, reason: str) -> None:
        for each in self.running:
            each.process.end()
            self._tell(each, TrialState.FAIL, error=reason)
            with alone(self.plan.folder):
                repeat(self.study, self.study.get_trials(deepcopy=False)[each.trial.number])
        self.running.clear()

    def _others_at_work(self) -> bool:
        """Whether other workers' trials are under way, which would come here if those workers were killed."""
        if self._out_of_time():
            return False
        numbers = [t.number for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        if numbers and not self.said_waiting:
            self.said_waiting = True
            self.show(f"waiting for trials of other workers: {', '.join(map(str, numbers))}")
        return bool(numbers)

    def _out_of_time(self) -> bool:
        limit = self.plan.max_seconds
        return limit is not None and time.monotonic() - self.started >= limit

    def _keep_alive(self) -> None:
        if time.monotonic() - self.last_heartbeat >= self.plan.heartbeat_seconds:
            self.last_heartbeat = time.monotonic()
            for each in self.running:
                self._beat(each.trial)

    def _beat(self, trial: Trial) -> None:
        storage: Any = self.study._storage
        storage.record_heartbeat(trial._trial_id)


def visible_gpus() -> list[str]:
    """The GPUs that trials can be spread over, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def shown(value: Any) -> str:
    """A value in few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
