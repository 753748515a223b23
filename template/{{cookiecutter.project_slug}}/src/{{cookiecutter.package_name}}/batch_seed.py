"""Random numbers as a function of seed, epoch, batch and rank."""

import numpy as np
import torch
from lightning.pytorch import Trainer


def seed_next_batch(seed: int, trainer: Trainer) -> None:
    """Seed all of torch's generators for the training batch that comes next.

    Augmentation on the device and dropout then depend on nothing that happened before the batch: a run resumed in the
    middle of an epoch goes on exactly as if it had never stopped.

    Args:
        seed: the run's seed.
        trainer: knows the epoch, the batch and the rank.
    """
    batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    words = np.random.SeedSequence((seed, trainer.current_epoch, batch, trainer.global_rank)).generate_state(1)
    torch.manual_seed(int(words[0]))
