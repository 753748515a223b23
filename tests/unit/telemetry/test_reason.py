import copy
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mp_plugin.telemetry.exact import MAX_ELEMENTS, run_exactly
from mp_plugin.telemetry.operators import non_finite_constant
from mp_plugin.telemetry.reason import Diagnosis, diagnose
from mp_plugin.telemetry.reason_rules import RULES, Rule, readable, reason_by_rule

INF, NAN = math.inf, math.nan
aten = torch.ops.aten


def ran(operator: Any, *args: Any, **kwargs: Any) -> Diagnosis:
    """Run an operator on copies, then diagnose it on what it was given."""
    output = operator(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    before = copy.deepcopy((args, kwargs))
    found = diagnose(operator, args, kwargs, output)
    for now, then in zip(tree_leaves((args, kwargs)), tree_leaves(before), strict=True):
        assert not isinstance(now, Tensor) or torch.equal(now.to_dense().isnan(), then.to_dense().isnan())
        assert not isinstance(now, Tensor) or torch.equal(now.to_dense().nan_to_num(), then.to_dense().nan_to_num())
    return found


def fp16(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float16)


def fp32(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def beyond(number: str) -> str:
    return f"overflow: {number} is beyond the largest fp16 number, 65,504"


# Operator and arguments; the true result as plain arithmetic; how it reads.
OVERFLOWS = {
    "mul": ((aten.mul.Tensor, fp16(512), fp16(256)), 512 * 256, "131,072"),
    "mul by a number": ((aten.mul.Tensor, fp16(512), 256.0), 512 * 256, "131,072"),
    "in place": ((aten.mul_.Tensor, fp16(-512), 256.0), 512 * 256, "131,072"),
    "mm": ((aten.mm.default, fp16([300, 300]), fp16([300], [300])), 2 * 300 * 300, "180,000"),
    "addmm": ((aten.addmm.default, fp16(1), fp16([300]), fp16([300])), 90001, "90,001"),
    "cast": ((aten._to_copy.default, torch.tensor(1e30, dtype=torch.float64)), 1e30, "1e+30"),
    "copy": ((aten.copy_.default, fp16(0), fp32(70000)), 70000, "70,000"),
    "sum": ((aten.sum.default, fp16(60000, 60000)), 120000, "120,000"),
    "sum of integers": ((aten.sum.default, torch.tensor([60000, 60000])), 120000, "120,000"),
    "exp": ((aten.exp.default, fp16(12)), math.exp(12), "162,755"),
    "exp, far": ((aten.exp.default, fp16(100)), math.exp(100), "2.69e+43"),
    "pow": ((aten.pow.Tensor_Scalar, fp16(300), 2), 90000, "90,000"),
    "number to a power": ((aten.pow.Scalar, 300, fp16(2)), 90000, "90,000"),
    "div by little": ((aten.div.Tensor, fp16(1000), fp16(0.0078125)), 128000, "128,000"),
    "reciprocal": ((aten.reciprocal.default, fp16(2.0**-20)), 2.0**20, "1,048,576"),
    "log_softmax": ((aten._log_softmax.default, fp16(65504, -65504), 0, False), 131008, "131,008"),
    "just beyond": ((aten.add.Tensor, fp16(65504), fp16(16)), 65520, "65,520"),
    "out": ((aten.mul.out, fp16(512), fp16(256)), 512 * 256, "131,072"),
}
KEYWORDS = {
    "cast": {"dtype": torch.float16},
    "sum of integers": {"dtype": torch.float16},
    "out": {"out": fp16(0)},
}


@pytest.mark.parametrize("case", OVERFLOWS)
def test_a_finite_number_beyond_fp16(case: str) -> None:
    (operator, *args), exact, reads = OVERFLOWS[case]
    found = ran(operator, *args, **KEYWORDS.get(case, {}))
    assert found.reason == beyond(reads)
    assert found.dtype == "fp16"
    assert found.exact_amax == pytest.approx(exact, rel=1e-12)
    assert found.amax_out == INF


def test_other_formats_name_their_own_largest_number() -> None:
    large = torch.tensor([3e38])
    reason = "overflow: 6e+38 is beyond the largest {} number, {}"
    assert ran(aten.mul.Tensor, large, 2.0).reason == reason.format("fp32", "3.4e+38")
    assert ran(aten.mul.Tensor, large.bfloat16(), 2.0).reason.endswith("the largest bf16 number, 3.39e+38")
    found = ran(aten._to_copy.default, large, dtype=torch.float8_e5m2)
    assert found.reason == "overflow: 3e+38 is beyond the largest float8_e5m2 number, 57,344"
    assert found.dtype == "float8_e5m2"
    found = ran(aten.mul.Tensor, torch.tensor([1e300], dtype=torch.float64), 1e300)
    assert found.reason == "overflow: the result is beyond the largest fp64 number, 1.8e+308"
    assert found.exact_amax is None


def test_numbers_beyond_the_format_on_the_way() -> None:
    found = ran(aten.logit.default, fp16(1.0), 1e-6)
    # 1 - 1e-6 is 1 in fp16; in float64 its logit is finite.
    assert found.exact_amax == pytest.approx(math.log((1 - 1e-6) / 1e-6))
    assert found.reason == "an overflow inside the operator, whose result, 13.8, would fit fp16"


def test_only_the_output_that_went_wrong_is_exact() -> None:
    mean = torch.tensor([INF], dtype=torch.float16)
    found = diagnose(aten.var_mean.correction, (fp32([3e4, 0]),), {"dim": [1], "correction": 0}, (fp32(0), mean))
    assert found.exact_amax == 1.5e4  # the variance is 2.25e8


def test_integers_are_numbers_too() -> None:
    found = ran(aten.exp.default, torch.tensor([100]))
    assert found.reason == "overflow: 2.69e+43 is beyond the largest fp32 number, 3.4e+38"
    assert found.amax_in is None


@pytest.mark.parametrize(
    ("number", "reads"), {999.4: "999", 999.7: "1,000", 1e9: "1e+09", 0.5: "0.5", -1234.5: "-1,234", INF: "inf"}.items()
)
def test_numbers_read_at_a_glance(number: float, reads: str) -> None:
    assert readable(number) == reads


INVALID = {
    "0/0": ((aten.div.Tensor, fp32(0, 1), fp32(0, 1)), "invalid: 0/0"),
    "0/0 of numbers": ((aten.div.Tensor, fp32(0), 0), "invalid: 0/0"),
    "x/0": ((aten.div.Tensor, fp32(1, 1), fp32(0, 1)), "division by zero"),
    "x/0 in place": ((aten.div_.Scalar, fp32(-1), 0), "division by zero"),
    "x/0 broadcast": ((aten.div.Tensor, torch.ones(3, 1), fp32(1, 0)), "division by zero"),
    "integers": ((aten.div.Tensor, torch.tensor([1]), torch.tensor([0])), "division by zero"),
    "a number / 0": ((aten.div.Tensor, 1.0, fp32(0)), "division by zero"),
    "both, NaN wins": ((aten.div.Tensor, fp32(1, 0), fp32(0, 0)), "invalid: 0/0"),
    "inf/inf": ((aten.div.Tensor, fp32(INF), fp32(-INF)), "invalid: inf/inf"),
    "addcdiv": ((aten.addcdiv.default, fp32(1), fp32(1), fp32(0)), "division by zero"),
    "addcdiv 0/0": ((aten.addcdiv.default, fp32(1), fp32(0), fp32(0)), "invalid: 0/0"),
    "addcdiv inf/inf": ((aten.addcdiv.default, fp32(1), fp32(INF), fp32(INF)), "invalid: inf/inf"),
    "floor_divide": ((aten.floor_divide.default, fp32(1), fp32(0)), "division by zero"),
    "floor_divide 0/0": ((aten.floor_divide.default, fp32(0), fp32(0)), "invalid: 0/0"),
    "remainder": ((aten.remainder.Tensor, fp32(1), fp32(0)), "invalid: remainder of a division by zero"),
    "reciprocal": ((aten.reciprocal.default, fp32(0)), "division by zero"),
    "sqrt": ((aten.sqrt.default, fp32(-1)), "invalid: square root of a negative number"),
    "rsqrt": ((aten.rsqrt.default, fp32(0, 4)), "division by zero: reciprocal square root of zero"),
    "rsqrt below": ((aten.rsqrt.default, fp32(0, -4)), "invalid: square root of a negative number"),
    "pow": ((aten.pow.Tensor_Scalar, fp32(-8), 1 / 3), "invalid: fractional power of a negative number"),
    "pow of tensors": ((aten.pow.Tensor_Tensor, fp32(-8), fp32(0.5)), "invalid: fractional power of a negative number"),
    "pow of zero": ((aten.pow.Tensor_Scalar, fp32(0, 2), -0.5), "division by zero: negative power of zero"),
    "log": ((aten.log.default, fp32(0, 1)), "logarithm of zero"),
    "log2 of -0": ((aten.log2.default, fp32(-0.0)), "logarithm of zero"),
    "log10 below": ((aten.log10_.default, fp32(0, -1)), "invalid: logarithm of a negative number"),
    "log1p": ((aten.log1p.default, fp32(-1)), "logarithm of zero, 1 + x with x = -1"),
    "log1p below": ((aten.log1p.default, fp32(-2)), "invalid: logarithm of a negative number, 1 + x with x below -1"),
    "logit": ((aten.logit.default, fp32(1)), "logarithm of zero: logit of 0 or 1"),
    "logit outside": ((aten.logit.default, fp32(2)), "invalid: logit of a number outside [0, 1]"),
    "xlogy": ((aten.xlogy.Tensor, fp32(0, 1), fp32(0, 0)), "logarithm of zero"),
    "xlogy below": ((aten.xlogy.Tensor, fp32(1), fp32(-1)), "invalid: logarithm of a negative number"),
    "acos": ((aten.acos.default, fp32(1.5)), "invalid: acos of a number outside [-1, 1]"),
    "asin": ((aten.asin.default, fp32(-1.5)), "invalid: asin of a number outside [-1, 1]"),
    "acosh": ((aten.acosh.default, fp32(0.5)), "invalid: acosh of a number below 1"),
    "atanh": ((aten.atanh.default, fp32(1)), "logarithm of zero: atanh of 1 or -1"),
    "atanh outside": ((aten.atanh.default, fp32(-2)), "invalid: atanh of a number outside [-1, 1]"),
    "erfinv": ((aten.erfinv.default, fp32(1)), "infinite: erfinv of 1 or -1"),
    "erfinv outside": ((aten.erfinv.default, fp32(2)), "invalid: erfinv of a number outside [-1, 1]"),
    "lgamma": ((aten.lgamma.default, fp32(-2)), "infinite: gamma of zero or a negative integer"),
    "sin": ((aten.sin.default, fp32(INF)), "invalid: an angle of inf"),
    "softmax": (
        (aten._softmax.default, fp32([0, 1], [-INF, -INF]), -1, False),
        "invalid: softmax over a row of -inf only",
    ),
    "softmax of inf": ((aten._softmax.default, fp32(0, INF), 0, False), "invalid: softmax of +inf (inf - inf)"),
    "log_softmax": ((aten._log_softmax.default, fp32(-INF), 0, False), "invalid: softmax over a row of -inf only"),
    "inf - inf": ((aten.add.Tensor, fp32(INF), fp32(-INF)), "invalid: inf - inf"),
    "sub": ((aten.sub.Tensor, fp32(INF), fp32(INF)), "invalid: inf - inf"),
    "rsub": ((aten.rsub.Tensor, fp32(-INF), fp32(-INF)), "invalid: inf - inf"),
    "0 * inf": ((aten.mul.Tensor, fp32(INF, 1), fp32(0, 1)), "invalid: 0 * inf"),
    "mask * inf": ((aten.mul.Tensor, torch.tensor([False, True]), fp32(INF, 1)), "invalid: 0 * inf"),
    "addcmul": ((aten.addcmul.default, fp32(1), fp32(0), fp32(INF)), "invalid: 0 * inf"),
    "mean": ((aten.mean.default, torch.empty(0)), "invalid: mean of no elements"),
    "mse_loss": ((aten.mse_loss.default, torch.empty(0), torch.empty(0)), "invalid: mean of no elements"),
    "binary_cross_entropy": (
        (aten.binary_cross_entropy.default, torch.empty(0), torch.empty(0)),
        "invalid: mean of no elements",
    ),
    "var": ((aten.var.correction, fp32(3)), "invalid: variance of a single element"),
    "var by dim": ((aten.var.correction, torch.ones(4, 1), [1]), "invalid: variance of a single element"),
    "std, unbiased": ((aten.std.dim, torch.ones(4, 1), [1], True), "invalid: variance of a single element"),
    "var of nothing": ((aten.var.correction, torch.empty(0)), "invalid: variance of no elements"),
    "nll_loss": (
        (aten.nll_loss_forward.default, torch.zeros(2, 3), torch.tensor([-100, -100]), None, 1, -100),
        "invalid: 0/0, the mean loss over no targets",
    ),
    "layer norm": (
        (aten.native_layer_norm.default, torch.ones(2, 4), [4], None, None, 0.0),
        "division by zero: layer norm of a constant, with eps 0",
    ),
    "group norm": (
        (aten.native_group_norm.default, torch.ones(1, 4, 2), None, None, 1, 4, 2, 2, 0.0),
        "division by zero: group norm of a constant, with eps 0",
    ),
    "batch norm": (
        (aten.native_batch_norm.default, torch.randn(4, 2), None, None, torch.zeros(2), fp32(0, 1), False, 0.1, 0.0),
        "division by zero: batch norm with a running variance of 0, with eps 0",
    ),
    "batch norm below": (
        (aten.native_batch_norm.default, torch.randn(4, 2), None, None, torch.zeros(2), fp32(-1, 1), False, 0.1, 1e-5),
        "invalid: square root of a negative number, a running variance",
    ),
    "RMS norm": (
        (aten._fused_rms_norm.default, torch.zeros(2, 4), [4], None, 0.0),
        "division by zero: RMS norm of zeros, with eps 0",
    ),
    "weight norm": (
        (aten._weight_norm_interface.default, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(2, 1)),
        "division by zero: weight norm of a row of zeros",
    ),
    "exp": ((aten.exp.default, fp32(1000, 1)), "overflow: exp of 1,000"),
    "exp2": ((aten.exp2.default, fp32(2000, 1)), "overflow: exp2 of 2,000"),
    "expm1 in place": ((aten.expm1_.default, fp32(1000, 1)), "overflow: expm1 of 1,000"),
    "sinh": ((aten.sinh.default, fp32(-1000, INF)), "overflow: sinh of -1,000"),
    "cosh": ((aten.cosh.default, fp32(-1000)), "overflow: cosh of -1,000"),
    "power": ((aten.pow.Tensor_Scalar, fp32(1000, 2), 200), "overflow: 1,000 to the power of 200"),
    "power of a number": ((aten.pow.Scalar, 10, fp32(400)), "overflow: 10 to the power of 400"),
    "constant factor": ((aten.mul.Tensor, fp32(1, 0), INF), "multiplied by inf, a constant"),
    "constant term": ((aten.add.Tensor, fp32(1), NAN), "given nan, a constant"),
    "masked_fill": (
        (aten.masked_fill.Scalar, fp32(1, 2), torch.tensor([True, False]), -INF),
        "filled with -inf, a constant",
    ),
    "full": ((aten.full.default, [2], INF), "filled with inf, a constant"),
    "fill": ((aten.fill_.Scalar, fp32(1), NAN), "filled with nan, a constant"),
    "scalar": ((aten.scalar_tensor.default, -INF), "given -inf, a constant"),
    "where": ((aten.where.ScalarOther, torch.tensor([False]), fp32(1), INF), "given inf, a constant"),
    "passed on": ((aten.add.Tensor, fp32(INF), fp32(1)), "a non-finite input"),
    "norm of order inf": ((aten.linalg_vector_norm.default, fp32(INF), INF), "a non-finite input"),
    "complex": ((aten.log.default, torch.tensor([0j])), "invalid operation on finite numbers"),
    "no rule": ((aten.digamma.default, fp32(0)), "infinite: gamma of zero or a negative integer"),
    "sparse": ((aten.mul.Tensor, fp32(1, 0).to_sparse(), fp32(INF, 1).to_sparse()), "a non-finite input"),
}


@pytest.mark.parametrize("case", INVALID)
def test_every_reason(case: str) -> None:
    (operator, *args), reason = INVALID[case]
    found = ran(operator, *args)
    assert found.reason == reason
    assert found.exact_amax is None
    assert not math.isfinite(found.amax_out)
    # What may be a NaN is called invalid, and what cannot be is not.
    if not reason.startswith(("overflow", "a ", "multiplied", "filled", "given")) and case != "complex":
        assert math.isnan(found.amax_out) == (reason.startswith("invalid") or "eps 0" in reason or "norm" in reason)


@pytest.mark.parametrize("mask", [fp32([0, 0], [-INF, -INF]), torch.tensor([[True, True], [False, False]])])
def test_attention_over_a_masked_row(mask: Tensor) -> None:
    # torch itself gives zeros for such a row, other kernels NaN.
    x, spoiled = torch.ones(1, 1, 2, 4), torch.full((1, 1, 2, 4), NAN)
    reason = "invalid: attention over a row that is masked entirely"
    # Of a kernel that cannot be run again.
    mathematical = aten._scaled_dot_product_attention_math.default
    assert diagnose(mathematical, (x, x, x, mask, 0.5), {}, (spoiled, x)).reason == reason
    efficient = aten._scaled_dot_product_efficient_attention.default
    assert diagnose(efficient, (x, x, x, mask, False), {}, (spoiled, x)).reason == reason
    assert diagnose(efficient, (x, x, x, mask[:1], False), {}, (spoiled, x)).reason != reason
    assert diagnose(efficient, (x, x, x, None, False), {}, (spoiled, x)).reason == "invalid operation on finite numbers"


def arguments_of(name: str) -> set[str]:
    packet = getattr(aten, name)
    return {each.name for overload in packet.overloads() for each in getattr(packet, overload)._schema.arguments}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.operators.split()[0]}: {rule.reason}")
def test_a_rule_names_operators_and_arguments_that_exist(rule: Rule) -> None:
    of_some_only = {"training", "alpha", "dim", "unbiased", "correction"}
    for name in rule.operators.split():
        assert set(rule.operands.split()) - of_some_only <= arguments_of(name)


def test_amax_of_the_inputs_leaves_out_what_is_not_finite() -> None:
    assert ran(aten.add.Tensor, fp32(-7, INF, NAN), fp32(3, 0, 0)).amax_in == 7
    assert ran(aten.add.Tensor, fp32(INF), fp32(NAN)).amax_in is None
    assert ran(aten.full.default, [1], INF).amax_in is None
    assert ran(aten.div.Tensor, torch.tensor([9]), torch.tensor([0])).amax_in is None
    assert ran(aten.cat.default, [fp32(1, -8), fp16(INF)]).amax_in == 8
    assert math.isnan(ran(aten.cat.default, [fp32(1, NAN), fp32(INF)]).amax_out)


def test_rules_that_depend_on_a_mode() -> None:
    ignored = {"target": torch.tensor([-100]), "ignore_index": -100}
    assert reason_by_rule("nll_loss_forward", {**ignored, "reduction": 1})
    assert reason_by_rule("nll_loss_forward", {**ignored, "reduction": 0}) is None
    for variance in (-1.0, 0.0):
        statistics = {"running_var": fp32(variance), "eps": 0.0}
        assert reason_by_rule("native_batch_norm", {**statistics, "training": False})
        assert reason_by_rule("native_batch_norm", {**statistics, "training": True}) is None


def test_memory_nobody_wrote_to_is_no_overflow() -> None:
    x = fp16(1.0)
    found = diagnose(aten.empty_like.default, (x,), {}, torch.tensor([INF], dtype=torch.float16))
    assert found.reason == "memory that nothing was written to yet"


@pytest.fixture
def random_streams() -> Iterator[None]:
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state())
    yield
    assert before[0] == random.getstate()
    assert before[1] == str(np.random.get_state())
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.usefixtures("random_streams")
def test_random_operators_are_not_run_again() -> None:
    x = fp16(60000)
    dropped = torch.tensor([INF], dtype=torch.float16)
    found = diagnose(aten.native_dropout.default, (x, 0.5, True), {}, (dropped, torch.tensor([True])))
    assert found.exact_amax is None
    assert found.reason == "overflow: the result is beyond the largest fp16 number, 65,504"
    assert run_exactly(aten.bernoulli.p, (x, 0.5), {}, x) is None


@pytest.mark.usefixtures("random_streams")
def test_an_operator_that_draws_and_does_not_say_so_leaves_the_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mp_plugin.telemetry.exact._draws", lambda *_: False)
    assert run_exactly(aten.bernoulli.p, (fp16(1), 0.5), {}, None) is not None


def test_a_custom_operator_is_not_run_again() -> None:
    calls = []

    @torch.library.custom_op("mp_plugin_tests::halved", mutates_args=())
    def halved(x: Tensor) -> Tensor:
        calls.append(x.dtype)
        return x / 2

    x = fp16(1)
    found = diagnose(torch.ops.mp_plugin_tests.halved.default, (x,), {}, fp16(INF))
    assert calls == []
    assert found.reason == "invalid operation on finite numbers"
    assert found.amax_in == 1


@pytest.mark.usefixtures("random_streams")
def test_attention_runs_again_unless_it_drops_out() -> None:
    query = torch.full((1, 1, 2, 4), 1.0)
    operator = aten._scaled_dot_product_flash_attention_for_cpu.default
    (attended, _) = run_exactly(operator, (query, query, query), {}, None) or [None, None]
    assert attended is not None
    torch.testing.assert_close(attended, query.double())
    assert run_exactly(operator, (query, query, query, 0.5), {}, None) is None


def test_statistics_that_batch_norm_updates_stay() -> None:
    x = torch.tensor([[60000.0], [-60000.0]], dtype=torch.float16)
    mean, variance = torch.zeros(1), torch.ones(1)
    assert run_exactly(aten.native_batch_norm.default, (x, None, None, mean, variance, True, 0.1, 1e-5), {}, None)
    assert (mean.item(), variance.item()) == (0, 1)


def test_what_is_written_in_place_is_a_copy() -> None:
    double, values, places = torch.ones(2, dtype=torch.float64), torch.zeros(()), torch.tensor(7)
    assert run_exactly(aten.mul_.Tensor, (double, 2.0), {}, None)
    assert run_exactly(aten.max.dim_max, (fp32(1, 2), 0), {"max": values, "max_values": places}, None)
    assert (double.tolist(), values.item(), places.item()) == ([1, 1], 0, 7)


def test_what_an_operator_wrote_to_is_its_result() -> None:
    group = [fp16(300), fp16(2)]
    (first, second) = run_exactly(aten._foreach_mul_.Scalar, (group, 300.0), {}, None) or [None, None]
    assert first is not None
    assert second is not None
    assert (first.item(), second.item()) == (90000.0, 600.0)
    assert group[0].item() == 300


def test_what_is_too_large_is_not_run_again() -> None:
    x = torch.ones(1).expand(MAX_ELEMENTS)
    assert run_exactly(aten.neg.default, (x[:-1],), {}, x[:2]) is None
    assert run_exactly(aten.neg.default, (x[:2],), {}, x[:2]) is not None


def test_a_softmax_that_also_casts_is_run_without_the_cast() -> None:
    (found,) = run_exactly(aten._softmax.default, (fp16(0, 0), 0, True), {}, None) or [None]
    assert found is not None
    assert (found.dtype, found.tolist()) == (torch.float64, [0.5, 0.5])


@pytest.mark.parametrize("operator", [torch.ops.aten.mul.Tensor, torch.ops.aten.pow.Tensor_Tensor])
def test_memory_that_was_given_back_is_not_read(operator: Any) -> None:
    there, freed, output = torch.ones(2), torch.ones(2), torch.full((2,), INF)
    freed.untyped_storage().resize_(0)
    found = diagnose(operator, (there, freed), {}, output)
    assert (found.exact_amax, found.amax_in, found.amax_out, found.dtype) == (None, None, INF, "fp32")
    reason = diagnose(operator, (there, there), {}, freed).reason
    assert reason == "unknown: the result cannot be read"


def test_a_subclass_is_not_run_again() -> None:
    class Distributed(Tensor):
        """One whose operators may talk to other ranks."""

    assert run_exactly(aten.neg.default, (torch.ones(1).as_subclass(Distributed),), {}, None) is None


class Odd:
    """No operator at all."""


@pytest.mark.parametrize(
    ("operator", "args", "output"),
    [
        (Odd(), (Odd(), [None, {"x": fp32(1)}]), (fp32(INF), None)),
        (aten.log.default, (), fp32(INF)),
        (aten.log.default, (None,), fp32(NAN)),
        (aten.add.Tensor, (torch.eye(2).to_sparse(), torch.eye(2)), torch.tensor([[NAN]]).to_sparse()),
        (aten.mul.Tensor, (torch.ones(2, device="meta"), 2.0), torch.ones(2, device="meta")),
        (aten.mul.Tensor, (fp32(1).to(torch.float8_e4m3fn), 2.0), fp32(NAN).to(torch.float8_e4m3fn)),
        (aten.mul.Tensor, (torch.tensor([1e38j]), 1e38), torch.tensor([complex(0, INF)])),
        (aten.linalg_inv_ex.default, (torch.ones(2, 3),), fp32(INF)),
        (aten.log.default, (fp32(0),), None),
        (aten.log.default, (fp32(0),), [None, torch.tensor([1])]),
    ],
)
def test_exotic_input_gets_a_general_reason(operator: Any, args: tuple[Any, ...], output: Any) -> None:
    assert isinstance(diagnose(operator, args, {}, output).reason, str)


def test_nested_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.tensor([INF])])
    found = diagnose(aten.log.default, (nested,), {}, nested)
    assert found.reason == "unknown: the result cannot be read"
    assert math.isnan(found.amax_out)


def test_constants_that_bound_a_range_are_not_meant() -> None:
    assert non_finite_constant({"self": fp32(INF), "min": -INF, "ord": INF, "dim": [1]}) is None
    assert non_finite_constant({"self": fp32(1), "other": INF}) == INF


def test_within_a_dispatch_mode_in_both_passes() -> None:
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = function(*args, **(kwargs or {}))
            with torch.no_grad():
                if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                    found.append((str(function), diagnose(function, args, kwargs or {}, output).reason))
            return output

    x = torch.tensor([0.0, 4.0], requires_grad=True)
    y = torch.tensor([256.0], dtype=torch.float16, requires_grad=True)
    with Watch():
        x.sqrt().sum().backward()
        (y * 256.0).sum()
        (1 / (x - x)).sum()
        torch.softmax(x.masked_fill(x < 9, -INF), dim=0)
    assert found[0] == ("aten.div.Tensor", "division by zero")
    assert ("aten.mul.Tensor", beyond("65,536")) in found
    assert ("aten.reciprocal.default", "division by zero") in found
    assert ("aten._softmax.default", "invalid: softmax over a row of -inf only") in found
