"""The memory in which a tensor holds its numbers."""

import torch
from torch import Tensor, UntypedStorage

from mp_plugin.numerics.grad_values import local_part


def strided(tensor: Tensor) -> Tensor:
    """Return the strided tensor that holds the numbers of a tensor of any layout; of a distributed one the local part.

    Example:
        >>> strided(torch.tensor([0.0, 3.0]).to_sparse())
        tensor([3.])
    """
    tensor = local_part(tensor)
    if tensor.layout is torch.strided:
        return tensor
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()


def storage_under(tensor: Tensor) -> UntypedStorage | None:
    """Return the memory of `strided`; None for subclasses and layouts that only look like a tensor. No sync.

    Example:
        >>> numbers = torch.ones(4)
        >>> storage_under(numbers[1:]).data_ptr() == numbers.data_ptr()
        True
        >>> storage_under(numbers.to_mkldnn()) is None
        True
    """
    try:
        return strided(tensor).untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
