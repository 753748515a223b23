"""Run a pass in FP32 of a model that trains in a lower precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.nn import Module

from mp_plugin.casting import default_dtype
from mp_plugin.devices import without_tf32
from mp_plugin.fallback.fp32_weights import all_in_fp32
from mp_plugin.fallback.island_class import HALF
from mp_plugin.fallback.sharding import groups
from mp_plugin.instance import replace_attribute

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision


@contextmanager
def in_fp32(plugin: "AdaptivePrecision", module: "pl.LightningModule") -> Iterator[None]:
    """Let the validation steps of a module, in eval mode, compute in FP32 while the block runs.

    What the module casts to half by itself, or in an autocast region of its own, stays so. Weights that are half are
    taken as they are: what their format has rounded off is gone.
    """
    device_type = module.device.type
    with ExitStack() as undo:
        undo.callback(replace_attribute(plugin, "forward_context", lambda: torch.autocast(device_type, enabled=False)))
        undo.enter_context(without_tf32())
        if plugin.mode.weights != "fp32":
            undo.enter_context(plugin.layer_fallback.lifted())
            undo.enter_context(all_in_fp32(module))
            undo.enter_context(default_dtype(torch.float32))
        elif module.trainer.strategy.model is not None:
            undo.enter_context(_gathered_in_fp32(module.trainer.strategy.model))
        yield


def why_not_in_fp32(plugin: "AdaptivePrecision", model: Module) -> str | None:
    """Return why a model cannot run in FP32; None if it can.

    Args:
        plugin: in whose precision it trains.
        model: what the strategy trains, with its wrappers.
    """
    units = _fsdp1_units(model)
    is_sharded = bool(units) or any(hasattr(each, "placements") for each in model.parameters())
    if is_sharded and plugin.mode.weights != "fp32":
        return f"the weights are sharded in {plugin.mode.weights}"
    if any(unit._handle is not None and unit._handle._fully_sharded_module.training for unit in units):
        return "FSDP gathers the weights as its policy says where a model is not in eval mode"
    policies = [group.mp_policy for group in groups(model)]
    half = next((each.param_dtype for each in policies if each.param_dtype in HALF), None)
    return None if half is None else f"the policy of fully_shard gathers the weights in {half}"


@contextmanager
def _gathered_in_fp32(model: Module) -> Iterator[None]:
    """Let FSDP1 gather weights, and keep inputs and buffers, in the format of the weights, whatever its policy says."""
    units = _fsdp1_units(model)
    _gather_anew(units)
    flags = [
        replace_attribute(owner, "_use_full_prec_in_eval", True)
        for unit in units
        for owner in (unit, unit._handle)
        if owner is not None
    ]
    try:
        yield
    finally:
        # Else the outermost unit would keep the weights of today for the next time.
        _gather_anew(units)
        for undo in flags:
            undo()


def _gather_anew(units: list[Any]) -> None:
    for handle in (unit._handle for unit in units):
        if handle is not None and handle.uses_sharded_strategy and not handle.needs_unshard():
            handle.reshard(True)
            handle.post_reshard()


def _fsdp1_units(model: Module) -> list[Any]:
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FullyShardedDataParallel

    return list(FullyShardedDataParallel.fsdp_modules(model))
