"""Small trainings whose weights are spread over two CPU processes."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module
from torch.utils.data import DataLoader, TensorDataset

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.numerics.grad_values import local_values
from tests.helpers.training import Regression, quiet_trainer, regression_data

FEASIBLE = 512.0
"""The highest loss scale at which nothing overflows."""

ANSWERS = ("fp16", "fp16-retried", "bf16")
"""Precision, and whether an overflowed batch is run again."""


class FSDPOnCPU(FSDPStrategy):
    """FSDP1 on a CPU: Lightning refuses FSDPStrategy itself there, and torch wants to be told the device."""

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


class Normalized(Regression):
    """With BatchNorm, and a learning rate that halves with every step.

    A step that is skipped shows in its weights: they are those of a run that never saw the batch only if optimizer
    state, running statistics and learning rate stood still too.
    """

    def __init__(self, *, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        first, tanh, last = self.net
        self.net = torch.nn.Sequential(first, tanh, torch.nn.BatchNorm1d(16), torch.nn.Dropout(dropout), last)

    def configure_optimizers(self) -> Any:
        # With use_orig_params=False the flat parameters are those of the wrapper; torch's fused optimizers take no
        # DTensors and plain tensors in one group.
        parameters = list(self.trainer.model.parameters())  # type: ignore[union-attr]
        groups = [[p for p in parameters if hasattr(p, "placements") is sharded] for sharded in (True, False)]
        optimizer = self.make_optimizer([{"params": group} for group in groups if group], **self.optimizer_options)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]


def spoil_on_rank_one(module: Any) -> None:
    """Above a loss scale of 512 batch 1 overflows on rank 1 only, after the ranks have exchanged their gradients."""
    is_here = module.trainer.global_rank == 1 and module.trainer.fit_loop.batch_idx == 1
    if is_here and module.trainer.precision_plugin.loss_scale != FEASIBLE:
        held_parts(module)[0][1].fill_(float("inf"))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.fill_(float("nan"))


class SpoiledOnRankOne(Normalized):
    """With an overflow on one rank, which has left its mark in the running statistics there."""

    on_after_backward = spoil_on_rank_one


class LostOnRankOne(Normalized):
    """A part of a weight that only rank 1 holds turns to NaN."""

    def on_after_backward(self) -> None:
        if self.trainer.global_rank == 1 and self.trainer.fit_loop.batch_idx == 1:
            for part in held_parts(self)[0]:
                part.fill_(float("nan"))


class TwoOptimizers(Regression):
    """Manual optimization: the last bias, of which FSDP1 gives rank 0 nothing, is trained less often."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        *others, bias = self.parameters()
        return [self.make_optimizer(parameters, **self.optimizer_options) for parameters in (others, [bias])]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))  # type: ignore[arg-type]
        optimizers: Any = self.optimizers()
        for optimizer, every, norm in zip(optimizers, (1, 2), (0.02, 0.1), strict=True):
            if (batch_idx + 1) % every == 0:
                self.clip_gradients(optimizer, gradient_clip_val=norm, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()


def held_parts(model: Module) -> list[tuple[Tensor, Tensor]]:
    """Those parts of weights and their gradients that lie on this rank."""
    graded = [(local_values(p.detach()), local_values(p.grad)) for p in model.parameters() if p.grad is not None]
    return [parts for parts in graded if parts[0].numel()]


def plugin_for(answer: str, **scaling: Any) -> AdaptivePrecision:
    """A plugin that skips an overflowed step, or with `-retried` runs the batch again."""
    precision, retries = answer.split("-")[0], int(answer.endswith("retried"))
    options = {"init_scale": 2 * FEASIBLE, "retries": retries, **scaling}
    return AdaptivePrecision(precision, scaling=LossScaling(**options) if precision == "fp16" else None)


def train(
    module: Regression, strategy: Strategy | str, plugin: Any, *, data: DataLoader[Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Fit on this rank, and return what came of it."""
    torch.manual_seed(3)
    options = {"use_distributed_sampler": False, **options}
    save, resume = options.pop("save", None), options.pop("resume", None)
    trainer = quiet_trainer(plugins=[plugin], strategy=strategy, devices=2, **options)
    trainer.fit(module, data or regression_data(batches=4), ckpt_path=resume, weights_only=False if resume else None)
    if save is not None:
        trainer.save_checkpoint(save)
    return {
        "weights": whole_state(trainer.strategy.model, is_fsdp1=isinstance(trainer.strategy, FSDPStrategy)),
        "summary": plugin.summary() if isinstance(plugin, AdaptivePrecision) else {},
        "scale": getattr(plugin, "loss_scale", 1.0),
    }


def train_with_each_answer(
    shapes: dict[str, Callable[..., tuple[Regression, Strategy | str]]], out: Path, rank: int
) -> None:
    """Train each kind of model with each answer to an overflow, and beside it the run that should equal it."""
    whole, cut = regression_data(batches=4), without_batch(1, regression_data(batches=4))
    for shape, answer, fused in product(shapes, ANSWERS, (False, True)):
        retried = answer == "fp16-retried"
        # A batch that was never seen has drawn no random numbers either.
        options = {"optimizer": torch.optim.AdamW, "fused": fused, "dropout": 0.1 if retried else 0.0}
        result = train(*shapes[shape](SpoiledOnRankOne, **options), plugin_for(answer))
        healthy = plugin_for(answer, init_scale=FEASIBLE)
        expected = train(*shapes[shape](Normalized, **options), healthy, data=whole if retried else cut)
        torch.save({**result, "expected": expected["weights"]}, out / f"{shape}-{answer}-{fused}-rank{rank}.pt")


def without_batch(batch_idx: int, data: DataLoader[Any]) -> DataLoader[Any]:
    """The same data, as if one batch had never been."""
    kept = [batch for index, batch in enumerate(data) if index != batch_idx]
    tensors = [torch.cat(column) for column in zip(*kept, strict=True)]
    return DataLoader(TensorDataset(*tensors), batch_size=data.batch_size)


def whole_state(model: Any, *, is_fsdp1: bool) -> dict[str, Tensor]:
    """A copy of all weights, buffers too, gathered from all ranks."""
    if is_fsdp1:
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            return _copies(model)
    return _copies(model)


def _copies(model: Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    whole = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in named}
    plain = {name.replace("_fsdp_wrapped_module.", "").removeprefix("module."): t for name, t in whole.items()}
    return {name: tensor.detach().clone() for name, tensor in plain.items()}


def on_both(trained: Path, name: str) -> list[Any]:
    """What the two ranks wrote down."""
    return [torch.load(trained / f"{name}-rank{rank}.pt", weights_only=True) for rank in range(2)]


def counters(result: dict[str, Any]) -> list[int]:
    """Steps taken, skipped, and taken with the gradients of a second run."""
    return [result["summary"][name] for name in ("effective_steps", "skipped_steps", "retried_steps")]
