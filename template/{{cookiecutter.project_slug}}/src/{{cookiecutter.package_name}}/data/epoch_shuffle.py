"""Shuffling as a function of seed and epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data.distributed import DistributedSampler


class EpochShuffle(DistributedSampler[int]):
    """This rank's share of all examples, in an order that depends on seed and epoch alone.

    It yields draws: epoch * size + index of the example. A worker process learns the epoch from nothing else, and
    `EpochDraws` takes the two apart. As with every DistributedSampler (Lightning leaves those alone), all ranks get
    equally many examples: where their number does not divide by that of the ranks, the first of an epoch come twice.

    Args:
        size: number of examples.
        seed: the run's seed.
        num_ranks: processes that share the examples.
        rank: which of them this is.
    """

    def __init__(self, size: int, seed: int, num_ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=num_ranks, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.size, self.start = size, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.start = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        own = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        # Where a resumed run goes on, the length of an epoch stays as it is: Lightning counts from its beginning.
        return iter((self.epoch * self.size + own[self.start :]).tolist())
