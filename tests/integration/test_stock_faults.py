"""Faults of torch's GradScaler and of Lightning, shown to be there, and not to be here.

Numbered as in the project's survey of its peers: 1.2.x for torch, Lx for Lightning. Faults that have a natural home of
their own are tested there: L1 beside the schedulers, L2 and L3 in manual optimization, L4 and L5 with the plugin.
"""

import inspect
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import ConfigError, TrainingDivergedError
from mp_plugin.scaling.scaler import LossScaler
from tests.helpers.training import (
    Regression,
    infinite_at,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)


def grad_scaler(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **options)


class OneWeight:
    """A weight that steps by its true gradient, under a scaler of either kind."""

    def __init__(self, scaler: Any) -> None:
        self.scaler = scaler
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)

    def step(self, gradient: float) -> Any:
        self.scaler.scale(self.weight.sum()).backward()  # a GradScaler makes its scale when it first scales
        self.weight.grad = torch.tensor([gradient * self.scaler.get_scale()])
        result = self.scaler.step(self.optimizer)
        self.scaler.update()
        return result

    def steps(self, *gradients: float) -> float:
        for gradient in gradients:
            self.step(gradient)
        return self.weight.item()


def test_fault_1_2_1_a_healthy_step_after_166_overflows() -> None:
    """The scale is exactly zero then; 0 divided by 0 is NaN, and it goes into the weights."""
    theirs, ours = OneWeight(grad_scaler()), OneWeight(LossScaler())
    overflows = [math.inf] * 166
    assert theirs.steps(*overflows) == ours.steps(*overflows) == 0.0
    assert theirs.scaler.get_scale() == 0.0
    assert math.isnan(theirs.steps(1.0))
    assert (ours.steps(1.0), ours.scaler.get_scale()) == (-1.0, 1.0)


@pytest.mark.parametrize("log2_scale", [-128, -130, -140])
def test_fault_1_2_2_a_scale_whose_reciprocal_is_infinite(log2_scale: int) -> None:
    """The scaled gradient is finite, the unscaled one is not, and only the first is looked at."""
    theirs = OneWeight(grad_scaler(init_scale=2.0**log2_scale))
    assert not math.isfinite(theirs.steps(1.0))
    with pytest.raises(ConfigError, match=r"LossScaling.min_scale=.* is not accepted; accepted: a number, 2\*\*-64"):
        LossScaling(min_scale=2.0**log2_scale, init_scale=1)
    # Nor does it come in by a checkpoint.
    ours = OneWeight(LossScaler())
    ours.scaler.load_state_dict({"scale": 2.0**log2_scale, "_growth_tracker": 0})
    assert ours.steps(1.0) == -1.0


def test_fault_1_2_2_a_quotient_that_overflows() -> None:
    """Trap 1: finiteness of the unscaled gradient counts."""
    theirs = OneWeight(grad_scaler(init_scale=2.0**-60))
    ours = OneWeight(LossScaler(LossScaling(init_scale=2.0**-60, min_scale=2.0**-64)))
    for training in (theirs, ours):
        training.scaler.scale(training.weight.sum()).backward()
        training.weight.grad = torch.tensor([2.0**100])  # over 2**-60 that is 2**160
        training.scaler.step(training.optimizer)
    assert (theirs.weight.item(), ours.weight.item()) == (-math.inf, 0.0)


def test_fault_1_2_3_zero_is_for_ever() -> None:
    theirs, ours = OneWeight(grad_scaler(growth_interval=1)), OneWeight(LossScaler(LossScaling(growth_interval=1)))
    for training in (theirs, ours):
        training.steps(*[math.inf] * 166)
        training.steps(*[0.0] * 10)
    assert (theirs.scaler.get_scale(), ours.scaler.get_scale()) == (0.0, 2.0**10)


def test_fault_1_2_4_gradients_of_zero_drive_the_scale_up() -> None:
    theirs, ours = OneWeight(grad_scaler(growth_interval=1)), OneWeight(LossScaler(LossScaling(growth_interval=1)))
    for training in (theirs, ours):
        training.steps(*[0.0] * 200)
    assert (theirs.scaler.get_scale(), ours.scaler.get_scale()) == (2.0**127, 2.0**24)


@pytest.mark.parametrize(("fault", "kind"), [(math.nan, "nan"), (math.inf, "inf")])
def test_faults_1_2_5_and_6_nan_and_inf_are_one_number_for_all_parameters(fault: float, kind: str) -> None:
    class Spoiled(Regression):
        def on_after_backward(self) -> None:
            self.net[2].bias.grad.fill_(fault)  # type: ignore[union-attr, operator]

    scaler = grad_scaler()
    model = Regression()
    optimizer = model.configure_optimizers()
    scaler.scale(model.net(torch.ones(4, 8)).sum()).backward()
    model.net[2].bias.grad.fill_(fault)  # type: ignore[union-attr, operator]
    scaler.unscale_(optimizer)
    (found_inf,) = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
    assert found_inf.item() == 1.0
    plugin = AdaptivePrecision("fp16")
    quiet_trainer(plugins=[plugin], limit_train_batches=1).fit(Spoiled(), regression_data())
    assert {(incident.kind, incident.parameters) for incident in plugin.incidents} == {(kind, ("net.2.bias",))}


def test_fault_1_2_5_a_nan_in_the_data_lowers_the_scale() -> None:
    """Forever: the scale had nothing to do with it."""
    scaler = grad_scaler(init_scale=2.0**10)
    model = Regression(fault=infinite_at(2, 5))
    quiet_trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(model, regression_data())
    assert scaler.get_scale() == 2.0**8
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**10))
    quiet_trainer(plugins=[plugin]).fit(Regression(fault=infinite_at(2, 5)), regression_data())
    assert (plugin.loss_scale, plugin.skipped_steps) == (2.0**10, 2)


def test_fault_1_2_7_nobody_says_whether_the_step_happened() -> None:
    theirs = OneWeight(grad_scaler())
    assert theirs.step(1.0) is theirs.step(math.inf) is None
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(retries=0))
    quiet_trainer(plugins=[plugin]).fit(Regression(fault=overflowing_at(3)), regression_data())
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)


def test_fault_1_2_10_no_bounds_no_hysteresis_and_no_history() -> None:
    ours = {"min_scale", "max_scale", "hysteresis", "at_min_scale", "patience"}
    assert ours <= set(inspect.signature(LossScaling).parameters)
    assert not ours & set(inspect.signature(torch.amp.GradScaler).parameters)
    one_bad_batch = [1.0, math.inf, 1.0]
    theirs = OneWeight(grad_scaler(init_scale=8.0))
    patient = OneWeight(LossScaler(LossScaling(init_scale=8, hysteresis=2)))
    for training in (theirs, patient):
        training.steps(*one_bad_batch)
    assert (theirs.scaler.get_scale(), patient.scaler.get_scale()) == (4.0, 8.0)


class StaleCast(pl.LightningModule):
    """A forward pass, an edit of the weight, and another forward pass in one training step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.full((1, 1), 4.0))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.outputs = two_forwards(self.weight)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=1.0)


def two_forwards(weight: torch.nn.Parameter) -> list[float]:
    outputs = []
    for _ in range(2):
        outputs.append(torch.nn.functional.linear(torch.ones(1, 1), weight).item())
        with torch.no_grad():
            weight.sub_(2.0)
    return outputs


def test_fault_l6_a_stale_cast_of_a_weight() -> None:
    """Traps 13, 27 and 28: of Lightning's master branch, whose autocast region keeps casts while weights change."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        assert two_forwards(torch.nn.Parameter(torch.full((1, 1), 4.0))) == [4.0, 4.0]
    for precision in ("bf16", "fp16"):
        model = StaleCast()
        quiet_trainer(plugins=[AdaptivePrecision(precision)], limit_train_batches=1).fit(model, regression_data())
        assert model.outputs == [4.0, 2.0]


def without_gradients(inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return inputs * 2


def test_fault_l7_a_patched_no_grad_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Lightning's master branch, which replaces `torch.no_grad` for the length of a step."""

    class Compiled(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            function = torch.compile(without_gradients, fullgraph=True, backend="eager")
            return super().training_step([function(batch[0]), batch[1]], batch_idx)

    torch.compiler.reset()
    model = Compiled()
    quiet_trainer(plugins=[AdaptivePrecision("bf16")], limit_train_batches=1).fit(model, regression_data())
    assert len(model.losses) == 1
    torch.compiler.reset()
    original = torch.no_grad

    def patched(*args: Any) -> Any:
        torch.clear_autocast_cache()
        return original(*args)

    monkeypatch.setattr(torch, "no_grad", patched)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(without_gradients, fullgraph=True, backend="eager")(torch.ones(1))
    torch.compiler.reset()


def test_a_run_with_166_overflows_in_a_row_stays_healthy_and_says_why() -> None:
    """Fault 1.2.1 in a trainer: stock's weights are NaN afterwards, without a word."""
    data = regression_data(batches=170)
    theirs = Regression(fault=overflowing_at(*range(166)))
    stock = MixedPrecision("16-mixed", "cpu", grad_scaler(init_scale=2.0**15))
    quiet_trainer(plugins=[stock]).fit(theirs, data)
    assert all(weight.isnan().all() for weight in weights(theirs))

    plugin = AdaptivePrecision("fp16", scaling=LossScaling(at_min_scale="skip"))  # type: ignore[arg-type]
    ours = Regression(fault=overflowing_at(*range(166)))
    quiet_trainer(plugins=[plugin]).fit(ours, data)
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (4, 166, 1.0)
    assert all(weight.isfinite().all() for weight in weights(ours))
    assert plugin.summary()["incidents"]["by_parameter"]["net.0.weight"] >= 166

    plugin, ours = AdaptivePrecision("fp16"), Regression(fault=overflowing_at(*range(166)))
    with pytest.raises(
        TrainingDivergedError, match=r"gradients in net.0.weight, .*10 such steps in a row, at a loss scal"
    ):
        quiet_trainer(plugins=[plugin]).fit(ours, data)
    assert all(weight.isfinite().all() for weight in weights(ours))
