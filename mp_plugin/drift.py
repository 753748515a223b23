"""Run a few validation batches in FP32 too, to see how far the run's own precision has drifted from it."""

import logging
from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from mp_plugin.casting import cast_floating
from mp_plugin.in_fp32 import in_fp32, why_not_in_fp32
from mp_plugin.instance import replace_attribute
from mp_plugin.object_state import ObjectState
from mp_plugin.rehearsal import without_trace
from mp_plugin.scaling.verdict import gather, has_other_ranks
from mp_plugin.telemetry.drift_measure import Drift, Output, compare
from mp_plugin.telemetry.logits_watch import LogitsWatch

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision

log = logging.getLogger(__name__)


def measure_drift(
    trainer: "pl.Trainer", plugin: "AdaptivePrecision", write: Callable[[dict[str, Any]], None]
) -> Callable[[], None]:
    """Measure drift as `Telemetry` says; returns what ends it. A run in FP32 has none.

    Args:
        trainer: whose validation runs are looked at.
        plugin: with the precision of the run.
        write: what writes an event down, called on all ranks.
    """
    if not plugin.telemetry.drift_every_n_validations or plugin.mode.compute == "fp32":
        return lambda: None
    monitor = DriftMonitor(trainer, plugin, write)
    trainer.callbacks.insert(0, monitor)  # type: ignore[attr-defined]
    undo = replace_attribute(trainer.strategy, "validation_step", monitor.validation_step)

    def end() -> None:
        undo()
        trainer.callbacks.remove(monitor)  # type: ignore[attr-defined]

    return end


class DriftMonitor(Callback):
    """Run the first batches of some validation runs twice more, in the run's precision and in FP32, and compare.

    Both passes are eager. They get a copy of the batch as the validation step got it, and begin where that has ended:
    with the same random streams, and the same in what the module holds. Nothing remains of them. The validation step
    itself is not touched.
    """

    def __init__(
        self, trainer: "pl.Trainer", plugin: "AdaptivePrecision", write: Callable[[dict[str, Any]], None]
    ) -> None:
        self._trainer = trainer
        self._plugin = plugin
        self._write = write
        self._original = trainer.strategy.validation_step
        self._validations = 0
        self._is_due = False
        self._batches_left = 0
        self._drift = Drift()
        self._problem: str | None = None

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        every = self._plugin.telemetry.drift_every_n_validations
        self._is_due = not trainer.sanity_checking and self._problem is None and self._validations % every == 0
        self._validations += not trainer.sanity_checking
        self._batches_left = self._plugin.telemetry.drift_batches if self._is_due else 0
        self._drift = Drift()
        if self._is_due:
            self._fail(self._why_not(pl_module))

    def validation_step(self, *args: Any) -> Any:
        """Run a validation step, and twice more what it is given, if that is due."""
        if not self._batches_left:
            return self._original(*args)
        self._batches_left -= 1
        again: Callable[[], Drift] | None = None
        try:  # a measurement must not take down the run that it measures
            again = self._remember(args)
        except Exception as error:
            self._fail(_in_words(error))
        output = self._original(*args)
        if self._is_agreed(again is not None) and again is not None:
            try:
                self._drift += again()
            except Exception as error:
                self._fail(_in_words(error))
            self._is_agreed(self._problem is None)
        return output

    @override
    def on_validation_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if not self._is_due:
            return
        everywhere = gather((self._drift, self._problem))
        self._problem = next((problem for _, problem in everywhere if problem is not None), None)
        if self._problem is not None:
            if trainer.is_global_zero:
                log.warning("Drift cannot be measured (%s); this run goes on without it.", self._problem)
            return
        drift = sum((each for each, _ in everywhere), Drift())
        if not drift.batches:
            return
        if not trainer.barebones:
            known = {f"precision/drift/{name}": value for name, value in drift.metrics().items() if value is not None}
            # The same numbers on all ranks already; Lightning asks for it.
            pl_module.log_dict(known, batch_size=1, sync_dist=has_other_ranks())
        step, epoch = self._plugin.guard.record.steps, trainer.current_epoch
        self._write({"event": "drift", "step": step, "epoch": epoch, **drift.as_event()})

    def _why_not(self, module: "pl.LightningModule") -> str | None:
        if "dataloader_iter" in signature(module.validation_step).parameters:
            return "validation_step takes the iterator, and would take the next batch"
        return why_not_in_fp32(self._plugin, self._trainer.strategy.model or module)

    def _fail(self, problem: str | None) -> None:
        if problem is not None:
            self._problem, self._batches_left = self._problem or problem, 0

    def _is_agreed(self, answer: bool) -> bool:
        """Whether the answer is yes on all ranks that meet in a forward pass; others may have fewer batches."""
        if not has_other_ranks() or isinstance(self._trainer.strategy.model, DistributedDataParallel):
            return answer
        is_agreed = all(gather(answer))
        if not is_agreed:
            self._batches_left = 0
        return is_agreed

    def _remember(self, args: tuple[Any, ...]) -> Callable[[], Drift]:
        """Remember what a validation step is given; returns what runs it with that, twice."""
        module = self._trainer.lightning_module
        kept = _copy(args)

        def run(in_precision: Callable[[Any], Any]) -> Output:
            # The containers of a batch are those of the copy, but for objects that only their user knows.
            undo = ObjectState(args)
            try:
                with without_trace(module):
                    return self._run(module, in_precision(_copy(kept)))
            finally:
                undo.restore()

        def again() -> Drift:
            low = run(lambda args: args)
            with in_fp32(self._plugin, module):
                fp32 = run(self._in_fp32)
            return compare(low, fp32)

        return again

    def _in_fp32(self, args: Any) -> Any:
        return args if self._plugin.mode.weights == "fp32" else cast_floating(args, torch.float32)

    def _run(self, module: "pl.LightningModule", args: tuple[Any, ...]) -> Output:
        original, watch = module.validation_step, LogitsWatch(module)

        def validation_step(*args: Any) -> Any:
            with watch:
                return original(*args)

        undo = replace_attribute(module, "validation_step", validation_step)
        try:
            # Not through DistributedDataParallel: each rank sees its own batches, of which it may have fewer.
            if isinstance(self._trainer.strategy.model, DistributedDataParallel):
                with self._plugin.val_step_context():
                    output = module.validation_step(*args)
            else:
                output = self._original(*args)
        finally:
            undo()
        return Output(logits=watch.logits, loss=_loss_in(output))


def _loss_in(output: Any) -> Tensor | None:
    """Return the loss in what a validation step returned."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point() else None


def _copy(args: Any) -> Any:
    return apply_to_collection(args, Tensor, Tensor.clone)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
