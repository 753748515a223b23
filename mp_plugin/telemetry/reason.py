"""Why an operator made a NaN or an Inf, in plain words."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mp_plugin.numerics.finiteness import is_allocated, is_finite, readable_values
from mp_plugin.telemetry.exact import arguments, run_exactly
from mp_plugin.telemetry.operators import floating_tensors, non_finite_constant, tensors_in
from mp_plugin.telemetry.reason_rules import is_finite_number, readable, reason_by_rule

log = logging.getLogger(__name__)

FORMAT_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
UNWRITTEN = "empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize resize_as"
"""They hand out memory as it is: no arithmetic went wrong there."""
EXPONENTIALS = {"exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "sinh": torch.sinh, "cosh": torch.cosh}
ARITHMETIC = (
    "add sub rsub mul addcmul mm addmm bmm baddbmm addbmm mv addmv addr dot vdot linear convolution "
    "convolution_backward sum cumsum prod cumprod mean linalg_vector_norm native_dropout _to_copy copy pow"
)
"""With finite numbers and no rule broken, only the end of the format is left to make these go wrong."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What went wrong in one operator."""

    reason: str
    """Plain words, such as `overflow: 131,072 is beyond the largest fp16 number, 65,504`."""
    dtype: str
    """Number format of the output: fp16, bf16, fp32, fp64, else torch's name of it."""
    amax_in: float | None
    """Largest finite magnitude over all floating tensor inputs; None without one."""
    amax_out: float
    """Largest magnitude of the outputs, NaN before Inf; NaN as well if none can be read."""
    exact_amax: float | None
    """Largest magnitude in float64 of the outputs that went wrong; None if not finite, or unknown."""


def diagnose(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Diagnosis:
    """Tell why an operator made a NaN or an Inf.

    Slow, as it runs the operator once more in float64, and syncs. It changes neither its arguments nor a random
    stream, and does not raise: what it cannot explain gets a general reason.

    Args:
        operator: an `OpOverload`, as a `TorchDispatchMode` sees it.
        args: what it was given; to one that works in place, copies from before it wrote.
        kwargs: what it was given by name.
        output: what it returned; of one that returns nothing, the tensors it wrote to.

    Example:
        >>> x = torch.tensor([256.0, 512.0], dtype=torch.float16)
        >>> diagnose(torch.ops.aten.mul.Tensor, (x, x), {}, x * x).reason
        'overflow: 262,144 is beyond the largest fp16 number, 65,504'
    """
    inputs = list(floating_tensors((args, dict(kwargs))))
    outputs = list(tensors_in(output))
    spoiled = [place for place, tensor in enumerate(outputs) if is_finite(tensor) is False]
    first = outputs[spoiled[0]] if spoiled else next(floating_tensors(output), None)
    dtype = first.dtype if first is not None else torch.get_default_dtype()
    name = _or("", lambda: operator._schema.name.removeprefix("aten::").rstrip("_"))
    exact = (
        None if name in UNWRITTEN.split() else _or(None, lambda: _exact_amax(operator, args, kwargs, output, spoiled))
    )
    if exact is not None:
        reason = _beyond(exact, dtype)
    else:
        specific = _or(None, lambda: _specific(name, arguments(operator, args, kwargs)))
        reason = specific or _general(name, inputs, outputs, dtype)
    return Diagnosis(
        reason=reason,
        dtype=format_name(dtype),
        amax_in=_or(None, lambda: _finite_amax(inputs)),
        amax_out=_or(math.nan, lambda: _amax(list(floating_tensors(output)))),
        exact_amax=exact,
    )


def format_name(dtype: torch.dtype) -> str:
    """Return a dtype's name as the package writes it, such as `fp16`; torch's own for one that has none."""
    return FORMAT_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def _beyond(exact: float, dtype: torch.dtype) -> str:
    largest = torch.finfo(dtype).max
    if exact > largest:
        return f"overflow: {readable(exact)} is beyond {_largest(dtype)}"
    # A norm, whose squares are beyond it; an epsilon that is zero in fp16.
    return f"an overflow inside the operator, whose result, {readable(exact)}, would fit {format_name(dtype)}"


def _largest(dtype: torch.dtype) -> str:
    return f"the largest {format_name(dtype)} number, {readable(torch.finfo(dtype).max)}"


def _specific(name: str, named: Mapping[str, Any]) -> str | None:
    """Explain it by what this very operator cannot do."""
    if not all(map(is_allocated, tensors_in(dict(named)))):
        return None
    if name in UNWRITTEN.split():
        return "memory that nothing was written to yet"
    constant = non_finite_constant(named)
    if constant is not None:
        how = "multiplied by" if name == "mul" else "filled with" if "fill" in name or "full" in name else "given"
        return f"{how} {constant}, a constant"
    return reason_by_rule(name, named) or _power(name, named)


def _power(name: str, named: Mapping[str, Any]) -> str | None:
    """Name the number whose power or exponential is beyond float64."""
    if name in EXPONENTIALS:
        x = named["self"].double()
        culprits = x[EXPONENTIALS[name](x).isinf() & is_finite_number(x)]
        return f"overflow: {name} of {_extreme(culprits)}" if culprits.numel() else None
    if name == "pow":
        base, exponent = (torch.as_tensor(named[each]).double() for each in ("self", "exponent"))
        base, exponent = base + 0 * exponent, exponent + 0 * base
        culprits = (base**exponent).isinf() & is_finite_number(base) & is_finite_number(exponent)
        if culprits.any():
            return f"overflow: {_extreme(base[culprits])} to the power of {_extreme(exponent[culprits])}"
    return None


def _extreme(values: Tensor) -> str:
    return readable(values[values.abs().argmax()].item())


def _general(name: str, inputs: list[Tensor], outputs: list[Tensor], dtype: torch.dtype) -> str:
    if not outputs or all(is_finite(tensor) is None for tensor in outputs):
        return "unknown: the result cannot be read"
    if any(is_finite(tensor) is False for tensor in inputs):
        return "a non-finite input"
    if name in EXPONENTIALS or name in ARITHMETIC.split():
        return f"overflow: the result is beyond {_largest(dtype)}"
    return "invalid operation on finite numbers"


def _exact_amax(
    operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, spoiled: list[int]
) -> float | None:
    results = run_exactly(operator, args, kwargs, output)
    if results is None or not spoiled:
        return None
    amax = _amax([results[place] for place in spoiled])
    return amax if math.isfinite(amax) else None


def _amax(tensors: list[Tensor]) -> float:
    largest = [_magnitudes(tensor).max().item() for tensor in tensors if tensor.numel()]
    return math.nan if not largest or any(map(math.isnan, largest)) else max(largest)


def _finite_amax(tensors: list[Tensor]) -> float | None:
    finite = [values[values.isfinite()] for values in map(_magnitudes, tensors)]
    return max((values.max().item() for values in finite if values.numel()), default=None)


def _magnitudes(tensor: Tensor) -> Tensor:
    values = readable_values(tensor)
    if values is None:
        raise TypeError(f"A tensor of layout {tensor.layout} on {tensor.device} cannot be read.")
    return values.abs()


def _or(default: _Answer, answer: Callable[[], _Answer]) -> _Answer:
    # One part that does not know a kind of tensor or operator must not take the others with it.
    try:
        return answer()
    except Exception as error:
        log.debug("A part of a reason is left out.", exc_info=error)
        return default
