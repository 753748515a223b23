"""The plugin inside real trainers, against stock Lightning and known faults."""

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import ConfigError, TrainingDivergedError, UnsupportedError
from mp_plugin.modes import MODES
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    fit,
    infinite_at,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)

SCALE = 2.0**10
"""A loss scale that nothing in these small models overflows at."""


def stock(precision: str) -> Any:
    """The stock plugin; given as a plugin, because the Trainer turns a CPU's "16-mixed" into bf16."""
    if precision.endswith("-true"):
        return HalfPrecision(precision)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE) if precision == "16-mixed" else None
    return MixedPrecision(precision, "cpu", scaler)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "16-true"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.AdamW, {"lr": 0.01, "foreach": True, "eps": 1e-4}),
        (torch.optim.AdamW, {"lr": 0.01, "foreach": False, "eps": 1e-4}),
        (torch.optim.AdamW, {"lr": 0.01, "fused": True, "eps": 1e-4}),
    ],
    ids=["sgd", "foreach", "for-loop", "fused"],
)
def test_without_an_overflow_it_trains_as_stock_does_bit_by_bit(
    precision: str, optimizer: Any, options: dict[str, Any]
) -> None:
    scaling = LossScaling(init_scale=SCALE) if precision == "16-mixed" else None
    ours, theirs = AdaptivePrecision(precision, scaling=scaling), stock(precision)
    models = [fit(plugin, Regression(optimizer=optimizer, **options), max_epochs=3) for plugin in (ours, theirs)]
    assert_bitwise_equal(weights(models[0]), weights(models[1]))
    assert models[0].losses == models[1].losses
    assert (ours.effective_step, ours.skipped_steps, ours.incidents) == (24, 0, [])


class Recurrent(Regression):
    """One layer used several times in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        shared = torch.nn.Linear(8, 8)
        self.net = torch.nn.Sequential(*[shared, torch.nn.Tanh()] * 6, torch.nn.Linear(8, 1))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_shared_weights_train_as_in_stock_bit_by_bit(precision: str) -> None:
    scaling = LossScaling(init_scale=SCALE) if precision == "16-mixed" else None
    ours, theirs = (fit(p, Recurrent()) for p in (AdaptivePrecision(precision, scaling=scaling), stock(precision)))
    assert_bitwise_equal(weights(ours), weights(theirs))


def test_fp32_trains_as_stock_does_bit_by_bit() -> None:
    theirs = Regression()
    quiet_trainer(precision="32-true").fit(theirs, regression_data())
    assert_bitwise_equal(weights(fit(AdaptivePrecision("fp32"))), weights(theirs))
    assert_bitwise_equal(weights(fit(AdaptivePrecision("tf32"))), weights(theirs))


@pytest.mark.parametrize("name", MODES)
def test_the_forward_pass_computes_in_the_chosen_format(name: str) -> None:
    mode = MODES[name]
    dtype = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[mode.compute]
    model = fit(AdaptivePrecision(name))
    assert set(model.seen_dtypes) == {dtype}
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[mode.weights]
    assert {parameter.dtype for parameter in model.parameters()} == {kept}


def test_stock_silently_turns_fp16_on_a_cpu_into_bf16_and_we_do_not() -> None:
    """Trap 39: a test that thinks it tests fp16 may test bf16."""
    theirs = Regression()
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU"):
        trainer = quiet_trainer(precision="16-mixed")
    trainer.fit(theirs, regression_data())
    assert set(theirs.seen_dtypes) == {torch.bfloat16}
    plugin = AdaptivePrecision("fp16")
    assert set(fit(plugin).seen_dtypes) == {torch.float16}
    assert plugin.loss_scale == 2.0**15


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true", "bf16-true"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_one_step_and_names_the_parameters(precision: str, fused: bool) -> None:
    scaling = LossScaling(init_scale=SCALE) if precision == "16-mixed" else None
    plugin = AdaptivePrecision(precision, scaling=scaling)
    model = Regression(optimizer=torch.optim.AdamW, fused=fused, fault=infinite_at(3))
    fit(plugin, model)
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    (incident,) = plugin.incidents
    assert (incident.step, incident.batch_idx) == (3, 3)
    assert set(incident.parameters) == {name for name, _ in model.named_parameters()}
    # The loss was not finite before it was scaled: no scale is to blame.
    assert plugin.loss_scale == (SCALE if precision == "16-mixed" else 1.0)
    assert all(weight.isfinite().all() for weight in weights(model))


def test_an_overflow_with_a_finite_loss_lowers_the_scale() -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(retries=0))
    fit(plugin, Regression(fault=overflowing_at(3)))
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (7, 1, 2.0**14)


def test_a_bad_sample_now_and_then_does_not_wear_the_scale_down() -> None:
    """Stock halves the scale each time, and doubles it only after 2,000 clean steps."""
    scaler = torch.amp.GradScaler("cpu")
    fit(MixedPrecision("16-mixed", "cpu", scaler), Regression(fault=infinite_at(3)), max_epochs=20)
    assert scaler.get_scale() <= 2.0**-4
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE))
    fit(plugin, Regression(fault=infinite_at(3)), max_epochs=20)
    assert (plugin.skipped_steps, plugin.loss_scale) == (20, SCALE)


def test_a_skipped_step_leaves_the_weights_as_they_were() -> None:
    with_fault = fit(AdaptivePrecision("bf16"), Regression(fault=infinite_at(7)))
    without = fit(AdaptivePrecision("bf16"), Regression(), limit_train_batches=7)
    assert_bitwise_equal(weights(with_fault), weights(without))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_stock_steps_with_a_nan_and_loses_every_weight(precision: str) -> None:
    theirs = Regression(fault=infinite_at(3))
    quiet_trainer(precision=precision).fit(theirs, regression_data())
    assert all(weight.isnan().all() for weight in weights(theirs))
    ours = fit(AdaptivePrecision(precision), Regression(fault=infinite_at(3)))
    assert all(weight.isfinite().all() for weight in weights(ours))


class SeenGradients(Callback):
    """The largest gradient that the hooks see."""

    def __init__(self) -> None:
        self.largest: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.largest.append(max(parameter.grad.abs().max().item() for parameter in pl_module.parameters()))


def test_hooks_see_true_gradients_with_fused_optimizers_too() -> None:
    """peers' fault L4, trap 10: stock hands scaled gradients to the hooks of a fused optimizer."""

    def seen(plugin: Any, *, fused: bool) -> float:
        callback = SeenGradients()
        model = Regression(optimizer=torch.optim.AdamW, lr=1e-3, fused=fused)
        fit(plugin, model, callbacks=[callback], limit_train_batches=1)
        return callback.largest[0]

    truth = seen(AdaptivePrecision("fp32"), fused=False)
    assert seen(stock("16-mixed"), fused=True) == pytest.approx(SCALE * truth, rel=0.01)
    for fused in (False, True):
        assert seen(AdaptivePrecision("fp16"), fused=fused) == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_works_with_fused_optimizers(algorithm: str) -> None:
    """peers' fault L4, trap 10: stock refuses."""
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(stock("16-mixed"), Regression(optimizer=torch.optim.SGD, fused=True), **clip)
    fused = fit(AdaptivePrecision("fp16"), Regression(optimizer=torch.optim.SGD, fused=True), **clip)
    plain = fit(AdaptivePrecision("fp16"), Regression(optimizer=torch.optim.SGD), **clip)
    torch.testing.assert_close(weights(fused), weights(plain), rtol=1e-6, atol=1e-8)


def test_accumulated_gradients_step_once_per_window() -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE))
    ours = fit(plugin, accumulate_grad_batches=4)
    assert plugin.effective_step == 2
    assert_bitwise_equal(weights(ours), weights(fit(stock("16-mixed"), accumulate_grad_batches=4)))


def test_a_window_with_one_bad_batch_is_skipped_whole() -> None:
    """Trap 16: one bad batch poisons the sum of the window."""
    plugin = AdaptivePrecision("fp16")
    fit(plugin, Regression(fault=infinite_at(1)), accumulate_grad_batches=4)
    assert (plugin.effective_step, plugin.skipped_steps) == (1, 1)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # what this test is about
def test_a_batch_without_a_loss_does_not_lose_the_rest_of_its_window() -> None:
    """peers' fault L5, trap 15: stock 16-mixed drops the step."""

    def nothing_in_batch_1(loss: torch.Tensor, batch_idx: int) -> torch.Tensor | None:
        return None if batch_idx == 1 else loss

    options = {"accumulate_grad_batches": 2, "limit_train_batches": 2}
    start = weights(Regression())
    lost = fit(stock("16-mixed"), Regression(fault=nothing_in_batch_1), **options)
    assert_bitwise_equal(weights(lost), start)
    plugin = AdaptivePrecision("fp16")
    kept = fit(plugin, Regression(fault=nothing_in_batch_1), **options)
    truth = fit(AdaptivePrecision("fp32"), Regression(fault=nothing_in_batch_1), **options)
    assert plugin.effective_step == 1
    torch.testing.assert_close(weights(kept), weights(truth), rtol=1e-2, atol=1e-3)


def test_lbfgs_works_without_a_loss_scale_and_is_refused_with_one() -> None:
    theirs = Regression(optimizer=torch.optim.LBFGS, lr=0.5)
    quiet_trainer(precision="bf16-mixed").fit(theirs, regression_data())
    ours = fit(AdaptivePrecision("bf16"), Regression(optimizer=torch.optim.LBFGS, lr=0.5))
    assert_bitwise_equal(weights(ours), weights(theirs))
    with pytest.raises(UnsupportedError, match="LBFGS .* cannot work with a loss scale; accepted: precision"):
        fit(AdaptivePrecision("fp16"), Regression(optimizer=torch.optim.LBFGS))


def test_half_precision_weights_are_refused_with_a_loss_scale() -> None:
    with pytest.raises(ConfigError, match="4 trained parameters are fp16 already, 'net.0.weight' among them"):
        fit(AdaptivePrecision("fp16"), Regression().half())


def test_a_frozen_half_precision_backbone_is_welcome() -> None:
    """As in LoRA: the base model in fp16, what is trained in fp32."""
    model = Regression()
    model.net[0].half().requires_grad_(False)
    plugin = AdaptivePrecision("fp16")
    fit(plugin, model)
    assert plugin.effective_step == 8


@pytest.mark.parametrize("given", [None, "cpu"])
def test_the_device_is_checked_as_soon_as_it_is_known(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    checked: list[str] = []
    monkeypatch.setattr("mp_plugin.precision.check_device", lambda mode, device: checked.append(device))
    plugin = AdaptivePrecision("bf16", device=given)
    assert checked == ([given] if given else [])
    fit(plugin, limit_train_batches=1)
    assert checked == ["cpu"]


def test_testing_a_checkpoint_does_not_rewind_the_run(tmp_path: Any) -> None:
    class Tested(Regression):
        def test_step(self, batch: Any, batch_idx: int) -> None: ...

    plugin = AdaptivePrecision("fp16")
    model = Tested(fault=infinite_at(3))
    trainer = quiet_trainer(plugins=[plugin])
    trainer.fit(model, regression_data())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, regression_data())
    before = plugin.summary()
    assert before["steps"] == 16
    trainer.test(model, regression_data(), ckpt_path=tmp_path / "run.ckpt", verbose=False, weights_only=True)
    assert plugin.summary() == before
    plugin.load_state_dict(AdaptivePrecision("fp16").state_dict())
    assert plugin.summary()["steps"] == 0


def test_a_hopeless_run_stops_and_leaves_nothing_behind() -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=1, patience=3))
    trainer = quiet_trainer(plugins=[plugin])
    callbacks = list(trainer.callbacks)
    model = Regression(fault=infinite_at(*range(2, 8)))
    with pytest.raises(TrainingDivergedError, match="3 such steps in a row"):
        trainer.fit(model, regression_data())
    assert (plugin.effective_step, plugin.skipped_steps) == (2, 3)
    assert trainer.callbacks == callbacks
    assert all(weight.isfinite().all() for weight in weights(model))


def test_one_instance_serves_fit_test_predict_and_another_fit() -> None:
    """Trap 40: what the plugin puts in place it takes away."""
    plugin = AdaptivePrecision("tf32")
    trainer = quiet_trainer(plugins=[plugin])
    callbacks = list(trainer.callbacks)

    class Complete(Regression):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            assert torch.get_float32_matmul_precision() == "high"

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch[0])

    model = Complete(fault=infinite_at(0))
    trainer.fit(model, regression_data())
    trainer.test(model, regression_data(), verbose=False)
    trainer.predict(model, regression_data(), return_predictions=False)
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    assert trainer.callbacks == callbacks
    fit(plugin)
    assert (plugin.effective_step, plugin.skipped_steps) == (8, 0)


def test_an_exception_in_the_middle_leaves_nothing_behind() -> None:
    """Trap 40: after an exception too."""

    def explode(loss: torch.Tensor, batch_idx: int) -> torch.Tensor:
        raise KeyError("planted")

    for precision in MODES:
        plugin = AdaptivePrecision(precision)
        trainer = quiet_trainer(plugins=[plugin])
        callbacks = list(trainer.callbacks)
        with pytest.raises(KeyError, match="planted"):
            trainer.fit(Regression(fault=explode), regression_data())
        assert trainer.callbacks == callbacks
        # The fixture of conftest.py looks at the rest of the process.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, r"precision='fp8' is unknown; accepted: '32-true'"),
        ({"precision": "bf16", "scaling": LossScaling()}, r"precision='bf16-mixed' has no loss scale to configure"),
        ({"precision": "fp16_true", "scaling": LossScaling()}, r"precision='16-true' has no loss scale to configure"),
        ({"precision": "fp16", "scaling": {"init_scale": 2}}, r"scaling={'init_scale': 2} is not accepted"),
        ({"telemetry": {"max_traced": 2}}, r"telemetry={'max_traced': 2} is not accepted; accepted: a Telemetry, or"),
        ({"exact": 1}, "exact=1 is not accepted; accepted: True, False, or None"),
        ({"exact": "no"}, "exact=.no. is not accepted"),
        ({"device": "warp"}, r"device='warp' is not a device type; accepted: 'cpu'"),
    ],
)
def test_bad_settings_are_refused_when_the_plugin_is_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaptivePrecision(**arguments)


def test_precision_given_twice_is_refused_by_lightning() -> None:
    with pytest.raises(ValueError, match="Received both `precision=16-mixed` and `plugins="):
        quiet_trainer(precision="16-mixed", plugins=[AdaptivePrecision("fp16")])


class Divided(pl.LightningModule):
    """What a half-precision model sees of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.seen: Iterator[Any] = iter(())

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.dtypes = [value.dtype for value in batch]
        return self.layer(batch[0]) + torch.ones(2)


def test_inputs_of_a_true_half_model_are_cast_and_new_tensors_follow() -> None:
    model = Divided()
    batch = [torch.ones(1, 2), torch.ones(1, dtype=torch.int64)]
    trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16-true")])
    (output,) = trainer.predict(model, torch.utils.data.DataLoader([batch], batch_size=None)) or []
    assert model.dtypes == [torch.bfloat16, torch.int64]
    assert output.dtype is torch.bfloat16


def test_nan_in_one_gradient_is_told_apart_from_inf() -> None:
    def spoil(loss: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return loss * math.nan if batch_idx == 2 else loss

    plugin = AdaptivePrecision("bf16")
    fit(plugin, Regression(fault=spoil))
    assert [incident.kind for incident in plugin.incidents] == ["nan"]


def test_it_shows_what_was_chosen() -> None:
    assert repr(AdaptivePrecision("bf16")) == "AdaptivePrecision('bf16-mixed')"
    assert repr(AdaptivePrecision("fp16")).startswith("AdaptivePrecision('16-mixed', scaling=LossScaling(policy=")
