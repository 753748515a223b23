"""Random numbers as a function of seed and epoch."""

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seed torch anew at the start of each training epoch.

    Augmentation and dropout then depend on seed, epoch and rank alone, as shuffling does by `EpochShuffle`: a run
    resumed from the end of an epoch goes on exactly as if it had never stopped.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed all of torch's generators, before the epoch's first batch is drawn."""
        words = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank)).generate_state(1)
        torch.manual_seed(int(words[0]))
