"""What FSDP does to the weights of a layer, as far as an island cannot do with it."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.nn import Module

from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.island_class import HALF
from mp_plugin.fallback.layers import layers_by_name, names_of
from mp_plugin.fully_sharded import units


def refuse_sharded_half(wrapped: Module, root: Module, names: Iterable[str] | None = None) -> None:
    """Refuse islands whose weights FSDP1 or FSDP2 hands to the forward pass in half.

    Args:
        wrapped: what a strategy trains, the wrappers around the model among it.
        root: the model.
        names: of the islands; None where any layer may become one.

    Raises:
        UnsupportedError: naming a layer, the format and the way out.
    """
    half = _gathered_in_half(wrapped)
    layers = layers_by_name(root)
    own_names = names_of(root)
    for name in layers if names is None else names:
        for part in layers[name].modules() if name in layers else ():
            if part in half:
                of = own_names[part][0] if part in own_names else name
                raise UnsupportedError(
                    f"Layer {name!r} cannot run in FP32: FSDP gathers the weights of {of!r} in {half[part]}; accepted: "
                    "param_dtype=None in the mixed precision policy of the unit that holds it, which may be one of "
                    "its own. FSDPStrategy without mixed_precision=... is given such a policy by this plugin, in a "
                    "mixed precision."
                )


def refuse_mixed_units(root: Module) -> None:
    """Refuse weights of several formats within one unit of FSDP2, which exchanges gradients in one.

    Raises:
        UnsupportedError: naming two of the weights, and the way out.
    """
    names = {id(weight): name for name, weight in root.named_parameters()}
    for group in groups(root):
        formats: dict[torch.dtype, str] = {}
        for weight in (each.sharded_param for each in group.fsdp_params):
            if weight.requires_grad:
                formats.setdefault(weight.dtype, names.get(id(weight), "a weight"))
        if len(formats) > 1:
            found = " and ".join(f"{name!r} in {dtype}" for dtype, name in formats.items())
            raise UnsupportedError(
                f"One unit of FSDP2 holds {found}, which it cannot; accepted: fully_shard for each layer in FP32 by "
                "itself, before the module around it."
            )


def _gathered_in_half(wrapped: Module) -> dict[Module, torch.dtype]:
    """Return the modules that hold a parameter which is half in the forward pass, with its format."""
    half: dict[Module, torch.dtype] = {}
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel

        for unit in FullyShardedDataParallel.fsdp_modules(wrapped):
            dtype = unit.mixed_precision.param_dtype
            if unit._handle is not None and dtype in HALF:
                flat: Any = unit._handle.flat_param
                half |= {info.module: dtype for info in (*flat._param_infos, *flat._shared_param_infos)}
    for group in groups(wrapped):
        dtype = group.mp_policy.param_dtype
        if dtype in HALF:
            for each in group.fsdp_params:
                info = each._module_info
                half |= dict.fromkeys([info.module, *info.shared_modules], dtype)
    return half


def groups(wrapped: Module) -> Iterator[Any]:
    """Yield the groups of parameters that FSDP2 gathers together; older versions of torch have one for each unit."""
    for unit in units(wrapped):
        state = unit._get_fsdp_state()
        if hasattr(state, "_fsdp_param_groups"):
            yield from state._fsdp_param_groups
        elif state._fsdp_param_group is not None:
            yield state._fsdp_param_group
