"""Unscale and clip in one multiplication, or in one number for an optimizer that divides by it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mp_plugin.numerics.grad_values import grouped, local_values


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    r"""Return what clips gradients if they are multiplied by it: torch's $\min(1, m / (\lVert g \rVert + 10^{-6}))$.

    Args:
        norm: of the true gradients; 0-d. No sync.
        max_norm: what it may be at most; above 0.

    Example:
        >>> clip_coefficient(torch.tensor(4.0), max_norm=1.0)
        tensor(0.2500)
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def unscale_and_clip_(grads: Sequence[Tensor], scale: float, norm: Tensor, max_norm: float) -> None:
    r"""Divide gradients by the loss scale and clip their norm, in place: one read and one write. No sync.

    $g \leftarrow g \cdot (c / s)$ with the coefficient $c$ of the true norm. For a scale that is a power of two this is
    what unscaling and `torch.nn.utils.clip_grad_norm_` give one after the other, bit by bit, but for subnormal numbers.

    Args:
        grads: of the scaled loss; of distributed ones the local part is written to.
        scale: what the loss was multiplied by; 1.0 only clips.
        norm: of these scaled gradients; 0-d.
        max_norm: what the norm of the true gradients may be at most.

    Example:
        >>> grad = torch.tensor([6.0, 8.0])
        >>> unscale_and_clip_([grad], 2.0, norm=torch.tensor(10.0), max_norm=1.0)
        >>> grad
        tensor([0.6000, 0.8000])
    """
    inverse = 1.0 / scale
    multiplier = clip_coefficient(norm * inverse, max_norm) * inverse
    values = [local_values(grad) for grad in grads]
    for indices in grouped(values):
        group = [values[i] for i in indices]
        # A norm of several ranks comes in fp64, which foreach kernels do not take beside fp32.
        dtype = torch.promote_types(group[0].dtype, torch.float32)
        torch._foreach_mul_(group, multiplier.to(group[0].device, dtype))


def grad_scale(scale: float | Tensor, norm: Tensor, max_norm: float | None) -> Tensor:
    r"""Return what a fused optimizer divides gradients by to have them unscaled and clipped: $s / c$. No sync.

    Args:
        scale: what the loss was multiplied by; a number, or 0-d and fp32 on the device of the norm.
        norm: of the scaled gradients; 0-d.
        max_norm: what the norm of the true gradients may be at most; None without clipping.

    Returns:
        fp32, 0-d, on the device of the norm.

    Example:
        >>> grad_scale(2.0, torch.tensor(10.0), max_norm=1.0)
        tensor(10.0000)
    """
    # What a fused kernel is given it reads as fp32, whatever the default is.
    whole = scale if isinstance(scale, Tensor) else torch.full((), scale, device=norm.device, dtype=torch.float32)
    return whole if max_norm is None else whole / clip_coefficient(norm * (1.0 / scale), max_norm).float()
