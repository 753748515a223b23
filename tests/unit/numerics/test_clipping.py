import math

import pytest
import torch

from mp_plugin.numerics.clipping import clamp_, is_sharded, squared_norm
from mp_plugin.numerics.one_pass import unscale_and_clip_


def mixed_gradients() -> list[torch.Tensor]:
    half = torch.tensor([300.0, -400.0], dtype=torch.float16)
    return [torch.randn(3, 2), torch.tensor([]), half, torch.randn(4, dtype=torch.float64)]


def test_squares_are_added_up_beyond_the_range_of_the_gradients() -> None:
    """300 squared is infinite in fp16."""
    assert squared_norm([torch.tensor([300.0], dtype=torch.float16)]).item() == 9e4
    assert squared_norm([]).item() == 0.0


@pytest.mark.parametrize("max_norm", [1.0, 1e9])
def test_the_result_is_that_of_torch(max_norm: float) -> None:
    ours, theirs = mixed_gradients(), [torch.nn.Parameter(torch.zeros_like(g)) for g in mixed_gradients()]
    for parameter, grad in zip(theirs, ours, strict=True):
        parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    unscale_and_clip_(ours, 1.0, squared_norm(ours).sqrt(), max_norm)
    torch.testing.assert_close(ours, [parameter.grad for parameter in theirs])


def test_numbers_are_clamped_in_place() -> None:
    grads = [torch.tensor([1.0, -5.0, math.pi]), torch.tensor([-2.0], dtype=torch.float16)]
    clamp_(grads, 1.5)
    assert [grad.tolist() for grad in grads] == [[1.0, -1.5, 1.5], [-1.5]]


def test_plain_gradients_are_not_sharded() -> None:
    assert not is_sharded(torch.ones(1))
