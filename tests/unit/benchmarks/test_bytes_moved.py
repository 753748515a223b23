"""The bytes of a step are those of its walks over the gradients."""

import pytest


def bytes_of(precision, optimizer, *, clips):
    from helpers.bytes_moved import SETTINGS, total

    found = {(each.precision, each.optimizer, each.clips): each for each in SETTINGS}
    setting = found[precision, optimizer, clips]
    return None if setting.stock is None else total(setting.stock), total(setting.ours)


def test_stock_amp_with_clipping_walks_five_times_and_ours_three():
    assert bytes_of("fp16", "foreach", clips=True) == (5 * 4, 3 * 4)


def test_what_is_folded_costs_a_read_and_what_the_optimizer_writes_back():
    assert bytes_of("fp16", "fused", clips=True) == (None, 4 + 4)
    assert bytes_of("fp16", "fused", clips=False) == (8 + 4, 4 + 4)
    assert bytes_of("bf16", "fused", clips=False) == (0, 4)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_fused_optimizer_that_divides_writes_the_gradients_back(optimizer):
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 8.0)
    stepping = getattr(torch.optim, optimizer)([weight], fused=True)
    stepping.grad_scale, stepping.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    stepping.step()
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]
