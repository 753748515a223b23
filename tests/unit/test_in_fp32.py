"""A validation step in FP32; what sharding makes of it is tried in tests/integration/test_drift_on_ranks.py."""

from typing import Any

import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Sequential

from mp_plugin import AdaptivePrecision, Fallback
from mp_plugin.fallback.fp32_weights import all_in_fp32
from mp_plugin.in_fp32 import in_fp32
from tests.helpers.training import Regression, quiet_trainer, regression_data


class Asks(Regression):
    """Runs its validation step in FP32 once more, from within a validation run."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Sequential(Linear(8, 16), BatchNorm1d(16), Linear(16, 1))
        self.formats: list[Any] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.formats.append((self.net(batch[0].to(self.dtype)).dtype, torch.ones(1).dtype, self.dtype))

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        plugin: Any = self.trainer.precision_plugin
        state = {name: (tensor, tensor.data_ptr(), tensor.clone()) for name, tensor in self.state_dict().items()}
        with in_fp32(plugin, self):
            self.trainer.strategy.validation_step(batch, batch_idx)
        for name, tensor in self.state_dict().items():
            before, pointer, values = state[name]
            assert (tensor.dtype, tensor.data_ptr()) == (before.dtype, pointer)
            assert torch.equal(tensor, values)
        self.trainer.strategy.validation_step(batch, batch_idx)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "bf16_true", "fp16_true"])
def test_it_is_in_fp32_and_then_as_before(precision: str) -> None:
    model = Asks()
    half = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    fallback = Fallback(layers=["net.1"]) if precision.endswith("true") else None
    trainer = quiet_trainer(plugins=[AdaptivePrecision(precision, fallback=fallback)])
    trainer.validate(model, regression_data(), verbose=False)
    wide = (torch.float32,) * 3
    low = (half,) * 3 if precision.endswith("true") else (half, torch.float32, torch.float32)
    assert model.formats == [low, wide, low]


def test_tied_weights_stay_tied_and_gradients_as_they_are() -> None:
    net = Sequential(Linear(4, 4), Linear(4, 4)).bfloat16()
    net[1].weight = net[0].weight
    net(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    weight, gradient = net[0].weight, net[0].weight.grad
    with torch.inference_mode(), all_in_fp32(net):
        assert net[1].weight is net[0].weight is weight
        assert net(torch.ones(1, 4)).dtype is torch.float32
    assert weight.dtype is torch.bfloat16
    assert weight.grad is gradient


def test_what_was_fp32_and_fp64_before_is_left_alone() -> None:
    net = Sequential(Linear(2, 2), Linear(2, 2).double(), Linear(2, 2).half())
    pointers = [parameter.data_ptr() for parameter in net.parameters()]
    with all_in_fp32(net):
        assert [part.weight.dtype for part in net] == [torch.float32, torch.float64, torch.float32]
        assert [parameter.data_ptr() for parameter in net.parameters()][:4] == pointers[:4]
    assert [parameter.data_ptr() for parameter in net.parameters()] == pointers


def test_an_exception_leaves_half_weights_too() -> None:
    net = Sequential(Linear(2, 2), BatchNorm1d(2)).half()
    with pytest.raises(RuntimeError, match="shape"), all_in_fp32(net):
        net(torch.ones(1, 3))
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float16, torch.int64}
