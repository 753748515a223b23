"""Clip many gradients at once, sharded ones among plain ones.

torch clips gradients that are all plain, or all sharded over one mesh. Its foreach operations refuse a mixture of both.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mp_plugin.numerics.grad_values import grouped, local_values


def squared_norm(grads: Sequence[Tensor]) -> Tensor:
    r"""Sum of the squares of all numbers in all gradients, each counted once wherever it lies.

    $\sum_i \sum_j g_{ij}^2$. The parts of a sharded gradient (a DTensor, over any mesh) are added up over the ranks
    that hold them: one all-reduce for all gradients of a mesh that are sharded alike. All ranks together; no host sync.

    Args:
        grads: floating-point gradients; plain ones are the same on every rank.

    Returns:
        0-d fp64 tensor on the device of the first gradient.

    Example:
        >>> squared_norm([torch.tensor([3.0]), torch.tensor([0.0, 4.0])])
        tensor(25., dtype=torch.float64)
    """
    total = torch.zeros((), dtype=torch.float64, device=grads[0].device if grads else None)
    # Told apart by the mesh and those of its dimensions that hold different parts.
    alike: dict[tuple[Any, tuple[int, ...]], list[Tensor]] = defaultdict(list)
    for grad in grads:
        shards = tuple(d for d, placement in enumerate(_placements(grad)) if not placement.is_replicate())
        alike[(grad.device_mesh if shards else None, shards)].append(local_values(grad))  # type: ignore[attr-defined]
    for (mesh, shards), values in alike.items():
        square = _local_squared_norm(values)
        if shards:
            square = square.to(mesh.device_type)
        for dimension in shards:
            dist.all_reduce(square, group=mesh.get_group(dimension))
        total += square.to(total.device)
    return total


def clamp_(grads: Sequence[Tensor], max_value: float) -> None:
    """Clip every number of the gradients to `[-max_value, max_value]` in place. No sync.

    Example:
        >>> grad = torch.tensor([3.0, -4.0])
        >>> clamp_([grad], 3.5)
        >>> grad
        tensor([ 3.0000, -3.5000])
    """
    values = [local_values(grad) for grad in grads]
    for indices in grouped(values):
        group = [values[i] for i in indices]
        torch._foreach_clamp_min_(group, -max_value)
        torch._foreach_clamp_max_(group, max_value)


def is_sharded(grad: Tensor) -> bool:
    """Whether a gradient is a DTensor."""
    return bool(_placements(grad))


def _placements(grad: Tensor) -> tuple[Any, ...]:
    return getattr(grad, "placements", ())


def _local_squared_norm(values: Sequence[Tensor]) -> Tensor:
    square = torch.zeros((), dtype=torch.float64, device=values[0].device)
    for indices in grouped(values):
        group = [values[i] for i in indices]
        # A half format would overflow, or vanish, in the square.
        dtype = torch.promote_types(group[0].dtype, torch.float32)
        norms = torch.stack(torch._foreach_norm(group, 2, dtype=dtype))
        square += norms.double().square().sum().to(square.device)
    return square
