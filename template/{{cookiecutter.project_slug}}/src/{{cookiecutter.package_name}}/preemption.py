"""Leaving in good order when a cluster takes the machine away."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveWhenTerminated(Callback):
    """Write last.ckpt when the run is told to end (SIGTERM), so that `resume=latest` loses not even a step.

    Lightning ends the run after the batch at hand. In validation, and at the end of an epoch, nothing is saved: the run
    goes on from the newest checkpoint, and repeats what it has to.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if this is the end of the process and not a failure, after which the state is anybody's guess."""
        if isinstance(exception, SIGTERMException) and trainer.training and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
