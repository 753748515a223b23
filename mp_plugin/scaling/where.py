"""Where a step happened."""

from typing import NamedTuple


class Where(NamedTuple):
    """Which batch, which optimizer, on which process."""

    batch_idx: int
    rank: int
    optimizer_idx: int = 0
    """Its place in the trainer's list."""
