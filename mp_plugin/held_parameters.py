"""The gradients that a rank answers for: each value of a model on one rank."""

from collections.abc import Iterator

import lightning.pytorch as pl
import torch.distributed as dist
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
    own_parts = _own_parts(module.trainer)
    for name, parameter in module.named_parameters():
        if parameter.grad is None or id(parameter) not in theirs:
            continue
        if id(parameter) in own_parts or _answers_for(parameter.grad, is_first=module.trainer.is_global_zero):
            yield plain_name(name).rpartition(".")[0], parameter.grad


def _own_parts(trainer: "pl.Trainer") -> set[int]:
    """Return the identities of the parameters that FSDP1 shards, which are plain tensors, and that no other rank has.

    Not those of units that shard nothing, of modules that FSDP ignores, and of a second copy of a hybrid of both.
    """
    if not isinstance(trainer.strategy, FSDPStrategy):
        return set()
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: set[int] = set()
    for unit in FullyShardedDataParallel.fsdp_modules(trainer.strategy.model):  # type: ignore[arg-type]
        handle = unit._handle
        between_copies = getattr(unit, "_inter_node_pg", None)
        is_copy = between_copies is not None and dist.get_rank(between_copies) > 0
        if handle is not None and handle.uses_sharded_strategy and not is_copy:
            flat = handle.flat_param
            found.update(id(each) for each in [flat, *(flat._params or []), *(flat._shared_params or [])])
    return found


def _answers_for(gradient: Tensor, *, is_first: bool) -> bool:
    placements = getattr(gradient, "placements", None)
    if placements is None:
        return is_first
    coordinates = gradient.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    # Along a dimension of the mesh in which nothing is cut, all ranks hold the same.
    return coordinates is not None and not any(
        coordinate and not placement.is_shard() for coordinate, placement in zip(coordinates, placements, strict=True)
    )
