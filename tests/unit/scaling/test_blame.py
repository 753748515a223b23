import math

import torch

from mp_plugin.scaling.blame import blame_gradients, blame_marks, blame_weights, merge


def model_with(*gradients: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.ParameterDict({f"p{i}": torch.zeros(2) for i in range(len(gradients))})
    for parameter, gradient in zip(model.values(), gradients, strict=True):
        parameter.grad = torch.tensor([0.0, gradient])
    return model, torch.optim.SGD(reversed(list(model.values())), lr=1.0)


def test_names_come_in_the_optimizer_s_order() -> None:
    model, optimizer = model_with(math.inf, 1.0, -math.inf)
    blame = blame_gradients(optimizer, model, rank=0)
    assert (blame.kind, blame.parameters) == ("inf", ("p2", "p0"))


def test_one_nan_makes_it_nan() -> None:
    model, optimizer = model_with(math.inf, math.nan)
    assert blame_gradients(optimizer, model, rank=0).kind == "nan"


def test_weights_are_told_from_their_gradients() -> None:
    model, optimizer = model_with(math.inf, 1.0)
    assert blame_weights(optimizer, model).parameters == ()
    model["p1"].data[0] = math.nan
    assert blame_weights(optimizer, model).parameters == ("p1",)


def test_a_parameter_that_the_model_does_not_know() -> None:
    _, optimizer = model_with(math.inf)
    assert blame_gradients(optimizer, torch.nn.Linear(1, 1), rank=2).parameters == ("unnamed",)
    assert blame_gradients(optimizer, torch.nn.Linear(1, 1), rank=2).rank == 2


def test_several_ranks_blame_together() -> None:
    """A NaN anywhere makes it nan; names keep their order and come once; the first rank that has one is named."""
    blame = merge([{}, {"b": False, "a": False}, {"a": False, "c": True}])
    assert (blame.kind, blame.parameters, blame.rank) == ("nan", ("b", "a", "c"), 1)


def test_marks_tell_as_gradients_do() -> None:
    """In the order of the parameters that they are given with, long after the gradients are gone."""
    model, optimizer = model_with(math.inf, 1.0, -math.nan)
    expected = blame_gradients(optimizer, model, rank=3)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    marks = torch.tensor([math.nan, 1.0, math.inf], dtype=torch.float64)
    optimizer.zero_grad()
    assert blame_marks(parameters, marks, model, rank=3) == expected
    assert (expected.kind, expected.parameters, expected.rank) == ("nan", ("p2", "p0"), 3)


def test_without_marks_nobody_is_named() -> None:
    model, optimizer = model_with(math.inf)
    blame = blame_marks(optimizer.param_groups[0]["params"], None, model, rank=0)
    assert (blame.parameters, blame.kind) == ((), "inf")
