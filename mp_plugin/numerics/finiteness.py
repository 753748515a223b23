"""Look at one tensor of any kind: is it finite, and if not, what does it hold and where?

For diagnosing a step that went wrong. Every function waits for the device.
"""

import math

import torch
from torch import Tensor

from mp_plugin.numerics.grad_stats import local_part, local_values

_COMPUTABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_finite(tensor: Tensor) -> bool | None:
    """Whether a tensor holds neither NaN nor Inf; None if it cannot be looked at.

    The numbers are added up: a NaN or an Inf spoils every sum it is part of, and nothing is cheaper on a CPU than a
    sum. Only if that is not finite, which finite numbers can also bring about, smallest and largest decide.

    Args:
        tensor: of any dtype and layout; integers are finite, of a distributed tensor the local part counts. Quantized,
            nested and meta tensors, and memory that was given back, cannot be looked at.

    Example:
        >>> is_finite(torch.ones(2)), is_finite(torch.tensor([1.0, float("nan")])), is_finite(torch.ones(2).to("meta"))
        (True, False, None)
    """
    try:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return None if tensor.is_quantized else True
        values = readable_values(tensor)
        if values is None:
            return None
        if values.numel() == 0 or math.isfinite(values.sum().item()):
            return True
        smallest, largest = values.aminmax()
        return math.isfinite(smallest.item()) and math.isfinite(largest.item())
    # Tensor subclasses may raise anything; a tensor that cannot be read is an answer here, not an error.
    except Exception:
        return None


def non_finite_counts(tensor: Tensor) -> tuple[int, int, int]:
    """Count NaN, Inf and -Inf; none for a tensor that `is_finite` cannot look at.

    Example:
        >>> non_finite_counts(torch.tensor([1.0, float("nan"), float("-inf")]))
        (1, 0, 1)
    """
    if is_finite(tensor) is not False:
        return (0, 0, 0)
    values = _values(tensor)
    return (int(values.isnan().sum()), int((values == math.inf).sum()), int((values == -math.inf).sum()))


def non_finite_samples(tensor: Tensor, limit: int = 8) -> list[int]:
    """Return the first indices along dimension 0 that hold a NaN or an Inf; none for a scalar.

    Args:
        tensor: as for `is_finite`; of a distributed tensor, indices of the local part.
        limit: how many indices at most.

    Example:
        >>> non_finite_samples(torch.tensor([[1.0, 2.0], [float("inf"), 3.0], [4.0, float("nan")]]))
        [1, 2]
    """
    if tensor.dim() == 0 or is_finite(tensor) is not False:
        return []
    tensor = local_part(tensor)
    bad = ~_values(tensor).isfinite()
    rows = bad.flatten(1).any(dim=1) if bad.dim() > 1 else bad
    if tensor.is_sparse:
        found = tensor._indices()[0][rows]
    elif tensor.layout is torch.strided:
        found = rows.nonzero().flatten()
    else:
        return non_finite_samples(tensor.to_sparse(), limit)
    return sorted(set(found.tolist()))[:limit]


def readable_values(tensor: Tensor) -> Tensor | None:
    """Return the real numbers of a floating or complex tensor in a dtype torch computes in; None if they are not there.

    Shares memory with the tensor, unless its dtype is one of 8 bits. No sync.
    """
    tensor = local_part(tensor)
    if tensor.is_meta or tensor.is_nested:
        return None
    return _values(tensor) if tensor.layout is not torch.strided or _is_allocated(tensor) else None


def _values(tensor: Tensor) -> Tensor:
    tensor = local_part(tensor)
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        tensor = tensor.values()
    values = local_values(tensor)
    return values if values.dtype in _COMPUTABLE else values.float()


def _is_allocated(tensor: Tensor) -> bool:
    # Sharding frees the memory of a parameter and keeps the tensor: reading it would end the process.
    return tensor.numel() == 0 or tensor.untyped_storage().nbytes() > 0
