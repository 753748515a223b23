import json
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from mp_plugin.telemetry import gradient_range
from mp_plugin.telemetry.gradient_range import GradientRange, gradient_ranges

INF, NAN = math.inf, math.nan
EDGES = {
    "empty": [],
    "zeros": [0.0, -0.0],
    "powers of two": [2.0**power for power in range(-149, 128)],
    "a bit above powers of two": [math.ldexp(1 + 2**-7, power) for power in range(-120, 127)],
    "a bit below powers of two": [-math.ldexp(1 - 2**-8, power) for power in range(-120, 127)],
    "largest fp32": [3.4028234663852886e38],
    "not finite": [INF, -INF, NAN, 5.0],
    "subnormals of fp32": [3 * 2.0**-149, 2.0**-127],
    "many": [place / 7 for place in range(-500, 400)],
}


def expected(*grads: Tensor) -> GradientRange:
    """The definition, value by value in exact fractions."""
    values = [value for grad in grads for value in grad.double().flatten().tolist()]
    finite = [abs(value) for value in values if math.isfinite(value)]
    exponents: Counter[int] = Counter()
    for value in finite:
        if value:
            exponent = next(e for e in range(-149, 129) if Fraction(value) <= Fraction(2) ** e)
            exponents[exponent] += 1
    return GradientRange(
        amax=max(finite, default=0.0),
        exponents=dict(exponents),
        zeros=finite.count(0.0),
        non_finite=len(values) - len(finite),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("edge", EDGES)
def test_edge_values(edge, dtype):
    grad = torch.tensor(EDGES[edge], dtype=torch.float64).to(torch.float32).to(dtype)
    assert gradient_ranges([("layer", grad)]) == {"layer": expected(grad)}


def test_any_mix_in_one_call_each_under_its_name_and_gradients_of_one_name_together(monkeypatch):
    monkeypatch.setattr(gradient_range, "_CHUNK", 7)  # so that most of them are read in parts
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 10, generator=generator)
    rows, values = torch.tensor([[1, 1, 2]]), torch.tensor([1.0, 2.0, 5.0])
    twice = torch.sparse_coo_tensor(rows, values, (4,), check_invariants=True)
    grads = [
        ("a", wide.t()),
        ("b", wide[:, ::3].bfloat16()),
        ("a", torch.tensor(-100.0)),
        ("sparse", twice),
        ("complex", torch.tensor([3 - 4j, 0j])),
        ("none", torch.empty(0, 3, dtype=torch.float16)),
    ]
    assert gradient_ranges(grads) == {
        "a": expected(wide, torch.tensor(-100.0)),
        "b": expected(wide[:, ::3].bfloat16()),
        "sparse": expected(torch.tensor([3.0, 5.0])),
        "complex": expected(torch.tensor([3.0, -4.0, 0.0, 0.0])),
        "none": GradientRange(),
    }


def test_no_gradients_have_no_ranges():
    assert gradient_ranges([]) == {}


def test_gradients_are_left_as_they_are_and_numbers_are_plain():
    grad = torch.tensor([1.0, -2.0], requires_grad=True)
    (found,) = gradient_ranges([("layer", grad)]).values()
    assert grad.tolist() == [1.0, -2.0]
    assert {type(number) for number in (*found.exponents, *found.exponents.values(), found.zeros)} == {int}
    assert type(found.amax) is float


def test_merging_is_reading_together():
    first, second = torch.tensor([1.0, 0.0, NAN, 3.0]), torch.tensor([0.25, 3.5, -INF])
    ranges = gradient_ranges([("first", first), ("second", second)])
    both = expected(first, second)
    assert ranges["first"].merged(ranges["second"]) == both == ranges["second"].merged(ranges["first"])
    assert both.merged(GradientRange()) == both
    assert list(ranges["first"].merged(ranges["second"]).exponents) == [-2, 0, 2]


def test_it_is_written_as_json():
    (found,) = gradient_ranges([("layer", torch.tensor([0.5, 3.0, 0.0]))]).values()
    written = json.loads(json.dumps(found.as_dict()))
    assert written == {"amax": 3.0, "exponents": {"-1": 1, "2": 1}, "zeros": 1, "non_finite": 0}
