import logging

import pytest
import torch

from mp_plugin.errors import ConfigError
from mp_plugin.optimizers import raise_vanishing_eps_, refuse_what_cannot_be_scaled


def adam(eps: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))], eps=eps)


def step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.tensor([0.0, 1.0], dtype=torch.float16)
    optimizer.step()
    return weight


def test_adam_with_its_default_eps_ruins_fp16_weights_and_with_ours_not(caplog: pytest.LogCaptureFixture) -> None:
    assert step(adam(1e-8)).isnan().any()
    optimizer = adam(1e-8)
    with caplog.at_level(logging.WARNING):
        raise_vanishing_eps_(optimizer)
    assert step(optimizer).isfinite().all()
    assert "eps=1e-08 is zero in fp16" in caplog.text


@pytest.mark.parametrize("eps", [1e-4, 2.0**-24, 1.01 * 2.0**-25, 0.0])
def test_an_eps_that_survives_or_was_chosen_to_be_zero_stays(eps: float) -> None:
    optimizer = adam(eps)
    raise_vanishing_eps_(optimizer)
    assert optimizer.param_groups[0]["eps"] == eps


def test_half_of_the_smallest_number_is_zero_already() -> None:
    optimizer = adam(2.0**-25)
    assert torch.tensor(2.0**-25, dtype=torch.float16) == 0
    raise_vanishing_eps_(optimizer)
    assert optimizer.param_groups[0]["eps"] == 2.0**-14


def test_an_optimizer_without_eps_is_left_alone() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    raise_vanishing_eps_(optimizer)
    assert "eps" not in optimizer.param_groups[0]


def test_fp16_weights_are_refused_by_the_name_that_the_user_gave_them() -> None:
    """torch.compile, for one, puts a part into the name."""
    compiled = torch.nn.ModuleDict({"_orig_mod": torch.nn.Linear(1, 1).half()})
    with pytest.raises(ConfigError, match="2 trained parameters are fp16 already, 'net.weight' among them"):
        refuse_what_cannot_be_scaled(torch.nn.ModuleDict({"net": compiled}), [])
