"""Whether many gradients are finite, and how large they are."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mp_plugin.numerics.grad_values import device_of, grouped, local_values

SMALL = 4096
"""Values of a gradient below which a launch of its own costs more, on a CPU, than what is done with them."""


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
    amax = torch.zeros(len(values), device=device_of(values), dtype=dtype)
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
    finite = torch.ones((), dtype=torch.bool, device=device_of(values))
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
    largest = torch.zeros((), device=device_of(values))
    for _, group_amax in _amax_by_group(values):
        largest = torch.maximum(largest, group_amax.max().to(largest))
    return largest


def _amax_by_group(values: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    for indices in grouped(values):
        group = [values[i] for i in indices]
        if group[0].device.type != "cpu":
            yield indices, torch.stack(torch._foreach_norm(group, float("inf")))
            continue
        # On a CPU the infinity norm is not vectorised: smallest and largest together take a sixth of its time.
        for place, value in zip(indices, group, strict=True):
            if value.numel() >= SMALL:
                yield [place], torch.stack(value.aminmax()).abs().amax().reshape(1)
        small = [place for place in indices if values[place].numel() < SMALL]
        if small:
            yield small, torch.stack(torch._foreach_norm([values[i] for i in small], float("inf")))
