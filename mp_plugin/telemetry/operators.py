"""What the trace has to know about an operator of torch: what it reads and writes, and how numbers get through it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

BLANK = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_", "set_"}
    | {"resize_as_", "resize", "resize_as", "empty_quantized", "_efficientzerotensor"}
)
"""Operators whose output holds whatever was in memory before, or that cannot be read."""

OVERWRITING = frozenset(
    {"copy_", "fill_", "zero_", "uniform_", "normal_", "bernoulli_", "exponential_", "random_", "log_normal_"}
    | {"cauchy_", "geometric_", "_foreach_copy_", "_foreach_zero_", "_fill_mem_eff_dropout_mask_"}
)
"""Operators that look at nothing of what they write to."""

LIKE = frozenset({"full_like", "new_full", "fill", "copy"})
"""Operators that look at the shape of `self` alone."""

COLLECTIVES = frozenset({"c10d", "_c10d_functional", "c10d_functional", "fsdp", "symm_mem"})
"""Namespaces of operators that bring numbers of other ranks."""

MASKED = frozenset({"_softmax", "_log_softmax", "_safe_softmax", "logsumexp", "softmax", "log_softmax"})
"""Operators to which -Inf means: not this one. Attention is told by its name."""

CHOOSING = frozenset(
    {"_to_copy", "copy", "copy_", "clone", "fill", "fill_", "masked_fill", "masked_fill_", "where", "relu", "relu_"}
    | {"maximum", "minimum", "fmax", "fmin", "clamp", "clamp_", "clamp_min", "clamp_max"}
)
"""Operators that pick, for each element of the output, one of the inputs' at its place, and leave it as it is."""

SELECTING = frozenset(
    {"cat", "stack", "index", "index_put", "index_put_", "_index_put_impl_", "index_select", "index_fill"}
    | {"index_fill_", "index_copy", "index_copy_", "gather", "scatter", "scatter_", "masked_select", "take"}
    | {"masked_scatter", "masked_scatter_", "embedding", "constant_pad_nd", "roll", "flip", "repeat", "triu", "tril"}
    | {"triu_", "tril_", "_unsafe_view", "select_scatter", "slice_scatter", "diagonal_scatter"}
    | {"amax", "amin", "max", "min", "aminmax", "topk", "sort", "cummax", "cummin", "kthvalue", "median"}
    | {"max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"}
)
"""Operators that pick some of their inputs' numbers and leave them as they are."""

ADDING = frozenset({"addmm", "baddbmm", "addbmm", "addmv", "addmm_", "baddbmm_", "addbmm_", "addmv_"})
"""Operators that add `self`, which may be a mask, to a product."""

CONSTANT = "lift_fresh"
"""The operator that takes in a tensor which Python has made of numbers."""

FILLING = frozenset(
    {"full", "full_like", "new_full", "fill", "fill_", "masked_fill", "masked_fill_", "scalar_tensor", "index_fill"}
    | {CONSTANT}
    | {"index_fill_", "constant_pad_nd", "scatter", "scatter_", "fill_diagonal_", "where"}
)
"""Operators that put a constant where they are told to: an Inf among their numbers is a mask that somebody meant."""

BATCH_STATISTICS = frozenset(
    {"_batch_norm_with_update", "cudnn_batch_norm_backward", "miopen_batch_norm_backward", "batch_norm_update_stats"}
    | {"batch_norm_gather_stats", "batch_norm_gather_stats_with_counts", "_batch_norm_with_update_functional"}
)
"""Batch normalisations for training alone, which do not say so by an argument."""


BOUNDS = frozenset({"ord", "p", "norm_type", "min", "max", "min_val", "max_val"})
"""Arguments for which Inf is an ordinary value."""


class Flow(Enum):
    """How the numbers of an output depend on those of the inputs."""

    by_element = "each on those at its own place"
    chosen = "each is one of those at its own place"
    selected = "each is one of them"
    masked = "on those that are not masked"
    added = "each on that of `self` at its own place, and on many others"
    mixed = "each on many"


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """How an operator treats its arguments."""

    name: str
    """As torch prints it, such as `aten.mul.Tensor`."""
    base: str
    """Without namespace and overload."""
    is_watched: bool
    """Whether numbers may appear in its output: in a view, and in memory that nobody wrote to, they do not."""
    is_collective: bool
    is_filling: bool
    flow: Flow
    arguments: tuple[str, ...]
    """Names by position."""
    written: frozenset[str]
    """Names of the arguments that it writes to."""
    rewritten: frozenset[str]
    """Those of them whose old values count."""


@cache
def operator_info(operator: Any) -> OperatorInfo:
    """Read an operator's schema; once per operator.

    Example:
        >>> operator_info(torch.ops.aten.add_.Tensor).rewritten
        frozenset({'self'})
        >>> operator_info(torch.ops.aten.add.out).rewritten
        frozenset()
    """
    packet = getattr(operator, "overloadpacket", operator)
    base = str(getattr(packet, "__name__", packet))
    schema = getattr(operator, "_schema", None)  # higher-order operators have none
    arguments = () if schema is None else tuple(schema.arguments)
    returns = () if schema is None else tuple(schema.returns)
    written = frozenset(each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write)
    outputs = frozenset(each.name for each in arguments if getattr(each, "is_out", False))
    is_view = not written and any(each.alias_info is not None for each in returns)
    is_collective = getattr(operator, "namespace", "") in COLLECTIVES
    return OperatorInfo(
        name=str(operator),
        base=base,
        is_watched=base not in BLANK and (not is_view or base == CONSTANT),
        is_collective=is_collective,
        is_filling=base in FILLING,
        flow=_flow(operator, base),
        arguments=tuple(each.name for each in arguments),
        written=written,
        rewritten=frozenset() if is_collective or base in OVERWRITING else written - outputs,
    )


def _flow(operator: Any, base: str) -> Flow:
    if base in MASKED or "attention" in base:
        return Flow.masked
    if base in ADDING:
        return Flow.added
    if base in SELECTING:
        return Flow.selected
    if base in CHOOSING:
        return Flow.chosen
    return Flow.by_element if torch.Tag.pointwise in getattr(operator, "tags", ()) else Flow.mixed


def named_arguments(info: OperatorInfo, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    names = (*info.arguments, *(f"argument {place}" for place in range(len(info.arguments), len(args))))
    return {**dict(zip(names, args, strict=False)), **kwargs}


def inputs_that_count(info: OperatorInfo, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the result depends on.

    Batch normalisation in training writes to its running statistics and does not read them; not every backend's schema
    says so.
    """
    ignored = info.written - info.rewritten
    if uses_batch_statistics(info, arguments):
        ignored = ignored | {"running_mean", "running_var"}
    if info.base in LIKE:
        ignored = ignored | {"self"}
    return {name: value for name, value in arguments.items() if name not in ignored}


def uses_batch_statistics(info: OperatorInfo, arguments: Mapping[str, Any]) -> bool:
    """Whether it is a batch normalisation in training, to which running statistics are nothing but an output."""
    return info.base in BATCH_STATISTICS or any(arguments.get(name) for name in ("training", "train", "update"))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an argument or a result: itself, or those in lists, tuples and dicts, nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point and complex ones of the tensors in an argument or a result."""
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point() or tensor.is_complex())


def non_finite_constant(arguments: Mapping[str, Any]) -> float | None:
    """Return the NaN or Inf among an operator's Python numbers: a mask that somebody meant, or a mistake.

    Args:
        arguments: by name; bounds and orders may be infinite, and do not count.

    Example:
        >>> non_finite_constant({"mask": True, "value": float("-inf")})
        -inf
    """
    numbers = (leaf for name, value in arguments.items() if name not in BOUNDS for leaf in tree_leaves(value))
    return next((each for each in numbers if isinstance(each, float) and not math.isfinite(each)), None)
