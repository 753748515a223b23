"""The gradients that a rank answers for: each value of a model on one rank."""

from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from mp_plugin.parameter_names import plain_name


def held_gradients(module: "pl.LightningModule", optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradients of an optimizer's parameters by the layer they belong to, those that this rank answers for.

    What all ranks hold alike, as under DDP, the first answers for; of what is sharded each rank for its part. No sync.

    Args:
        module: knows the names of the layers.
        optimizer: whose parameters.
    """
    theirs = {id(each) for group in optimizer.param_groups for each in group["params"]}
    is_sharded = isinstance(module.trainer.strategy, FSDPStrategy)  # whose parameters are plain tensors
    for name, parameter in module.named_parameters():
        if parameter.grad is None or id(parameter) not in theirs:
            continue
        if is_sharded or _answers_for(parameter.grad, is_first=module.trainer.is_global_zero):
            yield plain_name(name).rpartition(".")[0], parameter.grad


def _answers_for(gradient: Tensor, *, is_first: bool) -> bool:
    placements = getattr(gradient, "placements", None)
    if placements is None:
        return is_first
    coordinates = gradient.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    # Along a dimension of the mesh in which nothing is cut, all ranks hold the same.
    return coordinates is not None and not any(
        coordinate and not placement.is_shard() for coordinate, placement in zip(coordinates, placements, strict=True)
    )
