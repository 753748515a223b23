"""Leaving in good order when a cluster takes the machine away."""

import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveWhenTerminated(Callback):
    """Write last.ckpt when the run is told to end (SIGTERM), so that `resume=latest` loses not even a step.

    Lightning ends the run after the batch at hand. In validation, and at the end of an epoch, nothing is saved: the run
    goes on from the newest checkpoint, and repeats what it has to.

    With several processes, Lightning's own handler talks to the others at once, in the midst of whatever they do
    together, and they may wait for each other for ever. Here they agree after each batch whether one of them was told.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._was_told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal from Lightning, which afterwards puts back what was there before."""
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Agree whether to end."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._was_told, all=False):
            trainer._signal_connector.received_sigterm = True  # on all processes, for which Lightning then ends the run

    on_test_start = on_train_start

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Agree here too."""
        self.on_train_batch_end(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Agree here too."""
        self.on_train_batch_end(trainer)

    def _note(self, *_: Any) -> None:
        self._was_told = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if this is the end of the process and not a failure, after which the state is anybody's guess."""
        if isinstance(exception, SIGTERMException) and trainer.training and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
