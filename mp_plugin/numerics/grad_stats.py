"""Read and unscale many gradients at once.

Every function takes a list of gradients, in any mix of devices, dtypes and layouts, and launches one operation per
(device, dtype) group, never one per parameter. None of them waits for the device.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def grad_amax(grads: Sequence[Tensor]) -> Tensor:
    r"""Largest magnitude of each gradient, with NaN and Inf kept apart.

    $a_i = \max_j |g_{ij}|$, where NaN wins over Inf and Inf over any number; 0 for an empty gradient. One read of the
    gradients; putting the result in order copies indices to the device once per group.

    Args:
        grads: floating-point gradients; dense, sparse, complex (the larger of real and imaginary part counts) or
            distributed (the local part counts).

    Returns:
        Tensor of shape `[len(grads)]`, on the device of the first gradient; fp64 if any gradient is, else fp32.

    Example:
        >>> grad_amax([torch.tensor([1.0, -3.0]), torch.tensor([float("inf"), 0.0])])
        tensor([3., inf])
    """
    values = [local_values(grad) for grad in grads]
    # In fp32 a magnitude beyond 3e38 would read as Inf.
    dtype = torch.float64 if any(value.dtype is torch.float64 for value in values) else torch.float32
    amax = torch.zeros(len(values), device=_device_of(values), dtype=dtype)
    for indices, group_amax in _amax_by_group(values):
        amax[indices] = group_amax.to(amax)
    return amax


def all_finite(grads: Sequence[Tensor]) -> Tensor:
    """Whether no gradient holds a NaN or an Inf: one read, a 0-d bool tensor, no host sync.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([float("nan")])])
        tensor(False)
    """
    values = [local_values(grad) for grad in grads]
    finite = torch.ones((), dtype=torch.bool, device=_device_of(values))
    for _, group_amax in _amax_by_group(values):
        finite &= torch.isfinite(group_amax).all().to(finite.device)
    return finite


def largest_magnitude(grads: Sequence[Tensor]) -> Tensor:
    """Largest magnitude of all gradients together: one read, a 0-d fp32 tensor, no host sync.

    Example:
        >>> largest_magnitude([torch.tensor([1.0, -3.0]), torch.zeros(0)])
        tensor(3.)
    """
    values = [local_values(grad) for grad in grads]
    largest = torch.zeros((), device=_device_of(values))
    for _, group_amax in _amax_by_group(values):
        largest = torch.maximum(largest, group_amax.max().to(largest))
    return largest


def unscale_(grads: Sequence[Tensor], scale: float) -> Tensor:
    r"""Divide the gradients by the loss scale in place and tell whether any was non-finite, before or after.

    $g \leftarrow g \cdot (1 / s)$, the reciprocal rounded from float64. One read and one write; a scale below 1, where
    the division itself can overflow, costs one read more. No host sync.

    Args:
        grads: gradients of the scaled loss.
        scale: what the loss was multiplied by; finite, above 2**-128.

    Returns:
        `found_inf`, an fp32 tensor of shape `[1]`: 1.0 if a NaN or an Inf was seen, else 0.0.

    Example:
        >>> grad = torch.tensor([8.0, 16.0])
        >>> unscale_([grad], 8.0), grad
        (tensor([0.]), tensor([1., 2.]))
    """
    values = [local_values(grad) for grad in grads]
    found_inf = torch.zeros(1, device=_device_of(values))
    inverse = 1.0 / scale
    for indices in grouped(values):
        group = [values[i] for i in indices]
        here = torch.zeros(1, device=group[0].device)
        torch._amp_foreach_non_finite_check_and_unscale_(group, here, torch.full_like(here, inverse))
        found_inf = torch.maximum(found_inf, here.to(found_inf.device))
    if inverse > 1.0:
        found_inf = torch.maximum(found_inf, (~all_finite(values)).to(found_inf.dtype))
    return found_inf


def local_values(grad: Tensor) -> Tensor:
    """Return the numbers of a gradient as a dense tensor that shares its memory.

    A sparse gradient gives its values (the caller coalesces it first), a distributed one its local part, a complex one
    its real and imaginary parts.
    """
    grad = local_part(grad)
    values = grad._values() if grad.is_sparse else grad
    if values.is_complex():
        # torch unscales real numbers only. A lazy conjugate differs by signs, which nobody here looks at.
        values = torch.view_as_real(values.conj() if values.is_conj() else values)
    return values


def local_part(grad: Tensor) -> Tensor:
    """Return what this process holds of a gradient: itself, unless it is a DTensor."""
    # By its method, as a torch that was built without torch.distributed has no DTensor to ask for.
    to_local = getattr(grad, "to_local", None)
    return grad if to_local is None else to_local()


def settled(grad: Tensor) -> Tensor:
    """Return a gradient with no sum outstanding; itself, if there is none.

    Rows of a sparse gradient that appear twice, and parts of a distributed one that still wait to be added up, are
    finite one by one and may overflow in their sum.
    """
    if grad.is_sparse:
        return grad if grad.is_coalesced() else grad.coalesce()
    placements = getattr(grad, "placements", ())
    if not any(placement.is_partial() for placement in placements):
        return grad
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if placement.is_partial() else placement for placement in placements]
    return grad.redistribute(placements=whole)  # type: ignore[attr-defined, no-any-return]


def _device_of(values: Sequence[Tensor]) -> torch.device:
    return values[0].device if values else torch.device("cpu")


def _amax_by_group(values: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    for indices in grouped(values):
        yield indices, torch.stack(torch._foreach_norm([values[i] for i in indices], float("inf")))


def grouped(values: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the non-empty tensors by device and dtype: what one foreach launch can take."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in enumerate(values):
        # The infinity norm of nothing is an error in torch.
        if tensor.numel():
            groups[(tensor.device, tensor.dtype)].append(index)
    return list(groups.values())
