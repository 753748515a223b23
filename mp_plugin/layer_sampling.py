"""Sample what goes through the layers of a run: when, of which tensors, and of all ranks together."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes
from torchmetrics import Metric

from mp_plugin.all_ranks import AllRanks
from mp_plugin.config import Telemetry
from mp_plugin.fallback.layers import layers_by_name
from mp_plugin.formats import FORMATS
from mp_plugin.held_parameters import held_gradients
from mp_plugin.modes import Mode
from mp_plugin.rehearsal import forward, rehearsal
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.verdict import gather
from mp_plugin.step_start import StepStart
from mp_plugin.telemetry.compiled_code import may_be_compiled
from mp_plugin.telemetry.layer_probes import LayerProbes, sampled_layers
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.sample_budget import SampleBudget
from mp_plugin.telemetry.sample_rows import SampleRows, in_order, merged
from mp_plugin.telemetry.stats_row import stats_row
from mp_plugin.telemetry.stopwatch import Stopwatch
from mp_plugin.telemetry.training_clock import TrainingClock

log = logging.getLogger(__name__)

MOST_BATCHES = 64
"""Batches of manual optimization that a sample waits for a step."""

Report = Callable[[list[LayerSample], int], None]
"""Takes the samples of a step, and where Lightning logs the metrics of this step."""


@dataclass(slots=True)
class _Sample:
    """What was seen of a step so far."""

    step: int
    tracker_step: int
    """Where Lightning logs the metrics of this step."""
    rows: SampleRows = field(default_factory=SampleRows)
    loss_scales: dict[TensorKind, float] = field(default_factory=dict)
    """What values of each kind were multiplied by; after an overflow it is lower for those that were seen later."""
    is_rehearsed: bool = False
    """Whether its layers are looked at in a run of their own."""
    batches: set[int] = field(default_factory=set)
    """Indices of the batches whose layers were looked at: one that is run again does not count again."""
    is_unseen: bool = False
    """Whether its gradients were looked at before anybody knew that they are finite."""
    is_watching: bool = False
    """Whether the newest forward pass was looked at as it went."""
    optimizers: set[int] = field(default_factory=set)
    """Identities of those whose gradients were looked at: one that calls its closure again has others then."""


class LayerSampler:
    """Take statistics of the layers every so many steps, within a budget of the training time.

    The layers of an ordinary step are looked at as it goes. Where code is compiled, which calls no hooks, the step is
    run once more, eagerly, and nothing of that run remains. The gradients of parameters are those of the step itself,
    unscaled and not clipped. A step that was skipped leaves the activations that were seen of it.

    Args:
        telemetry: what to sample, how often, and at what cost.
        mode: the precision of the run.
        guard: knows the loss scale and the steps so far.
    """

    def __init__(self, telemetry: Telemetry, mode: Mode, guard: StepGuard) -> None:
        self._telemetry = telemetry
        self._compute_dtype = mode.compute
        self._guard = guard
        self._all_ranks = AllRanks("The layers of a step could not be sampled")
        self.clock = TrainingClock()
        self.budget = SampleBudget(max_overhead=telemetry.max_overhead)
        self.is_on = False
        """Whether anybody wants samples of this fit."""
        self.report: Report = _ignore
        """Takes the samples of a step; on the first rank only."""
        self._next_step = self._newest_step = self._next_question = 0
        self._sample: _Sample | None = None
        self._waiting: _Sample | None = None
        """Read back, but not looked at: the device may still be at it."""
        self._has_compiled = self._has_told = False
        self._has_failed: set[tuple[str, TensorKind]] = set()

    # Setting up and taking down.

    def connect(self, module: "pl.LightningModule", *, report: Report) -> None:
        """Begin to sample a fit."""
        wanted = self._telemetry.activations or self._telemetry.gradients
        self.is_on = bool(self._telemetry.every_n_steps) and wanted
        self.report = report
        self.clock, self.budget = TrainingClock(), SampleBudget(max_overhead=self._telemetry.max_overhead)
        self._next_step = self._newest_step = self._next_question = 0
        self._sample = self._waiting = None
        self._has_compiled = self._has_told = False
        self._has_failed = set()
        self._module = module
        self._stopwatch, self._seconds_before = Stopwatch(module.device), 0.0
        metrics = {each for part in module.modules() if isinstance(part, Metric) for each in part.modules()}
        layers = {name: each for name, each in sampled_layers(module).items() if each not in metrics}
        # With those that are not looked at, too: some have parameters that others use.
        self._order = [*layers_by_name(module)]
        self._probes = LayerProbes(
            module, layers, self._take, with_gradients=self._telemetry.gradients, stopwatch=self._stopwatch
        )

    def disconnect(self) -> None:
        """Sample no more."""
        self.is_on, self.report = False, _ignore
        self._sample = self._waiting = None
        self._probes.forget()
        # A plugin may outlive the model, which would not be freed.
        del self._module, self._probes

    def summary(self) -> dict[str, Any]:
        """Return how many samples there were, and what they cost, as plain JSON values."""
        return self.budget.summary(training_seconds=self.clock.seconds)

    # In a step.

    def forward(self, start: StepStart) -> AbstractContextManager[None]:
        """Return the context of a forward pass: under hooks if its step is due to be sampled."""
        if not self.is_on or start.is_rehearsing:
            return nullcontext()
        self.clock.go()
        if self._sample is None and self._guard.step_index >= self._next_step:
            self._begin(start)
        sample = self._sample
        if sample is None or sample.is_rehearsed or not self._telemetry.activations or not start.window:
            return nullcontext()
        batch = start.window[-1].batch_idx
        sample.is_watching = batch not in sample.batches
        sample.batches.add(batch)
        return self._probes.forward() if sample.is_watching else nullcontext()

    def backward(self) -> AbstractContextManager[None]:
        """Return the context of a backward pass."""
        if self._sample is None or not self._sample.is_watching:
            return nullcontext()
        return self._probes.backward()

    def look(
        self, start: StepStart | None, optimizer: Optimizer, *, carried_scale: float = 1.0, is_unseen: bool = False
    ) -> None:
        """Look at gradients before they are clipped, if this step is sampled; all ranks together.

        Args:
            start: where the step began.
            optimizer: whose gradients.
            carried_scale: what they are still multiplied by.
            is_unseen: whether nobody knows yet that they are finite.
        """
        sample = self._sample
        if sample is None:
            return
        if self._telemetry.gradients and id(optimizer) not in sample.optimizers:
            sample.optimizers.add(id(optimizer))
            sample.is_unseen = is_unseen
            with self._stopwatch, self._unharmed():
                for layer, gradient in held_gradients(self._module, optimizer):
                    self._take(layer, TensorKind.parameter_gradient, gradient, carried_scale=carried_scale)
        self._rehearse_once(sample, start)

    def step_over(self, start: StepStart | None) -> None:
        """Note that a step was taken or skipped: what was seen of it is complete; all ranks together."""
        self._deliver()
        if self._sample is None or self._goes_on(self._sample):
            return
        # Of a skipped step the weights are still those that it began with.
        self._rehearse_once(self._sample, start)
        with self._stopwatch, self._unharmed():
            self._sample.rows.read_back()
            self._probes.forget()
        self._waiting, self._sample = self._sample, None
        if self._module.device.type != "cuda" and self._guard.outstanding is None:
            self._deliver()

    def finish(self) -> None:
        """Deliver what waits; all ranks together."""
        self._deliver()

    def _goes_on(self, sample: _Sample) -> bool:
        """Whether no optimizer has stepped yet, in manual optimization: the next batch belongs to the same step."""
        has_stepped = self._module.automatic_optimization or self._guard.step_index > sample.step
        # Optimizers that step behind the back of Lightning are not counted.
        return not has_stepped and len(sample.batches) < MOST_BATCHES

    def _begin(self, start: StepStart) -> None:
        step = self._guard.step_index
        every = self._telemetry.every_n_steps
        self._next_step = (step // every + 1) * every
        if step < self._next_question:
            self.budget.left_out += 1
            return
        if not self._is_affordable():
            self.budget.left_out += 1
            # To ask all ranks takes time of its own: the longer the newest sample is ago, the more seldom.
            self._next_question = step + (step - self._newest_step) // 8
            return
        self._newest_step = step
        rehearsed = self._telemetry.activations and start.can_run_again and self._has_compiled
        tracker_step = self._module.trainer.fit_loop.epoch_loop._batches_that_stepped
        self._sample = _Sample(step, tracker_step, is_rehearsed=rehearsed)

    def _is_affordable(self) -> bool:
        """Whether all ranks can afford a sample; also find out what is compiled on any of them."""
        is_affordable = self.budget.is_affordable(training_seconds=self.clock.seconds)
        self._has_compiled = self._has_compiled or (is_affordable and may_be_compiled(self._module))
        # A rank that compiles alone would run the step again alone.
        answers = gather((is_affordable, self._has_compiled))
        self._has_compiled = any(has_compiled for _, has_compiled in answers)
        return all(is_affordable for is_affordable, _ in answers)

    def _rehearse_once(self, sample: _Sample, start: StepStart | None) -> None:
        if start is not None and sample.is_rehearsed and not sample.batches:
            sample.batches = {each.batch_idx for each in start.window}
            with self._stopwatch:
                self._all_ranks.each(lambda: self._rehearse(start), {})

    def _rehearse(self, start: StepStart) -> None:
        scaler = self._guard.scaler
        with rehearsal(start):
            start.restore_batches()
            for batch in start.window:
                with self._probes.forward(is_eager=True):
                    loss = forward(self._module, batch)
                if loss is not None and self._telemetry.gradients:
                    with self._probes.backward(is_eager=True):
                        self._module.backward(loss if scaler is None else scaler.scale(loss))

    def _take(self, layer: str, kind: TensorKind, values: Tensor, *, carried_scale: float | None = None) -> None:
        sample = self._sample
        if sample is None or (layer, kind) in self._has_failed:
            return
        scale = 1.0 if kind is TensorKind.activation else self._guard.loss_scale
        sample.loss_scales[kind] = scale
        if carried_scale is None:
            carried_scale = scale  # activations carry none, and their gradients that of the loss
        try:
            # A mode of the model's own, as of selective checkpoints, would take these operators for the model's.
            with self._stopwatch, torch.no_grad(), _disable_current_modes():
                row = stats_row(
                    values,
                    compute=FORMATS[self._compute_dtype],
                    carried_scale=carried_scale,
                    loss_scale=scale,
                    histogram=self._telemetry.histograms,
                )
            sample.rows.add(layer, kind, values.dtype, row)
        except Exception as error:  # a diagnosis must not take down the run that it diagnoses
            if not self._has_failed:
                log.warning("%s of %s cannot be sampled; what cannot is left out.", kind.value, layer, exc_info=error)
            self._has_failed.add((layer, kind))

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        """Go on after an error in the block: a diagnosis must not take down the run that it diagnoses."""
        try:
            yield
        except Exception as error:
            if not self._has_told:
                log.warning("A sample of the layers was lost; training goes on.", exc_info=error)
            self._has_told = True

    def _deliver(self) -> None:
        sample, self._waiting = self._waiting, None
        if sample is None:
            return
        with self._stopwatch:
            # All ranks together: a layer may have run on some of them alone, and a sharded gradient lies on all.
            found = merged(gather(sample.rows.found()))
            if any(incident.step == sample.step for incident in self._guard.record.incidents) and sample.is_unseen:
                # The step was skipped, as is known by now: its parameters have no gradients.
                found = {key: each for key, each in found.items() if key[1] is not TensorKind.parameter_gradient}
            if found and self._module.trainer.is_global_zero:
                with self._unharmed():
                    numbers = (found, self._order, sample.step, self._compute_dtype, sample.loss_scales)
                    self.report(in_order(*numbers), sample.tracker_step)
        seconds = self._stopwatch.read()
        self.budget.took(seconds - self._seconds_before, saw_something=bool(found))
        self._seconds_before = seconds


def _ignore(*_: Any) -> None:
    pass
