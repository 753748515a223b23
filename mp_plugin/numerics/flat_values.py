"""The numbers of a tensor in one dimension, for readers to whom their order means nothing."""

from torch import Tensor


def flat_values(values: Tensor) -> Tensor:
    """Return the numbers of a dense tensor as they lie in memory; a copy only where they lie with gaps or overlap.

    A transposed or channels-last tensor is its own memory in another order. One with gaps, or with numbers that several
    places share (`expand`), is copied, so that each place counts once. No sync.

    Example:
        >>> import torch
        >>> flat_values(torch.arange(6.0).view(2, 3).t())
        tensor([0., 1., 2., 3., 4., 5.])
        >>> flat_values(torch.tensor(3.0).expand(2))
        tensor([3., 3.])
    """
    if values.is_contiguous():
        return values.view(-1)
    if _fills_its_memory(values):
        return values.as_strided((values.numel(),), (1,))
    # Not `reshape`, which keeps even gaps as long as they are all alike.
    return values.contiguous().view(-1)


def _fills_its_memory(values: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(values.stride(), values.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
