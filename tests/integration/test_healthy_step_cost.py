"""What a healthy step costs beyond stock, counted: waits for the device, and passes over the gradients."""

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import Regression, quiet_trainer, regression_data

SYNCS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "masked_select"}
"""Operators that wait for the device, because the host has to know."""

COUNTED_BATCH = 4


class Watched(Regression):
    """A regression that does not look at its own loss; BatchNorm brings buffers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net.insert(1, torch.nn.BatchNorm1d(16))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.net(batch[0]).float(), batch[1])


class Operators(TorchDispatchMode):
    """Counts operators; those that touch a gradient once more by themselves."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.all: Counter[str] = Counter()
        self.on_gradients: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.all[name] += 1
        gradients = {p.grad.data_ptr() for p in self.module.parameters() if p.grad is not None}
        tensors = [value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(value)]
        if any(tensor.data_ptr() in gradients for tensor in tensors):
            self.on_gradients[name] += 1
        return function(*args, **(kwargs or {}))


class CountOneStep(Callback):
    """Counts the operators of one whole batch, all that Lightning does after it included."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == COUNTED_BATCH:
            self.operators = Operators(pl_module)
            self.operators.__enter__()
        if batch_idx == COUNTED_BATCH + 1:
            self.operators.__exit__(None, None, None)


def count(plugin: Any, optimizer: Any, trainer: dict[str, Any] | None = None, **options: Any) -> Operators:
    """Train for some batches and return what ran in one of them."""
    counter = CountOneStep()
    settings = {"callbacks": [], **(trainer or {})}
    settings["callbacks"] = [*settings["callbacks"], counter]
    model = Watched(optimizer=optimizer, **options)
    quiet_trainer(plugins=[plugin], **settings).fit(model, regression_data())
    return counter.operators


def stock() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


def waits(operators: Operators) -> int:
    return sum(operators.all[name] for name in SYNCS)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_healthy_step_does_not_wait_for_the_device(precision: str) -> None:
    """None with a fused optimizer, at most one otherwise; stock needs that one too in 16-mixed."""
    assert waits(count(AdaptivePrecision(precision), torch.optim.AdamW, fused=True)) == 0
    assert waits(count(AdaptivePrecision(precision), torch.optim.SGD)) <= 1
    assert waits(count(stock(), torch.optim.SGD)) == 1


@pytest.mark.parametrize(("optimizer", "options"), [(torch.optim.SGD, {"fused": True}), (torch.optim.SGD, {})])
def test_a_healthy_step_reads_the_gradients_as_often_as_stock(optimizer: Any, options: dict[str, Any]) -> None:
    ours = count(AdaptivePrecision("fp16"), optimizer, **options).on_gradients
    theirs = count(stock(), optimizer, **options).on_gradients
    assert ours["_amp_foreach_non_finite_check_and_unscale_"] == 1
    # A fused stock optimizer checks and unscales within the step, and hands scaled gradients to every hook.
    assert ours == theirs


@pytest.mark.parametrize("options", [{"fused": True}, {}], ids=str)
def test_a_predictive_scale_reads_the_gradients_once_more(options: dict[str, Any]) -> None:
    predictive = AdaptivePrecision("fp16", scaling=LossScaling(policy="predictive"))  # type: ignore[arg-type]
    ours = count(predictive, torch.optim.SGD, **options)
    dynamic = count(AdaptivePrecision("fp16"), torch.optim.SGD, **options)
    assert ours.on_gradients - dynamic.on_gradients == Counter({"_foreach_norm": 1})
    assert waits(ours) == waits(dynamic)


def test_without_a_loss_scale_the_check_is_one_more_read() -> None:
    ours = count(AdaptivePrecision("bf16"), torch.optim.SGD).on_gradients
    theirs = count(MixedPrecision("bf16-mixed", "cpu"), torch.optim.SGD).on_gradients
    assert ours - theirs == Counter({"_foreach_norm": 1})


def test_buffers_are_copied_in_one_launch_per_dtype() -> None:
    """BatchNorm holds two fp32 tensors and an integer counter."""
    assert count(AdaptivePrecision("fp16"), torch.optim.SGD).all["_foreach_copy_"] == 2
