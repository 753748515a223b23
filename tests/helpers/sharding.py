"""Models whose weights are spread over several CPU processes."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import Module

from mp_plugin.numerics.grad_stats import local_values
from tests.helpers.training import Regression

FEASIBLE = 512.0
"""The highest loss scale at which nothing overflows."""


class FSDPOnCPU(FSDPStrategy):
    """FSDP1 on a CPU: Lightning refuses FSDPStrategy itself there, and torch wants the device by name."""

    def _setup_model(self, model: Module) -> Module:
        if any(isinstance(part, FullyShardedDataParallel) for part in model.modules()):
            return model
        return FullyShardedDataParallel(
            module=model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )


class Spoiled(Regression):
    """Above a loss scale of 512 the gradients of batch 1 overflow on one rank, after ranks have exchanged them."""

    spoiled_rank = 1

    def on_after_backward(self) -> None:
        plugin: Any = self.trainer.precision_plugin
        is_here = self.trainer.global_rank == self.spoiled_rank and self.trainer.fit_loop.batch_idx == 1
        if is_here and plugin.loss_scale != FEASIBLE:
            for optimizer in self.trainer.optimizers:
                gradient = next(p.grad for p in plugin.main_params(optimizer) if p.grad is not None)
                local_values(gradient).fill_(float("inf"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # With use_orig_params=False the flat parameters are those of the wrapper.
        return self.make_optimizer(self.trainer.model.parameters(), **self.optimizer_options)  # type: ignore[union-attr]


class FullySharded(Spoiled):
    """The same with FSDP2; of its two layers both are sharded, or only the first."""

    def __init__(self, *, all_layers: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.all_layers = all_layers

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        fully_shard(self.net[0], mesh=mesh)  # type: ignore[arg-type]
        if self.all_layers:
            fully_shard(self.net, mesh=mesh)


def whole_weights(trainer: pl.Trainer) -> dict[str, Tensor]:
    """A copy of all weights, gathered from all ranks; empty on ranks other than 0 under FSDP1."""
    model: Any = trainer.strategy.model
    if isinstance(trainer.strategy, FSDPStrategy):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            return {n.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for n, p in model.named_parameters()}
    return {
        n.removeprefix("module."): getattr(p, "full_tensor", lambda p=p: p)().detach().clone()
        for n, p in model.named_parameters()
    }
