"""Divide many gradients by the loss scale at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mp_plugin.numerics.grad_totals import all_finite
from mp_plugin.numerics.grad_values import device_of, grouped, local_values


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
    found_inf = torch.zeros(1, device=device_of(values), dtype=torch.float32)
    inverse = 1.0 / scale
    for indices in grouped(values):
        group = [values[i] for i in indices]
        here = torch.zeros(1, device=group[0].device, dtype=torch.float32)
        torch._amp_foreach_non_finite_check_and_unscale_(group, here, torch.full_like(here, inverse))
        found_inf = torch.maximum(found_inf, here.to(found_inf.device))
    if inverse > 1.0:
        found_inf = torch.maximum(found_inf, (~all_finite(values)).to(found_inf.dtype))
    return found_inf
