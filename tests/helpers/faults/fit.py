"""A whole training with a planted fault under the plugin, and what is to be expected of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.telemetry.events import Incident
from tests.helpers.faults.batches import batches
from tests.helpers.faults.fault import SCALING, Fault
from tests.helpers.faults.training import Planted
from tests.helpers.training import quiet_trainer

FAULTY = 2
"""The batch that is spoiled, if not told otherwise, of five."""


class Run(NamedTuple):
    """What is left of a training."""

    plugin: AdaptivePrecision
    model: Planted
    stopped: TrainingDivergedError | None

    @property
    def incidents(self) -> list[Incident]:
        """The newest incidents, newest last."""
        return self.plugin.incidents


class Striker(pl.Callback):
    """Lets a fault strike the model itself, before the spoiled batches."""

    def __init__(self, fault: Fault, faulty: tuple[int, ...]) -> None:
        self.fault, self.faulty = fault, faulty

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.fault.strike is not None and batch_idx in self.faulty:
            self.fault.strike(pl_module)


def plugin_for(fault: Fault, **options: Any) -> AdaptivePrecision:
    """The plugin in the precision in which the fault happens."""
    return AdaptivePrecision(fault.precision, scaling=SCALING if fault.precision == "fp16" else None, **options)


def train(
    fault: Fault,
    *,
    faulty: tuple[int, ...] = (FAULTY,),
    count: int = 5,
    prepare: Callable[[Planted], None] = lambda model: None,
    spoiled_rank: int = 0,
    **options: Any,
) -> Run:
    """Train a fault's model for an epoch of a few batches.

    Args:
        fault: what goes wrong.
        faulty: the batches in which it does.
        count: number of batches.
        prepare: what is done to the model before, such as compiling it.
        spoiled_rank: the only process that has the fault.
        options: for the trainer.
    """
    plugin, model = plugin_for(fault), fault.make()
    prepare(model)
    trainer = quiet_trainer(plugins=[plugin], **options)
    faulty = faulty if trainer.global_rank == spoiled_rank else ()
    trainer.callbacks.append(Striker(fault, faulty))  # type: ignore[attr-defined]
    try:
        data = DataLoader(batches(fault, faulty=faulty, count=count), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(model, data)
    except TrainingDivergedError as stopped:
        return Run(plugin, model, stopped)
    return Run(plugin, model, None)
