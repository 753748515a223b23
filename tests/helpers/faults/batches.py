"""Random batches of images and of tokens; each sample brings a knob, which a planted fault may read."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SAMPLES = 4
SPOILED_SAMPLE = 2
LENGTH = 8
TOKENS = 32
PADDING = 0
CLASSES = 10


class Batch(NamedTuple):
    """What a planted model trains on."""

    inputs: Tensor
    """Images of 8 by 8, or tokens with padding at the end."""
    targets: Tensor
    knob: Tensor
    """One number per sample."""


def healthy_batch(inputs: str, *, knob: float, index: int) -> Batch:
    """A batch in which nothing goes wrong, the same one for the same index."""
    generator = torch.Generator().manual_seed(1000 + index)
    images = torch.rand(SAMPLES, 1, 8, 8, generator=generator)
    tokens = torch.randint(1, TOKENS, (SAMPLES, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (SAMPLES, 1), generator=generator)
    tokens = torch.where(torch.arange(LENGTH) < lengths, tokens, PADDING)
    targets = torch.rand(SAMPLES, CLASSES, generator=generator)
    return Batch({"images": images, "tokens": tokens}[inputs], targets, torch.full((SAMPLES,), knob))


def batches(fault: Any, *, faulty: tuple[int, ...] = (2,), count: int = 5) -> list[Batch]:
    """The batches of one training with a fault."""
    healthy = [healthy_batch(fault.inputs, knob=fault.healthy_knob, index=index) for index in range(count)]
    return [fault.spoil(batch) if index in faulty else batch for index, batch in enumerate(healthy)]
