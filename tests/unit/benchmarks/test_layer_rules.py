"""The two rules that a benchmark sets beside the proof do what is documented of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.helpers.layer_rules import above_threshold, bisect, is_finite, order_of_running


class Model(nn.Module):
    """Runs its layers in the order of `called`; a batch is an input."""

    def __init__(self, called: str, **layers: nn.Module) -> None:
        super().__init__()
        self.called = called
        for name, layer in layers.items():
            self.add_module(name, layer)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).float().sum()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        for name in self.called:
            x = getattr(self, name)(x)
        return x


class Times(nn.Module):
    """Multiplies by a number, and divides by it again."""

    def __init__(self, number: float | Tensor) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x * self.number / self.number


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def linear(weight: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (linear(256), []),
        (linear(257), ["a", "b"]),  # what one layer returns, the next one reads
        (linear(-257), ["a", "b"]),
        (Times(256), []),
        (Times(257), ["a"]),
    ],
    ids=["512", "514", "-514", "inside: 512", "inside: 514"],
)
def test_a_layer_stays_in_fp32_for_a_number_above_the_threshold(layer, kept):
    assert above_threshold(Model("ab", a=layer, b=Halve()), [torch.full((1, 1), 2.0)]) == kept


def test_a_number_without_dimensions_does_not_count():
    for number, kept in ((torch.tensor(600.0), []), (torch.tensor([600.0]), ["a"])):
        assert above_threshold(Model("a", a=Times(number)), [torch.tensor([0.1])]) == kept


def test_every_calibration_batch_counts():
    model = Model("ab", a=nn.ReLU(), b=Times(2.0))
    assert above_threshold(model, [torch.ones(1), torch.ones(1)]) == []
    assert above_threshold(model, [torch.full((1,), 300.0), torch.ones(1)]) == ["b"]


def test_a_layer_stays_in_fp32_for_a_weight_that_never_meets_a_number():
    class Unused(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    def unused(weight: float) -> nn.Linear:
        layer = Unused(1, 1, bias=False)
        nn.init.constant_(layer.weight, weight)
        return layer

    assert above_threshold(Model("ab", a=unused(65504), b=unused(65505)), [torch.ones(1)]) == ["b"]


def test_layers_are_ordered_by_their_first_call():
    model = Model("bab", a=nn.ReLU(), b=nn.Tanh(), c=nn.Sigmoid())
    assert order_of_running(model, torch.ones(1)) == ["b", "a"]


@pytest.mark.parametrize("num_layers", [1, 2, 3, 8, 75])
def test_a_bisection_finds_the_smallest_number_in_a_logarithm_of_runs(num_layers):
    for smallest in range(1, num_layers + 1):
        found, runs = bisect(num_layers, lambda number, smallest=smallest: number >= smallest)
        assert found == smallest
        assert runs <= 1 + math.ceil(math.log2(num_layers))
    assert bisect(num_layers, lambda number: False) == (None, 1)


def test_a_batch_is_tried_with_layers_in_fp32_and_the_model_stays_as_it_was():
    # What comes after a linear layer is in fp16 again.
    model = Model("acb", a=linear(1), b=Times(1e5), c=linear(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.ones(1, 1)
    assert [is_finite(model, batch, names) for names in ((), ("a",), ("b",), ("a", "b"))] == [False, False, True, True]
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert type(model.b) is Times
