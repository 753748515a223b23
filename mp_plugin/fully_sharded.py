"""What FSDP2 does with the weights of its units in a step, and how to undo that."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Module, Parameter

from mp_plugin.parameter_names import plain_name


def reshard(module: Module) -> None:
    """Give back the gathered weights of all units of FSDP2: the module's parameters are the sharded ones again.

    After a backward pass they are; after a forward pass alone the outermost unit keeps its weights, and uses them again
    in the next one. No sync.
    """
    for unit in units(module):
        unit.reshard()


def reset(module: Module) -> None:
    """Take the units of FSDP2 out of a step that was left before its end; what it has added up is lost. No sync."""
    for unit in units(module):
        # Older versions of torch have no such method.
        if unit._get_fsdp_state()._is_root and hasattr(unit, "reset_iter_state"):
            unit.reset_iter_state()
    reshard(module)


def lent_parameters(module: Module) -> Iterator[tuple[str, Parameter]]:
    """Yield the parameters of all units of FSDP2 with their names; the memory of gathered ones is soon given back."""
    of_units = {id(parameter) for unit in units(module) for parameter in unit.parameters()}
    if of_units:
        yield from ((plain_name(name), each) for name, each in module.named_parameters() if id(each) in of_units)


def units(module: Module) -> Iterator[Any]:
    """Yield the parts of a module that FSDP2 shards, each an `FSDPModule`."""
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule

        yield from (part for part in module.modules() if isinstance(part, FSDPModule))
