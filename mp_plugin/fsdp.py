"""What the sharding strategies ask of a precision plugin."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from mp_plugin.casting import DTYPES
from mp_plugin.errors import UnsupportedError
from mp_plugin.modes import Mode
from mp_plugin.numerics.clipping import clamp_, is_sharded, squared_norm
from mp_plugin.numerics.one_pass import unscale_and_clip_
from mp_plugin.scaling.verdict import gradients
from mp_plugin.strategies import lightning_module

if TYPE_CHECKING:
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision


class FSDPCapable(FSDPPrecision):
    """A plain `Precision` that `FSDPStrategy` accepts, and that clips sharded gradients right.

    Lightning's own `FSDPPrecision` takes no configured scaler, scales losses and steps by itself, opens its autocast
    region on CUDA only and refuses to clip by norm. None of that is used here but its name.
    """

    mode: Mode
    _wrapped: Module | None = None  # what FSDPStrategy trains, while connected
    _gathers_in_fp32 = False
    _has_fallback = False
    """Whether layers may run in FP32 as islands."""

    pre_backward = Precision.pre_backward
    convert_output = Precision.convert_output

    @property
    @override
    def mixed_precision_config(self) -> "MixedPrecision":
        """The formats in which FSDP gathers weights, adds up gradients and keeps buffers.

        In the mixed precisions weights are gathered in the half format, or in fp32 where a fallback may need them so.
        Gradients are added up in fp32, as fp16 overflows in the sum itself, and buffers such as BatchNorm's statistics
        stay in fp32; so do inputs, which autocast casts where it must. `FSDPStrategy(mixed_precision=...)` overrides.
        """
        # Here, as a torch that was built without torch.distributed has no FSDP.
        from torch.distributed.fsdp import MixedPrecision

        weights = DTYPES[self.mode.weights]
        if not self.mode.is_mixed:
            return MixedPrecision(param_dtype=weights, reduce_dtype=weights, buffer_dtype=weights)
        return MixedPrecision(
            param_dtype=weights if self._gathers_in_fp32 or self._has_fallback else DTYPES[self.mode.compute],
            reduce_dtype=torch.float32,
            buffer_dtype=torch.float32,
            cast_root_forward_inputs=False,
        )

    @override
    def convert_module(self, module: Module) -> Module:
        # BatchNorm cannot compute with half weights and fp32 statistics. Where a policy wraps parts of a model, torch
        # keeps BatchNorm apart, in fp32; without one the whole model is gathered in fp32.
        strategy = module.trainer.strategy if isinstance(module, pl.LightningModule) else None
        self._gathers_in_fp32 = (
            isinstance(strategy, FSDPStrategy)
            and strategy.kwargs.get("auto_wrap_policy") is None
            and any(isinstance(part, _BatchNorm) for part in module.modules())
        )
        return module

    @override
    def connect(
        self, model: Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[Module, list[Optimizer], list[Any]]:
        if isinstance(lightning_module(model).trainer.strategy, FSDPStrategy):
            self._wrapped = model
        return model, optimizers, lr_schedulers

    @override
    def teardown(self) -> None:
        self._wrapped = None

    @override
    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        grads, roots = gradients(optimizer), self._fsdp_roots()
        if not roots and not any(map(is_sharded, grads)):
            return Precision.clip_grad_by_norm(self, optimizer, clip_val)
        below_roots = {id(parameter) for root in roots for parameter in root.parameters()}
        elsewhere = [p.grad for p in self.main_params(optimizer) if p.grad is not None and id(p) not in below_roots]
        with _only_gradients_of(optimizer, roots):
            squares = [_norm(root).double().square() for root in roots]
        if elsewhere:
            squares.append(squared_norm(elsewhere))
        norm = torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()
        unscale_and_clip_(grads, 1.0, norm, clip_val)
        return None

    @override
    def clip_grad_by_value(self, optimizer: Optimizer, clip_val: int | float) -> None:
        grads = gradients(optimizer)
        if any(map(is_sharded, grads)):
            clamp_(grads, clip_val)
        else:
            super().clip_grad_by_value(optimizer, clip_val)

    def _fsdp_roots(self) -> "list[FullyShardedDataParallel]":
        if self._wrapped is None:
            return []
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel.fsdp_modules(self._wrapped, root_only=True)


def refuse_fp32_beside_half_weights(strategy: Strategy, names: Iterable[str], mode: Mode) -> None:
    """Refuse layers with FP32 weights in a model of half weights where FSDP1 would gather both in half.

    Raises:
        UnsupportedError: naming a layer and the way out.
    """
    first = next(iter(names), None)
    if first is not None and isinstance(strategy, FSDPStrategy):
        raise UnsupportedError(
            f"Layer {first!r} cannot run in FP32: with precision={mode.name!r} FSDPStrategy keeps all weights in "
            f"{DTYPES[mode.weights]}; accepted: '16-mixed' or 'bf16-mixed', or ModelParallelStrategy with fully_shard "
            "for the layer by itself."
        )


def _norm(root: "FullyShardedDataParallel") -> Tensor:
    """Norm of all gradients below a root, over all ranks; only FSDP knows which of them it has sharded."""
    return root.clip_grad_norm_(torch.finfo(torch.float32).max)  # which multiplies them by 1


@contextmanager
def _only_gradients_of(optimizer: Optimizer, roots: "list[FullyShardedDataParallel]") -> Iterator[None]:
    """Hide the gradients of other optimizers, as FSDP's norm takes in all there are."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    others = [parameter for root in roots for parameter in root.parameters() if id(parameter) not in own]
    hidden = [parameter.grad for parameter in others]
    for parameter in others:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad in zip(others, hidden, strict=True):
            parameter.grad = grad
