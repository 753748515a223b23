import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_plugin.numerics.finiteness import is_finite
from mp_plugin.telemetry import operators
from mp_plugin.telemetry.operators import (
    Flow,
    floating_tensors,
    inputs_that_count,
    named_arguments,
    non_finite_constant,
    operator_info,
)

aten = torch.ops.aten
NAN, INF = math.nan, math.inf


def overloads(base: str) -> list[Any]:
    packet = getattr(aten, base)
    return [getattr(packet, name) for name in packet.overloads()]


def everything() -> list[Any]:
    """Every overload of aten."""
    names = {str(name).partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    return [each for name in sorted(names) for each in overloads(name.removeprefix("aten::"))]


LISTS = ("BLANK", "OVERWRITING", "LIKE", "MASKED", "CHOOSING", "SELECTING", "ADDING", "FILLING", "BATCH_STATISTICS")


@pytest.mark.parametrize("name", LISTS)
def test_every_operator_in_the_lists_exists(name: str) -> None:
    missing = {base for base in getattr(operators, name) if not hasattr(aten, base)}
    assert missing == set()


def test_every_filler_that_draws_numbers_is_known() -> None:
    """What draws in place and takes no tensor but the one that it fills looks at nothing of it."""
    fillers = {
        info.base
        for operator in everything()
        if torch.Tag.nondeterministic_seeded in operator.tags and (info := operator_info(operator)).written == {"self"}
        if sum("Tensor" in str(argument.type) for argument in operator._schema.arguments) == 1
        if info.base.endswith("_")
    }
    assert "uniform_" in fillers
    read = {"rrelu_", "dropout_", "alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_"}
    assert fillers - read <= operators.OVERWRITING


def test_every_operator_that_hands_out_memory_as_it_is_is_known() -> None:
    """They bear no tag, but a name."""
    blank = {info.base for each in everything() if "empty" in (info := operator_info(each)).base}
    takes_samples = {"_empty_affine_quantized", "_empty_per_channel_affine_quantized", "empty_quantized"}
    assert blank - takes_samples - {"_nested_compute_contiguous_strides_offsets"} <= operators.BLANK


OVERWRITTEN = {
    "copy_": (torch.ones(3),),
    "fill_": (1.0,),
    "zero_": (),
    "uniform_": (),
    "normal_": (),
    "bernoulli_": (0.5,),
    "exponential_": (),
    "random_": (),
    "log_normal_": (),
    "cauchy_": (),
    "geometric_": (0.5,),
}


@pytest.mark.parametrize("name", sorted(operators.OVERWRITING - {"_fill_mem_eff_dropout_mask_"}))  # has no CPU kernel
def test_what_overwrites_looks_at_nothing_of_it(name: str) -> None:
    spoiled = torch.full((3,), NAN)
    if name.startswith("_foreach"):
        getattr(torch, name)([spoiled], *([[torch.ones(3)]] if "copy" in name else []))
    else:
        getattr(aten, name)(spoiled, *OVERWRITTEN[name])
    assert is_finite(spoiled)
    assert all(not operator_info(each).rewritten for each in overloads(name) if each._schema.name.startswith("aten::"))


def test_what_a_schema_says_is_written() -> None:
    assert operator_info(aten.add.Tensor).written == frozenset()
    assert operator_info(aten.add_.Tensor).rewritten == {"self"}
    assert operator_info(aten._foreach_add_.List).rewritten == {"self"}
    assert (operator_info(aten.add.out).written, operator_info(aten.add.out).rewritten) == ({"out"}, frozenset())
    assert operator_info(aten.index_put_.default).rewritten == {"self"}


def test_a_view_is_not_watched() -> None:
    views = "view t transpose.int select.int slice.Tensor expand detach unbind.int split.Tensor as_strided alias"
    for name in [*views.split(), "view_as_real", "diagonal", "unsqueeze", "permute"]:
        base, _, overload = name.partition(".")
        assert not operator_info(getattr(getattr(aten, base), overload or "default")).is_watched, name
    for operator in (aten.mul_.Tensor, aten.clone.default, aten._to_copy.default, aten.add.out, aten.fill_.Scalar):
        assert operator_info(operator).is_watched


def test_an_operator_without_schema_is_watched() -> None:
    info = operator_info(torch.ops.higher_order.flex_attention)
    assert (info.is_watched, info.arguments, info.flow) == (True, (), Flow.masked)


SELECTED = {
    "cat": lambda x: torch.cat([x, x]),
    "stack": lambda x: torch.stack([x, x]),
    "index": lambda x: x[torch.tensor([0, 1])],
    "index_select": lambda x: x.index_select(0, torch.tensor([1])),
    "gather": lambda x: x.gather(0, torch.tensor([2])),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1),
    "repeat": lambda x: x.repeat(2),
    "amax": lambda x: x.amax(0),
    "topk": lambda x: x.topk(2).values,
    "sort": lambda x: x.sort().values,
    "masked_select": lambda x: x.masked_select(torch.tensor([True, False, True])),
    "constant_pad_nd": lambda x: torch.nn.functional.pad(x, (1, 1), value=5.0),
    "triu": lambda x: x.expand(3, 3).triu(),
    "median": lambda x: x.median(),
    "cummax": lambda x: x.cummax(0).values,
}


@pytest.mark.parametrize("name", SELECTED)
def test_what_selects_leaves_numbers_as_they_are(name: str) -> None:
    x = torch.tensor([INF, -INF, 3.0])
    assert set(SELECTED[name](x).flatten().tolist()) <= {*x.tolist(), 0.0, 5.0}
    assert name in operators.SELECTING


CHOSEN = {
    "_to_copy": lambda x: x.half(),
    "clone": lambda x: x.clone(),
    "masked_fill": lambda x: x.masked_fill(torch.tensor([True, False, False]), 5.0),
    "where": lambda x: torch.where(torch.tensor([True, False, False]), x, -x),
    "relu": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(max=5.0),
    "maximum": lambda x: torch.maximum(x, torch.tensor(5.0)),
    "fmin": lambda x: torch.fmin(x, torch.tensor(5.0)),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_what_chooses_leaves_numbers_as_they_are(name: str) -> None:
    x = torch.tensor([INF, -INF, 3.0])
    for number, before in zip(CHOSEN[name](x).tolist(), x.tolist(), strict=True):
        assert number in (before, -before, 0.0, 5.0)
    assert name in operators.CHOOSING


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda x, stats, training: (aten.native_batch_norm.default, (x, None, None, *stats, training, 0.1, 1e-5)),
        lambda x, stats, training: (
            aten._native_batch_norm_legit.default,
            (x, None, None, *stats, training, 0.1, 1e-5),
        ),
        lambda x, stats, training: (
            (aten._batch_norm_with_update if training else aten._batch_norm_no_update).default,
            (x, None, None, *stats, 0.1, 1e-5),
        ),
        lambda x, stats, training: (
            aten.native_batch_norm_backward.default,
            (x, x, None, *stats, torch.zeros(2), torch.ones(2), training, 1e-5, [True, False, False]),
        ),
    ],
    ids=["native", "legit", "update", "backward"],
)
def test_running_statistics_count_for_nothing_in_training(make: Any, is_training: bool) -> None:
    """Whether they count is seen from the result, with statistics that are not finite."""
    operator, args = make(torch.randn(4, 2), [torch.full((2,), NAN), torch.full((2,), NAN)], is_training)
    info = operator_info(operator)
    counted = inputs_that_count(info, named_arguments(info, args, {}))
    is_read = not is_finite(operator(*args)[0])
    assert ({"running_mean", "running_var"} <= counted.keys()) == is_read == (not is_training)


def test_schemas_of_batch_norm_have_no_other_names() -> None:
    """So that no variant is missed: whatever normalises by batch has these arguments, or is known to train."""
    for operator in everything():
        info = operator_info(operator)
        if "batch_norm" in info.base and "running_mean" in info.arguments:
            says = {"training", "train", "update"} & set(info.arguments)
            evaluates = info.base in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
            elementwise = info.base == "batch_norm_elemt"
            assert says or evaluates or elementwise or info.base in operators.BATCH_STATISTICS, info.name


def test_what_only_has_a_shape_counts_for_nothing() -> None:
    spoiled = torch.tensor([NAN])
    for operator in (aten.full_like.default, aten.fill.Scalar):
        info = operator_info(operator)
        assert is_finite(operator(spoiled, 1.0))
        assert inputs_that_count(info, named_arguments(info, (spoiled, 1.0), {})).keys() == set(info.arguments[1:2])


def test_arguments_by_name() -> None:
    info = operator_info(aten.add.Tensor)
    assert named_arguments(info, (1, 2), {"alpha": 3}) == {"self": 1, "other": 2, "alpha": 3}
    nameless = operator_info(torch.ops.higher_order.flex_attention)
    assert named_arguments(nameless, ("q",), {"k": 1}) == {"argument 0": "q", "k": 1}


def test_floating_tensors_in_a_nest() -> None:
    real, complex_, whole = torch.ones(1), torch.ones(1, dtype=torch.complex64), torch.ones(1, dtype=torch.long)
    weight = nn.Parameter(torch.ones(1))
    found = list(floating_tensors([real, (complex_, None, 3.0, {"x": weight}), whole]))
    assert [id(each) for each in found] == [id(real), id(complex_), id(weight)]


def test_non_finite_constants() -> None:
    for number in (INF, -INF, NAN, [1, (INF,)]):
        assert non_finite_constant({"self": Tensor, "value": number}) is not None
    for number in (1.0, 2, True, None, "inf", [1.0], Tensor):
        assert non_finite_constant({"value": number}) is None
