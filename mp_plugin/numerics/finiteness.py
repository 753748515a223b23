"""Look at one tensor of any kind: is it finite, and if not, what does it hold and where?

For diagnosing a step that went wrong. Every function waits for the device.
"""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mp_plugin.numerics.grad_values import local_part, local_values
from mp_plugin.numerics.storage import storage_under

log = logging.getLogger(__name__)

_COMPUTABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Kind(str, Enum):
    """A kind of non-finite number."""

    nan = "nan"
    inf = "inf"
    negative_inf = "-inf"


Kinds = frozenset[Kind]
FINITE: Kinds = frozenset()
INFINITE: Kinds = frozenset({Kind.inf, Kind.negative_inf})


def kinds_in(tensor: Tensor) -> Kinds | None:
    """Return the kinds of non-finite numbers in a tensor; None if it cannot be looked at.

    One sum, where that is the cheapest of all reads: a NaN or an Inf spoils every sum it is part of. Only if that is
    not finite, which finite numbers can also bring about, smallest and largest decide. Syncs.

    Args:
        tensor: of any dtype and layout; integers are finite, of a distributed tensor the local part counts. Quantized,
            nested and meta tensors, and memory that was given back, cannot be looked at.

    Example:
        >>> sorted(kinds_in(torch.tensor([1.0, float("nan"), float("-inf")])))
        [<Kind.negative_inf: '-inf'>, <Kind.nan: 'nan'>]
    """
    try:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return None if tensor.is_quantized else FINITE
        values = readable_values(tensor)
        if values is None:
            return None
        if values.numel() == 0:
            return FINITE
        with _without_modes(values):
            # A sum is the cheapest of all reads, but not in half precision on a CPU.
            if (values.itemsize > 2 or values.is_cuda) and math.isfinite(values.sum().item()):
                return FINITE
            return _kinds_of(values)
    # Tensor subclasses may raise anything; a tensor that cannot be read is an answer here, not an error.
    except Exception as error:
        _tell_unreadable(type(tensor), tensor.dtype, f"{type(error).__name__}: {error}")
        return None


@cache
def _tell_unreadable(kind: type, dtype: torch.dtype, reason: str) -> None:
    log.warning("A %s of %s cannot be looked at (%s) and counts as finite.", kind.__name__, dtype, reason)


def _without_modes(values: Tensor) -> AbstractContextManager[Any]:
    # Who watches or guards what the training does need not see this. Tensor subclasses compute by that way alone.
    is_plain = type(values) in (Tensor, torch.nn.Parameter)
    return torch._C._DisableTorchDispatch() if is_plain else nullcontext()


def _kinds_of(values: Tensor) -> Kinds:
    smallest, largest = torch.stack(values.aminmax()).tolist()
    kinds = set()
    if math.isnan(largest):
        kinds.add(Kind.nan)
        values = values.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
        smallest, largest = torch.stack(values.aminmax()).tolist()
    if largest == math.inf:
        kinds.add(Kind.inf)
    if smallest == -math.inf:
        kinds.add(Kind.negative_inf)
    return frozenset(kinds)


def is_finite(tensor: Tensor) -> bool | None:
    """Whether a tensor holds neither NaN nor Inf; None if it cannot be looked at. Syncs.

    Example:
        >>> is_finite(torch.ones(2)), is_finite(torch.tensor([1.0, float("nan")])), is_finite(torch.ones(2).to("meta"))
        (True, False, None)
    """
    kinds = kinds_in(tensor)
    return None if kinds is None else not kinds


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
    return _values(tensor) if is_allocated(tensor) else None


def _values(tensor: Tensor) -> Tensor:
    tensor = local_part(tensor)
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        tensor = tensor.values()
    values = local_values(tensor)
    return values if values.dtype in _COMPUTABLE else values.float()


def is_allocated(tensor: Tensor) -> bool:
    """Whether all of a tensor's numbers lie within its memory: else reading them would end the process. No sync.

    Sharding gives back the memory of a parameter and keeps the tensor.

    Args:
        tensor: of any kind; one that is not strided has no memory of its own, and passes.

    Example:
        >>> freed = torch.ones(2)
        >>> _ = freed.untyped_storage().resize_(0)
        >>> is_allocated(freed)
        False
    """
    tensor = local_part(tensor)
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.numel() == 0:
        return True
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    storage = storage_under(tensor)
    return storage is None or bool((tensor.storage_offset() + last + 1) * tensor.itemsize <= storage.nbytes())
