"""Which parameters are not finite: names, over all ranks. For incidents only, as it reads everything once more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from mp_plugin.numerics.grad_totals import grad_totals
from mp_plugin.parameter_names import plain_name
from mp_plugin.scaling.verdict import gather, gradients


@dataclass(frozen=True, slots=True)
class Blame:
    """Parameters with a number that is not finite, in themselves or in their gradients."""

    kind: str
    """`nan` if one of the numbers is a NaN, else `inf`."""
    parameters: tuple[str, ...]
    """Qualified names, in the optimizer's order."""
    rank: int
    """The first process that has one."""


def blame_gradients(optimizer: Optimizer, model: Module, *, rank: int) -> Blame:
    """Find the parameters whose gradient is not finite; all ranks together. One read, one sync.

    Args:
        optimizer: whose parameters.
        model: knows their names.
        rank: this process.
    """
    parameters = [parameter for parameter in _parameters(optimizer) if parameter.grad is not None]
    found = gather(_not_finite(parameters, gradients(optimizer), model))
    return merge(found, first_rank=rank if len(found) == 1 else 0)


def blame_marks(parameters: Sequence[Tensor], marks: Tensor | None, model: Module, *, rank: int) -> Blame:
    """Find the parameters whose gradient was not finite, by numbers that are not; all ranks together. One sync.

    Args:
        parameters: that had gradients.
        marks: a number for each; None where nobody knows.
        model: knows their names.
        rank: this process.
    """
    values = [0.0] * len(parameters) if marks is None else marks.tolist()
    found = gather(_named(parameters, values, model))
    return merge(found, first_rank=rank if len(found) == 1 else 0)


def blame_weights(optimizer: Optimizer, model: Module) -> Blame:
    """Find the parameters that are not finite themselves; all ranks together. One read, one sync."""
    parameters = _parameters(optimizer)
    return merge(gather(_not_finite(parameters, [parameter.detach() for parameter in parameters], model)))


def merge(found: list[dict[str, bool]], *, first_rank: int = 0) -> Blame:
    """Combine what each rank found: a name and whether its numbers hold a NaN.

    Example:
        >>> merge([{}, {"head.weight": False, "head.bias": True}])
        Blame(kind='nan', parameters=('head.weight', 'head.bias'), rank=1)
    """
    return Blame(
        kind="nan" if any(any(names.values()) for names in found) else "inf",
        parameters=tuple(dict.fromkeys(name for names in found for name in names)),
        rank=first_rank + next((rank for rank, names in enumerate(found) if names), 0),
    )


def _not_finite(parameters: list[Tensor], tensors: list[Tensor], model: Module) -> dict[str, bool]:
    marks = grad_totals(tensors, amax=True).marks
    return _named(parameters, [] if marks is None else marks.tolist(), model)


def _named(parameters: Sequence[Tensor], amax: list[float], model: Module) -> dict[str, bool]:
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    found = zip(parameters, amax, strict=True)
    return {names.get(id(p), "unnamed"): math.isnan(value) for p, value in found if not math.isfinite(value)}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
