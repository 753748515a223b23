"""A last-good copy of a model's buffers.

A forward pass that overflowed has already written into BatchNorm's running statistics. Skipping the step does not take
that back, and a NaN in them stays for the rest of the run.
"""

import logging
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import Module

log = logging.getLogger(__name__)

LARGEST_COPY = 2**26
"""Bytes of buffers that are copied at most: running statistics are far below, a replay memory is not."""


class LastGoodBuffers:
    """Copy the buffers that training writes to, and put the copy back.

    Floating-point buffers, and counters of one element such as BatchNorm's `num_batches_tracked`, in one launch per
    (device, dtype) group and without a sync. All of them each time: batch normalisation writes to its statistics
    without a trace in the tensor's version count. A module whose buffers take more than `largest_copy` bytes in all is
    left alone, with one message.

    Args:
        module: whose buffers.
        largest_copy: bytes.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> good = LastGoodBuffers(norm)
        >>> good.save()
        >>> norm.running_mean.fill_(float("nan"))
        tensor([nan, nan])
        >>> good.restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, module: Module, *, largest_copy: int = LARGEST_COPY) -> None:
        self._buffers = [buffer for buffer in module.buffers() if _is_written_to(buffer)]
        size = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)
        if size > largest_copy:
            log.warning(
                "The model's buffers take %.0f MiB, more than the %.0f MiB that are kept for going back: "
                "a skipped step does not restore them.",
                size / 2**20,
                largest_copy / 2**20,
            )
            self._buffers = []
        # torch copies a list of mixed dtypes one tensor at a time.
        self._buffers.sort(key=lambda buffer: (str(buffer.device), str(buffer.dtype)))
        self._copies = [torch.empty_like(buffer) for buffer in self._buffers]
        grouped = groupby(
            zip(self._buffers, self._copies, strict=True), key=lambda pair: (pair[0].device, pair[0].dtype)
        )
        self._groups = [tuple(map(list, zip(*pairs, strict=True))) for _, pairs in grouped]

    def save(self) -> None:
        """Take the copy."""
        for buffers, copies in self._groups:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copy back."""
        for buffers, copies in self._groups:
            torch._foreach_copy_(buffers, copies)

    @torch.no_grad()
    def restore_non_finite(self) -> None:
        """Put back only those buffers that hold a NaN or an Inf now; the others keep what they learned. Syncs."""
        for buffer, copy in zip(self._buffers, self._copies, strict=True):
            if buffer.is_floating_point() and not torch.isfinite(buffer).all():
                buffer.copy_(copy)


def _is_written_to(buffer: Tensor) -> bool:
    is_counter = buffer.numel() == 1 and not buffer.is_complex()
    return buffer.numel() > 0 and (buffer.is_floating_point() or is_counter)
