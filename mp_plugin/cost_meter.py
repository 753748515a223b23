"""What a training costs, beside what it learns."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from mp_plugin.all_ranks import AllRanks
from mp_plugin.batch_size import batch_size
from mp_plugin.config import Telemetry
from mp_plugin.cost import CostClock, RankCost, Spent, add, cost_of
from mp_plugin.environment import environment
from mp_plugin.instance import replace_attribute
from mp_plugin.run_directory import run_directory
from mp_plugin.scaling.verdict import has_other_ranks
from mp_plugin.whole_file import write_whole

log = logging.getLogger(__name__)


class CostMeter(Callback):
    """Measure what a fit costs, and write it to `telemetry/cost.json` when it ends, however it ends.

    For any project: it asks nothing of the model, the data or the precision. A resumed run adds its steps, seconds and
    joules to those in its checkpoint.

    Args:
        directory: where `telemetry/` is written; None for the trainer's log directory.

    Raises:
        ConfigError: for a directory that is none.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._place = Telemetry(directory=directory)
        self._clock: CostClock | None = None
        self._directory: str | None = None
        self._former = Spent()
        """What former sessions of this run have spent."""
        self._global_step = 0
        self._undo: list[Callable[[], None]] = []

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        device = trainer.strategy.root_device
        if trainer.global_step == 0:
            self._former = Spent()  # what this object measured before was another run
        self._global_step = trainer.global_step
        self._directory = run_directory(trainer, self._place)  # here, where all ranks are
        # All ranks of a machine share its processors, and each has a GPU of its own.
        self._clock = CostClock(device, counts_energy=device.type == "cuda" or trainer.local_rank == 0)
        self._connect(trainer, self._clock)

    @override
    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self._clock is not None:
            self._clock.times.go()
            self._clock.ask()  # here the workers of the data loader start

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        # A run that goes on in the middle of an epoch does not start it.
        if self._clock is not None:
            self._clock.times.go()

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._clock is not None:
            global_step = trainer.global_step
            self._clock.end_batch(samples=batch_size(batch), ends_step=global_step != self._global_step)
            self._global_step = global_step

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self._clock is not None:
            self._clock.times.stop()

    @override
    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._clock is not None:
            self._clock.look()

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # At the end of an epoch training goes on with the next one.
        if self._clock is not None and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._clock.times.go()

    @override
    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self._clock is not None:
            self._clock.times.stop()

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if (clock := self._disconnect()) is not None:
            self._save(trainer, AllRanks("The cost of this run cannot be measured").each(clock.read, {}))

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        if (clock := self._disconnect()) is None:
            return
        # Other ranks may never answer.
        self._save(trainer, [self._read(clock), *[None] * (trainer.world_size - 1)])

    @override
    def state_dict(self) -> dict[str, Any]:
        spent = self._former
        if self._clock is not None and (own := self._read(self._clock)) is not None:
            # Not every checkpoint is made by all ranks together, so they are not asked for their energy.
            spent = add(spent, [own, *([None] if has_other_ranks() else [])])
        return asdict(spent)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._former = Spent(**{name: state_dict[name] for name in asdict(Spent()) if name in state_dict})

    def _connect(self, trainer: "pl.Trainer", clock: CostClock) -> None:
        save_checkpoint = trainer.save_checkpoint

        def save(*arguments: Any, **options: Any) -> None:
            is_training = clock.times.is_running
            clock.times.stop()
            try:
                save_checkpoint(*arguments, **options)
            finally:
                if is_training:
                    clock.times.go()

        self._undo = [replace_attribute(trainer, "save_checkpoint", save)]
        loop = trainer.fit_loop.epoch_loop
        # What Lightning calls around the fetching of a batch; a release without these leaves the share untold.
        if hasattr(loop, "_on_before_fetch") and hasattr(loop, "_on_after_fetch"):
            self._undo += (
                _call_first(loop, "_on_before_fetch", clock.ask),
                _call_first(loop, "_on_after_fetch", clock.receive),
            )

    def _read(self, clock: CostClock) -> RankCost | None:
        try:
            return clock.read()
        except Exception as error:  # such as that of a device which has failed; a run must not end by what it costs
            log.warning("The cost of this run cannot be measured (%s).", error)
            return None

    def _disconnect(self) -> CostClock | None:
        clock, self._clock = self._clock, None
        while self._undo:
            self._undo.pop()()
        if clock is not None:
            clock.times.stop()
        return clock

    def _save(self, trainer: "pl.Trainer", ranks: list[RankCost | None]) -> None:
        if not any(ranks):
            return
        directory, former, self._former = self._directory, self._former, add(self._former, ranks)
        if directory is None or not trainer.is_global_zero:
            return
        try:
            device = trainer.strategy.root_device
            place = environment(device, ranks=trainer.world_size, strategy="")
            cost = {
                **cost_of(former, ranks),
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "device": place["device"],
                "ranks": trainer.world_size,
                "seed": global_seed(),
            }
            write_whole(Path(directory) / "telemetry" / "cost.json", json.dumps(cost, indent=2) + "\n")
        except Exception as error:  # a run must not end because its cost cannot be told
            log.warning("telemetry/cost.json cannot be written to %s (%s).", directory, error)


def global_seed() -> int | None:
    """Return the seed that `seed_everything` set last, by which comparisons pair runs; None without one."""
    seed = os.environ.get("PL_GLOBAL_SEED", "")  # which is where Lightning keeps it, for the processes that it starts
    return int(seed) if seed.isdecimal() else None


def _call_first(owner: Any, name: str, function: Callable[[], None]) -> Callable[[], None]:
    original = getattr(owner, name)

    def both() -> None:
        function()
        original()

    return replace_attribute(owner, name, both)
