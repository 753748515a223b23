"""What each operator cannot do with which numbers, as a table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mp_plugin.numerics.finiteness import readable_values

INF = math.inf


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which operators make a NaN or an Inf; the first rule that holds is the reason."""

    operators: str
    """Names in aten without the trailing underscore of the variant that works in place, parted by spaces."""
    operands: str
    """The arguments that `holds` looks at, by their names in the schema; a missing one is None."""
    holds: Callable[..., Any]
    """Whether it happened: a bool or a mask. Operands are tensors or Python numbers."""
    reason: str
    """Plain words."""


def reason_by_rule(operator: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the reason of the first rule that holds for an operator's arguments; None if none does.

    Args:
        operator: name in aten, without the trailing underscore.
        arguments: by their names in the schema.

    Example:
        >>> reason_by_rule("log", {"self": torch.tensor([0.0, 1.0])})
        'logarithm of zero'
    """
    for rule in RULES:
        if operator not in rule.operators.split():
            continue
        operands = [_numbers(arguments.get(name)) for name in rule.operands.split()]
        found = rule.holds(*operands)
        if bool(found.any() if isinstance(found, Tensor) else found):
            return rule.reason
    return None


def readable(number: float) -> str:
    """Write a number so that one reads its size at a glance.

    Example:
        >>> readable(131072.0), readable(3.4028234663852886e38), readable(18.42)
        ('131,072', '3.4e+38', '18.4')
    """
    return f"{number:,.0f}" if 999.5 <= abs(number) < 1e9 else f"{number:.3g}"


def is_finite_number(x: Any) -> Any:
    """Elementwise, also of a Python number; false for a NaN."""
    return (x > -INF) & (x < INF)


def _numbers(operand: Any) -> Any:
    if not isinstance(operand, Tensor):
        return operand
    if operand.is_complex():
        raise TypeError("The rules are about real numbers.")
    return readable_values(operand) if operand.is_floating_point() else operand


def _is_infinite(x: Any) -> Any:
    return (x == INF) | (x == -INF)


def _is_whole(x: Any) -> Any:
    return x % 1 == 0


def _zero_by_zero(a: Any, b: Any) -> Any:
    return (a == 0) & (b == 0)


def _by_zero(a: Any, b: Any) -> Any:
    return (a != 0) & is_finite_number(a) & (b == 0)


def _inf_by_inf(a: Any, b: Any) -> Any:
    return _is_infinite(a) & _is_infinite(b)


def _zero_times_inf(a: Any, b: Any) -> Any:
    return ((a == 0) & _is_infinite(b)) | (_is_infinite(a) & (b == 0))


def _opposite_infs(a: Any, b: Any, alpha: Any, sign: int = 1) -> Any:
    # Of the sum a + sign * alpha * b.
    towards = 1 if alpha * sign > 0 else -1
    return ((a == INF) & (b == -INF * towards)) | ((a == -INF) & (b == INF * towards))


def _fractional_power_of_negative(base: Any, exponent: Any) -> Any:
    return (base < 0) & is_finite_number(base) & ~torch.as_tensor(_is_whole(exponent))


def _row_of(x: Tensor, dim: Any, extreme: float) -> Any:
    return x.amax(dim=dim) == extreme


def _masked_row(mask: Tensor | None) -> Any:
    if mask is None:
        return False
    return ~mask.any(dim=-1) if mask.dtype is torch.bool else mask.amax(dim=-1) == -INF


def _too_few(x: Tensor, dim: Any, unbiased: Any, correction: Any) -> Any:
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return math.prod(x.shape[each] for each in dims) <= correction


def _is_constant(rows: Tensor) -> Any:
    return rows.amax(dim=1) == rows.amin(dim=1)


def _constant_sample(x: Tensor, shape: Any, eps: Any) -> Any:
    return eps == 0 and _is_constant(x.reshape(-1, math.prod(shape)))


def _zero_sample(x: Tensor, shape: Any, eps: Any) -> Any:
    return eps == 0 and (x.reshape(-1, math.prod(shape)) == 0).all(dim=1)


def _constant_group(x: Tensor, samples: Any, groups: Any, eps: Any) -> Any:
    return eps == 0 and _is_constant(x.reshape(samples * groups, -1))


def _zero_variance(variance: Any, training: Any, eps: Any) -> Any:
    # Of the statistics only: torch itself takes care of a batch with variance 0.
    return not training and variance + eps == 0


def _negative_variance(variance: Any, training: Any, eps: Any) -> Any:
    return not training and variance + eps < 0


def _zero_vector(v: Tensor, dim: Any) -> Any:
    return (v.transpose(0, dim).flatten(1) == 0).all(dim=1)


def _is_empty(x: Tensor) -> bool:
    return x.numel() == 0


# What makes a NaN stands before what makes an Inf, as NaN wins in the output.
RULES = (
    Rule("div true_divide", "self other", _zero_by_zero, "invalid: 0/0"),
    Rule("div true_divide", "self other", _inf_by_inf, "invalid: inf/inf"),
    Rule("div true_divide", "self other", _by_zero, "division by zero"),
    Rule("addcdiv", "tensor1 tensor2", _zero_by_zero, "invalid: 0/0"),
    Rule("addcdiv", "tensor1 tensor2", _inf_by_inf, "invalid: inf/inf"),
    Rule("addcdiv", "tensor1 tensor2", _by_zero, "division by zero"),
    Rule("floor_divide", "self other", _zero_by_zero, "invalid: 0/0"),
    Rule("floor_divide", "self other", _by_zero, "division by zero"),
    Rule("fmod remainder", "self other", lambda a, b: b == 0, "invalid: remainder of a division by zero"),
    Rule("reciprocal", "self", lambda x: x == 0, "division by zero"),
    Rule("sqrt rsqrt", "self", lambda x: x < 0, "invalid: square root of a negative number"),
    Rule("rsqrt", "self", lambda x: x == 0, "division by zero: reciprocal square root of zero"),
    Rule("pow", "self exponent", _fractional_power_of_negative, "invalid: fractional power of a negative number"),
    Rule("pow", "self exponent", lambda x, y: (x == 0) & (y < 0), "division by zero: negative power of zero"),
    Rule("log log2 log10", "self", lambda x: x < 0, "invalid: logarithm of a negative number"),
    Rule("log log2 log10", "self", lambda x: x == 0, "logarithm of zero"),
    Rule("log1p", "self", lambda x: x < -1, "invalid: logarithm of a negative number, 1 + x with x below -1"),
    Rule("log1p", "self", lambda x: x == -1, "logarithm of zero, 1 + x with x = -1"),
    Rule("logit", "self", lambda x: (x < 0) | (x > 1), "invalid: logit of a number outside [0, 1]"),
    Rule("logit", "self", lambda x: (x == 0) | (x == 1), "logarithm of zero: logit of 0 or 1"),
    Rule("xlogy", "self other", lambda x, y: (x != 0) & (y < 0), "invalid: logarithm of a negative number"),
    Rule("xlogy", "self other", lambda x, y: (x != 0) & (y == 0), "logarithm of zero"),
    Rule("acos", "self", lambda x: abs(x) > 1, "invalid: acos of a number outside [-1, 1]"),
    Rule("asin", "self", lambda x: abs(x) > 1, "invalid: asin of a number outside [-1, 1]"),
    Rule("acosh", "self", lambda x: x < 1, "invalid: acosh of a number below 1"),
    Rule("atanh", "self", lambda x: abs(x) > 1, "invalid: atanh of a number outside [-1, 1]"),
    Rule("atanh", "self", lambda x: abs(x) == 1, "logarithm of zero: atanh of 1 or -1"),
    Rule("erfinv", "self", lambda x: abs(x) > 1, "invalid: erfinv of a number outside [-1, 1]"),
    Rule("erfinv", "self", lambda x: abs(x) == 1, "infinite: erfinv of 1 or -1"),
    Rule("lgamma digamma", "self", lambda x: (x <= 0) & _is_whole(x), "infinite: gamma of zero or a negative integer"),
    Rule("sin cos tan", "self", _is_infinite, "invalid: an angle of inf"),
    Rule(
        "_softmax softmax _log_softmax log_softmax",
        "self dim",
        lambda x, dim: _row_of(x, dim, -INF),
        "invalid: softmax over a row of -inf only",
    ),
    Rule(
        "_softmax softmax _safe_softmax _log_softmax log_softmax",
        "self dim",
        lambda x, dim: _row_of(x, dim, INF),
        "invalid: softmax of +inf (inf - inf)",
    ),
    Rule(
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_flash_attention_for_cpu_backward",
        "attn_mask",
        _masked_row,
        "invalid: attention over a row that is masked entirely",
    ),
    Rule(
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_efficient_attention_backward",
        "attn_bias",
        _masked_row,
        "invalid: attention over a row that is masked entirely",
    ),
    Rule("mul", "self other", _zero_times_inf, "invalid: 0 * inf"),
    Rule("addcmul", "tensor1 tensor2", _zero_times_inf, "invalid: 0 * inf"),
    Rule("add", "self other alpha", _opposite_infs, "invalid: inf - inf"),
    Rule("sub rsub", "self other alpha", lambda a, b, c: _opposite_infs(a, b, c, -1), "invalid: inf - inf"),
    Rule("mean mse_loss smooth_l1_loss huber_loss", "self", _is_empty, "invalid: mean of no elements"),
    Rule("binary_cross_entropy soft_margin_loss", "self", _is_empty, "invalid: mean of no elements"),
    Rule("var std var_mean std_mean", "self", _is_empty, "invalid: variance of no elements"),
    Rule(
        "var std var_mean std_mean", "self dim unbiased correction", _too_few, "invalid: variance of a single element"
    ),
    Rule(
        "nll_loss_forward nll_loss2d_forward nll_loss nll_loss2d",
        "target reduction ignore_index",
        lambda target, reduction, ignored: reduction == 1 and (target == ignored).all(),
        "invalid: 0/0, the mean loss over no targets",
    ),
    Rule(
        "native_layer_norm",
        "input normalized_shape eps",
        _constant_sample,
        "division by zero: layer norm of a constant, with eps 0",
    ),
    Rule(
        "_fused_rms_norm rms_norm",
        "input normalized_shape eps",
        _zero_sample,
        "division by zero: RMS norm of zeros, with eps 0",
    ),
    Rule(
        "native_group_norm",
        "input N group eps",
        _constant_group,
        "division by zero: group norm of a constant, with eps 0",
    ),
    Rule(
        "native_batch_norm _native_batch_norm_legit_no_training _batch_norm_no_update",
        "running_var training eps",
        _negative_variance,
        "invalid: square root of a negative number, a running variance",
    ),
    Rule(
        "native_batch_norm _native_batch_norm_legit_no_training _batch_norm_no_update",
        "running_var training eps",
        _zero_variance,
        "division by zero: batch norm with a running variance of 0, with eps 0",
    ),
    Rule("_weight_norm_interface", "v dim", _zero_vector, "division by zero: weight norm of a row of zeros"),
)
