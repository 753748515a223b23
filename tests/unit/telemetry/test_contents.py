import itertools
import math

import pytest
import torch

from mp_plugin.numerics.finiteness import Kind
from mp_plugin.telemetry.contents import first_place, flow_by_element

NAN, INF = math.nan, math.inf
VALUES = {Kind.nan: NAN, Kind.inf: INF, Kind.negative_inf: -INF}


@pytest.mark.parametrize("kinds", [set(each) for n in range(4) for each in itertools.combinations(Kind, n)])
def test_the_first_of_a_kind_is_found(kinds: set[Kind]) -> None:
    tensor = torch.tensor([1.0, *(VALUES[kind] for kind in kinds), 3e38])
    for kind in Kind:
        place = first_place(tensor, kind)
        assert (place is not None) == (kind in kinds)
        if place is not None:
            assert str(tensor[place].item()) == kind.value


def flow(operator, *inputs: torch.Tensor):
    return flow_by_element(inputs, operator(*inputs))


def test_each_number_is_followed_from_its_place() -> None:
    x = torch.tensor([1.0, INF, -INF, NAN, INF])
    assert flow(torch.neg, x) == (
        {(0, Kind.inf, Kind.negative_inf), (0, Kind.negative_inf, Kind.inf), (0, Kind.nan, Kind.nan)},
        frozenset(),
    )
    # 0 * inf at one place, an overflow of finite numbers at another.
    assert flow(torch.mul, torch.tensor([INF, 3e38]), torch.tensor([0.0, 10.0])) == (
        {(0, Kind.inf, Kind.nan)},
        frozenset({Kind.inf}),
    )
    assert flow(torch.sub, torch.tensor([INF, 1.0]), torch.tensor([INF, 1.0])) == (
        {(0, Kind.inf, Kind.nan), (1, Kind.inf, Kind.nan)},
        frozenset(),
    )


def test_shapes_are_expanded() -> None:
    x, row = torch.ones(2, 3), torch.tensor([1.0, -INF, NAN])
    assert flow(torch.add, x, row) == (
        {(1, Kind.negative_inf, Kind.negative_inf), (1, Kind.nan, Kind.nan)},
        frozenset(),
    )
    assert flow(torch.div, x, torch.tensor(0.0)) == (set(), frozenset({Kind.inf}))


def test_what_does_not_reach_the_output_does_not_count() -> None:
    condition = torch.tensor([True, False])
    x, y = torch.tensor([1.0, NAN]), torch.tensor([2.0, INF])
    assert flow_by_element([x, y], torch.where(condition, x, y), keeps_kinds=True) == (
        {(1, Kind.inf, Kind.inf)},
        frozenset(),
    )
    assert flow_by_element([x], 1 / x.nan_to_num(nan=1.0)) == (set(), frozenset())
