import logging
import math

import pytest
import torch

from mp_plugin.buffers import LastGoodBuffers
from tests.unit.numerics.test_grad_stats import _operators


class Buffered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))
        self.register_buffer("constant", torch.ones(5))
        self.register_buffer("empty", torch.zeros(0))


def test_a_poisoned_batch_leaves_no_trace() -> None:
    module = Buffered()
    module.norm(torch.randn(4, 3))
    good = LastGoodBuffers(module)
    good.save()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.norm(torch.full((4, 3), math.nan))
    assert module.norm.running_mean.isnan().all()
    good.restore()
    torch.testing.assert_close(dict(module.named_buffers()), before, rtol=0, atol=0)


def test_one_launch_per_kind_of_buffer_and_none_for_what_cannot_be_poisoned() -> None:
    good = LastGoodBuffers(Buffered())
    # Of fp32 statistics and of integer counters: torch takes a list of mixed dtypes one by one.
    assert _operators(good.save) == ["aten._foreach_copy_.default"] * 2
    assert _operators(LastGoodBuffers(torch.nn.Linear(2, 2)).save) == []


def test_a_second_poisoning_is_taken_back_too() -> None:
    module = Buffered()
    good = LastGoodBuffers(module)
    good.save()
    for _ in range(2):
        module.norm(torch.full((4, 3), math.inf))
        good.restore()
        assert module.norm.running_mean.tolist() == [0, 0, 0]
        assert module.norm.num_batches_tracked == 0


def test_only_the_poisoned_ones_go_back_if_asked() -> None:
    module = torch.nn.ModuleList([torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)])
    good = LastGoodBuffers(module)
    good.save()
    module[0](torch.full((2, 1), math.nan))
    module[1](torch.full((2, 1), 10.0))
    good.restore_non_finite()
    assert (module[0].running_mean.item(), module[1].running_mean.item()) == (0.0, 1.0)


def test_too_large_is_said_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    module = torch.nn.BatchNorm1d(1000)
    with caplog.at_level(logging.WARNING):
        good = LastGoodBuffers(module, largest_copy=100)
    assert "a skipped step does not restore them" in caplog.text
    good.save()
    module.running_mean.fill_(math.nan)
    good.restore()
    assert module.running_mean.isnan().all()
