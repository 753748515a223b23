"""What the trace has to know about an operator of torch: which arguments it writes to, and which do not count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

BLANK = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_", "set_"}
    | {"resize_as_", "resize"}
)
"""Operators whose output holds whatever was in memory before."""

OVERWRITING = frozenset(
    {"copy_", "fill_", "zero_", "uniform_", "normal_", "bernoulli_", "exponential_", "random_", "log_normal_"}
    | {"cauchy_", "geometric_", "_foreach_copy_", "_foreach_zero_"}
)
"""Operators that look at nothing of what they write to."""

COLLECTIVES = frozenset({"c10d", "_c10d_functional", "c10d_functional", "fsdp", "symm_mem"})
"""Namespaces of operators that bring numbers of other ranks."""

MASKED = frozenset({"_softmax", "_log_softmax", "_safe_softmax", "logsumexp", "softmax", "log_softmax"})
"""Operators to which -Inf means: not this one. Attention is told by its name."""

ARITHMETIC = frozenset({"mul", "div", "pow", "add", "sub", "mul_", "div_", "pow_", "add_", "sub_"})
"""Operators that nobody masks with: a constant of -Inf among their numbers is a mistake."""


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """How an operator treats its arguments."""

    name: str
    """As torch prints it, such as `aten.mul.Tensor`."""
    is_blank: bool
    is_collective: bool
    takes_masks: bool
    """Whether -Inf among its inputs is a mask rather than an accident."""
    is_arithmetic: bool
    arguments: tuple[str, ...]
    """Names by position."""
    written: frozenset[str]
    """Names of the arguments that it writes to."""
    overwritten: frozenset[str]
    """Those of them whose old values do not count."""


@cache
def operator_info(operator: Any) -> OperatorInfo:
    """Read an operator's schema; once per operator.

    Example:
        >>> import torch
        >>> operator_info(torch.ops.aten.add_.Tensor).written
        frozenset({'self'})
        >>> operator_info(torch.ops.aten.add.out).overwritten
        frozenset({'out'})
    """
    packet = getattr(operator, "overloadpacket", operator)
    base = str(getattr(packet, "__name__", packet))
    schema = getattr(operator, "_schema", None)  # higher-order operators have none
    arguments = () if schema is None else tuple(schema.arguments)
    written = frozenset(each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write)
    outputs = frozenset(each.name for each in arguments if getattr(each, "is_out", False))
    return OperatorInfo(
        name=str(operator),
        is_blank=base in BLANK,
        is_collective=getattr(operator, "namespace", "") in COLLECTIVES,
        takes_masks=base in MASKED or "attention" in base,
        is_arithmetic=base in ARITHMETIC,
        arguments=tuple(each.name for each in arguments),
        written=written,
        overwritten=written if base in OVERWRITING else written & outputs,
    )


def named_arguments(info: OperatorInfo, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    names = (*info.arguments, *(f"argument {place}" for place in range(len(info.arguments), len(args))))
    return {**dict(zip(names, args, strict=False)), **kwargs}


def inputs_that_count(info: OperatorInfo, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the result depends on.

    Batch normalisation in training writes to its running statistics and does not read them; not every backend's schema
    says so.
    """
    ignored = info.overwritten
    if arguments.get("training") or arguments.get("train"):
        ignored = ignored | {"running_mean", "running_var"}
    return {name: value for name, value in arguments.items() if name not in ignored}


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point and complex tensors in an argument or a result: itself, or those in lists and tuples."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from floating_tensors(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from floating_tensors(each)


def non_finite_constant(value: Any) -> bool:
    """Whether a Python number among the arguments is NaN or Inf: a mask that somebody meant, or a mistake."""
    if isinstance(value, float):
        return value - value != 0
    return isinstance(value, list | tuple) and any(non_finite_constant(each) for each in value)
