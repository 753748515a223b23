"""Every way that torch's optimizers step: for-loop, foreach, fused and capturable, clipped and not, healthy and not.

Each against training in float64 without Lightning, and bit by bit against stock Lightning where there is no overflow.
"""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.telemetry.events import Action
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    fit,
    overflowing_at,
    regression_data,
    weights,
)

SCALE = 2.0**10
"""Nothing overflows or underflows here at this loss scale, nor at twice or half of it."""

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd-maximize": (SGD, {"maximize": True, "lr": 0.05}),
    # Where a gradient is near zero, Adam's step has its full length and the sign of a rounding error: hence the eps.
    "adam-amsgrad": (Adam, {"lr": 0.01, "eps": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    "adamw": (AdamW, {"lr": 0.01, "eps": 0.01, "weight_decay": 0.1}),
    "adagrad": (Adagrad, {"lr": 0.01, "eps": 0.01}),
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
CLIPPING: dict[str, dict[str, Any]] = {
    "unclipped": {},
    "norm": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"},
    "value": {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
}

every_path = pytest.mark.parametrize(
    ("name", "implementation", "clipping"),
    [(name, how, clip) for name in OPTIMIZERS for how in IMPLEMENTATIONS for clip in CLIPPING],
)


def model_of(name: str, implementation: str, **options: Any) -> Regression:
    optimizer, settings = OPTIMIZERS[name]
    return Regression(optimizer=optimizer, **settings, **IMPLEMENTATIONS[implementation], **options)


def fp16(scale: float = SCALE, **options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(init_scale=scale, **options))


def stock(precision: str) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE) if precision == "16-mixed" else None
    return MixedPrecision(precision, "cpu", scaler)  # type: ignore[arg-type]


def in_float64(name: str, clipping: str, *, without: int | None = None) -> list[torch.Tensor]:
    """The weights after one epoch of plain torch in float64, one batch left out if asked."""
    model = model_of(name, "for-loop").double()
    optimizer = model.configure_optimizers()
    for batch_idx, (inputs, targets) in enumerate(regression_data()):
        if batch_idx == without:
            continue
        optimizer.zero_grad()
        (model.net(inputs.double()) - targets.double()).square().mean().backward()
        if clipping == "norm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING["norm"]["gradient_clip_val"])
        elif clipping == "value":
            torch.nn.utils.clip_grad_value_(model.parameters(), CLIPPING["value"]["gradient_clip_val"])
        optimizer.step()
    return [weight.float() for weight in weights(model)]


def assert_near(actual: list[torch.Tensor], truth: list[torch.Tensor]) -> None:
    """Within what fp16's rounding of the forward pass explains, and closer than the move of any one step."""
    torch.testing.assert_close(actual, truth, rtol=0, atol=5e-4)


@every_path
def test_a_healthy_run_is_stock_s_bit_by_bit_and_near_float64(name: str, implementation: str, clipping: str) -> None:
    plugin = fp16()
    ours = fit(plugin, model_of(name, implementation), **CLIPPING[clipping])
    assert (plugin.effective_step, plugin.incidents) == (8, [])
    assert_near(weights(ours), in_float64(name, clipping))
    # Stock refuses to clip for a fused optimizer; its foreach one does the same arithmetic up to the last bit or two.
    like = "foreach" if implementation == "fused" and clipping != "unclipped" else implementation
    theirs = weights(fit(stock("16-mixed"), model_of(name, like), **CLIPPING[clipping]))
    if like == implementation:
        assert_bitwise_equal(weights(ours), theirs)
    else:
        torch.testing.assert_close(weights(ours), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bf16_is_stock_s_bit_by_bit(name: str, implementation: str) -> None:
    ours, theirs = (
        fit(plugin, model_of(name, implementation)) for plugin in (AdaptivePrecision("bf16"), stock("bf16-mixed"))
    )
    assert_bitwise_equal(weights(ours), weights(theirs))


@every_path
def test_a_skipped_batch_is_as_if_it_had_not_been_there(name: str, implementation: str, clipping: str) -> None:
    plugin = fp16(retries=0)
    skipped = fit(plugin, model_of(name, implementation, fault=overflowing_at(3)), **CLIPPING[clipping])
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (7, 1, SCALE / 2)
    kept = [batch for batch_idx, batch in enumerate(regression_data()) if batch_idx != 3]
    oracle = fit(fp16(), model_of(name, implementation), DataLoader(kept, batch_size=None), **CLIPPING[clipping])
    assert_bitwise_equal(weights(skipped), weights(oracle))
    assert_near(weights(skipped), in_float64(name, clipping, without=3))


class OverflowsAbove(Regression):
    """Its gradients overflow in batch 3 at every loss scale above `SCALE`."""

    def on_after_backward(self) -> None:
        plugin: Any = self.trainer.precision_plugin
        if self.trainer.fit_loop.batch_idx == 3 and plugin.loss_scale > SCALE:
            self.net[0].weight.grad[0, 0] = float("inf")  # type: ignore[union-attr, index, operator]


@every_path
def test_a_retried_batch_is_not_lost(name: str, implementation: str, clipping: str) -> None:
    plugin = fp16(2 * SCALE)
    optimizer, settings = OPTIMIZERS[name]
    retried = OverflowsAbove(optimizer=optimizer, **settings, **IMPLEMENTATIONS[implementation])
    fit(plugin, retried, **CLIPPING[clipping])
    assert (plugin.effective_step, plugin.skipped_steps, plugin.retried_steps, plugin.loss_scale) == (8, 0, 1, SCALE)
    assert [(incident.action, incident.parameters) for incident in plugin.incidents] == [
        (Action.retry, ("net.0.weight",))
    ]
    oracle = fit(fp16(), model_of(name, implementation), **CLIPPING[clipping])
    assert_bitwise_equal(weights(retried), weights(oracle))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch runs capturable optimizers on accelerators only")
@pytest.mark.parametrize("optimizer", [Adam, AdamW])
@pytest.mark.parametrize("clipping", CLIPPING)
def test_capturable_optimizers_skip_and_clip(optimizer: Any, clipping: str) -> None:
    options = {"optimizer": optimizer, "eps": 0.01, "fault": overflowing_at(3)}
    plugin, oracle = fp16(retries=0), fp16(retries=0)
    model = Regression(capturable=True, lr=torch.tensor(0.01), **options)
    fit(plugin, model, accelerator="cuda", **CLIPPING[clipping])
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    assert_near([weight.cpu() for weight in weights(model)], weights(fit(oracle, Regression(lr=0.01, **options))))


@pytest.mark.parametrize("implementation", ["for-loop", "fused"])
def test_a_learning_rate_may_be_a_tensor(implementation: str) -> None:
    options = {"optimizer": AdamW, "lr": torch.tensor(0.01), **IMPLEMENTATIONS[implementation]}
    ours, theirs = (fit(plugin, Regression(**options)) for plugin in (fp16(), stock("16-mixed")))
    assert_bitwise_equal(weights(ours), weights(theirs))
