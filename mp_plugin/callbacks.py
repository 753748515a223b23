"""What a run shows of its precision while it trains, and at the end."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from mp_plugin.hooks import may_edit_after_backward
from mp_plugin.instance import replace_attribute
from mp_plugin.optimizers import raise_vanishing_eps_
from mp_plugin.report_incident import console_of
from mp_plugin.scaling.unseen_step import foresee, settle
from mp_plugin.scaling.verdict import has_other_ranks

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision
    from mp_plugin.run_recording import RunRecording

log = logging.getLogger(__name__)

STEP_METRIC: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": 1}
"""A number of the step, not of its samples. Lightning asks for a batch size where a step takes the iterator."""


class PrecisionMonitor(Callback):
    """Log the `precision/*` metrics, keep the record of the run and print the table at the end of a fit.

    The plugin adds one to the trainer for the time of a fit; there is nothing to configure.
    """

    def __init__(self, plugin: "AdaptivePrecision", recording: "RunRecording") -> None:
        self.plugin = plugin
        self._recording = recording
        self._is_over = False

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self.plugin.planner is not None:
            self.plugin.planner.start()
        if self.plugin.start is not None:
            self.plugin.start.may_edit_after_backward = may_edit_after_backward(pl_module)
        # Only here have optimizers their final settings: a checkpoint is loaded after they are built.
        if self.plugin.mode.weights == "fp16":
            for optimizer in trainer.optimizers:
                raise_vanishing_eps_(optimizer)
        self._recording.start()

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.plugin.sampler.clock.stop()

    # Training goes on with the next forward pass, which the clock is told of.

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.barebones:
            return  # where logging is a warning
        # At the end of an epoch too, for callbacks that monitor one of these.
        if trainer._logger_connector.should_update_logs or trainer.is_last_batch:
            # On the host, or Lightning would send each number to the device, and its loggers read it back.
            metrics = {name: torch.tensor(value, device="cpu") for name, value in self._metrics().items()}
            pl_module.log_dict(metrics, **STEP_METRIC)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        settle(self.plugin.guard, pl_module)
        self.plugin.sampler.finish()
        self._end(trainer, "finished")

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        guard = self.plugin.guard
        try:
            if has_other_ranks():  # they would have to be asked of an incident, and may never answer
                guard.record, guard.outstanding = foresee(guard)[0], None
            else:
                settle(guard, pl_module)
        except Exception as error:  # what ended the run is what the user must see
            log.warning("How the newest step ended could not be found out.", exc_info=error)
        self._end(trainer, "stopped")

    def _metrics(self) -> dict[str, float]:
        record = self.plugin.guard.record
        return {
            "precision/loss_scale": self.plugin.loss_scale,
            "precision/skipped_steps": float(record.skipped_steps),
            "precision/retried_steps": float(record.retried_steps),
            "precision/effective_step": float(record.effective_step),
            "precision/incidents": float(record.total_incidents),
            "precision/fp32_layers": float(len(self.plugin.fp32_layers)),
            **self._window(),
        }

    def _window(self) -> dict[str, float]:
        window = self.plugin.scale_window
        if window is None:
            return {}
        return {"precision/scale_window_low": window.lowest, "precision/scale_window_high": window.highest}

    def _end(self, trainer: "pl.Trainer", status: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self.plugin.sampler.clock.stop()
        self._recording.end(status)
        # A fit that was over before its first step has nothing to tell.
        if trainer.is_global_zero and self.plugin.guard.record.steps:
            self._print_summary(trainer)

    def _print_summary(self, trainer: "pl.Trainer") -> None:
        try:
            from mp_plugin.telemetry.table import summary_table  # here, as a machine that only trains may lack rich

            console = console_of(trainer)
        except ImportError as error:
            log.warning("The summary of the run cannot be shown here (%s); AdaptivePrecision.summary() has it.", error)
            return
        console.print(summary_table(self.plugin.summary()))


def show_in_progress_bar(trainer: "pl.Trainer", plugin: "AdaptivePrecision") -> Callable[[], None]:
    """Add the loss scale and the skipped steps to whatever progress bar there is; returns what undoes it.

    Logged with `prog_bar=True` they would become tensors, of which Lightning reads each one with a sync in every batch.
    """
    bar = trainer.progress_bar_callback
    if bar is None:
        return lambda: None
    original = bar.get_metrics

    def get_metrics(trainer: "pl.Trainer", model: "pl.LightningModule") -> dict[str, Any]:
        return {**_shown(plugin), **original(trainer, model)}

    return replace_attribute(bar, "get_metrics", get_metrics)


def _shown(plugin: "AdaptivePrecision") -> dict[str, float]:
    scale = plugin.loss_scale
    if plugin.scaler is not None:
        # As a whole number where it is one: a bar shows floats with three decimals.
        return {"loss_scale": int(scale) if scale.is_integer() else scale, "skipped": plugin.skipped_steps}
    # Room in a progress bar is scarce: without a scale there is nothing to watch until something was skipped.
    return {"skipped": plugin.skipped_steps} if plugin.skipped_steps else {}
