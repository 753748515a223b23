"""What a plugin is connected to in a trainer, and disconnected from when it is torn down."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from torch.optim import Optimizer

from mp_plugin.callbacks import PrecisionMonitor, show_in_progress_bar
from mp_plugin.drift import measure_drift
from mp_plugin.format_report import FormatReport
from mp_plugin.instance import replace_attribute
from mp_plugin.optimizers import refuse_what_cannot_be_scaled
from mp_plugin.report_incident import IncidentReporter
from mp_plugin.run_recording import RunRecording
from mp_plugin.schedulers import hold_on_skips
from mp_plugin.step_planner import StepPlanner
from mp_plugin.step_start import StepStart
from mp_plugin.strategies import tell_of_each_batch

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision


def connect_run(
    plugin: "AdaptivePrecision",
    module: "pl.LightningModule",
    optimizers: list[Optimizer],
    undo: list[Callable[[], None]],
    *,
    is_fitting: bool,
) -> None:
    """Give a plugin its place in a trainer.

    Args:
        plugin: whose parts are connected.
        module: what trains.
        optimizers: with which.
        undo: takes what undoes each connection, at once: a later one may fail.
        is_fitting: else the trainer only validates, tests or predicts.
    """
    trainer, fallback = module.trainer, plugin.layer_fallback
    recording = RunRecording(trainer, plugin)
    reporter = IncidentReporter(trainer, plugin, run=recording.run)
    undo.append(measure_drift(trainer, plugin, reporter.write))
    if not is_fitting:
        return
    if plugin.scaler is not None:
        refuse_what_cannot_be_scaled(module, optimizers)
    plugin.start = StepStart(
        module,
        may_step_again=plugin.guard.retries > 0 or fallback.may_act,
        is_traced=plugin.telemetry.max_traced > 0,
        remembers_counts=fallback.may_act,
    )
    plugin.planner = StepPlanner(plugin, module)
    undo.append(tell_of_each_batch(trainer.strategy, plugin.start))
    monitor = PrecisionMonitor(plugin, recording)
    trainer.callbacks.insert(0, monitor)  # type: ignore[attr-defined]
    undo.append(partial(trainer.callbacks.remove, monitor))  # type: ignore[attr-defined]
    undo.append(show_in_progress_bar(trainer, plugin))
    undo.append(hold_on_skips(module, plugin.guard))
    undo.append(replace_attribute(plugin.guard, "report", reporter))
    undo.append(replace_attribute(fallback, "report", reporter.tell))
    if recording.is_wanted:
        plugin.sampler.connect(module, report=recording.take)
        undo.append(plugin.sampler.disconnect)
    if fallback.may_act or plugin.fallback.names_layers or plugin.telemetry.census:
        plugin.formats = FormatReport(trainer, plugin)
