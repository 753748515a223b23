"""Run one operator again with float64 numbers: what it would have given, had its format not ended anywhere."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mp_plugin.numerics.finiteness import is_allocated
from mp_plugin.random_state import capture_random_state
from mp_plugin.telemetry.operators import tensors_in

log = logging.getLogger(__name__)

MAX_ELEMENTS = 2**28
"""Inputs and outputs together; float64 copies of more than these would take more than 2 GiB beside the training."""

_WIDE = {True: torch.complex128, False: torch.float64}
_NAMESPACES = ("aten", "prims")
"""Operators that only compute. A collective waits for other ranks, and what others define may do anything."""


def run_exactly(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> list[Tensor] | None:
    """Return what an operator gives on float64 copies of its inputs; None if it cannot be run so.

    Not run are operators that draw random numbers, collectives, custom operators, operators on tensor subclasses (a
    DTensor's would communicate), on memory that was given back since, and what has more than `MAX_ELEMENTS`. The inputs
    and the random streams stay as they are.

    Args:
        operator: an `OpOverload`.
        args: what it was given.
        kwargs: what it was given by name.
        output: what it returned, for its size.

    Returns:
        The tensors it returned, in order; the tensors it wrote to, if it returned none.

    Example:
        >>> run_exactly(torch.ops.aten.mul.Tensor, (torch.tensor(300.0).half(), 300.0), {}, None)
        [tensor(90000., dtype=torch.float64)]
    """
    given = list(tensors_in((args, dict(kwargs))))
    tensors = [*given, *tensors_in(output)]
    if (
        operator.namespace not in _NAMESPACES
        or _draws(operator, args, kwargs)
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
        or not all(map(is_allocated, tensors))
        or sum(tensor.numel() for tensor in tensors) > MAX_ELEMENTS
    ):
        return None
    # torch takes integers for numbers of its default dtype where an operator has no others.
    only_integers = not any(tensor.is_floating_point() or tensor.is_complex() for tensor in given)

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return _WIDE[leaf.is_complex] if leaf.is_floating_point or leaf.is_complex else leaf
        if not isinstance(leaf, Tensor):
            return leaf
        # Everything is copied: batch norm writes to its statistics, whatever its schema says.
        if leaf.is_floating_point() or leaf.is_complex():
            return leaf.detach().to(_WIDE[leaf.is_complex()], copy=True)
        return leaf.double() if only_integers and leaf.dtype is not torch.bool else leaf.clone()

    wide_args, wide_kwargs = tree_map(widen, (args, dict(kwargs)))
    named = arguments(operator, wide_args, wide_kwargs)
    if named.get("half_to_float"):  # a cast within the operator that only fp16 has
        wide_args = tuple(False if value is True else value for value in wide_args)
    random_state = capture_random_state(tensors[0].device if tensors else torch.device("cpu"))
    try:
        result = operator(*wide_args, **wide_kwargs)
    # A fused kernel may not take float64, and says so in its own way: the reason does without its exact result.
    except Exception as error:
        log.debug("%s does not run in float64.", operator, exc_info=error)
        return None
    finally:
        random_state.restore()
    return list(tensors_in(result)) or list(tensors_in(_written(operator, named)))


def arguments(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, with the defaults of those it was not given."""
    schema = operator._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema}
    positional = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    return {**defaults, **positional, **kwargs}


def _draws(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    named = arguments(operator, args, kwargs)
    # Attention and recurrent layers bear the tag for a dropout that is mostly off.
    return bool(named.get("dropout_p", named.get("dropout", 1.0)) != 0)


def _written(operator: Any, named: Mapping[str, Any]) -> list[Any]:
    schema = operator._schema.arguments
    return [named[argument.name] for argument in schema if argument.alias_info and argument.alias_info.is_write]
