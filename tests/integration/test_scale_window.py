"""The loss scales that fit all layers: sampled, shown, and if there are none, what is done about it.

The model's gradients are known to within the batch: each planted layer multiplies those of its own weights alone.
"""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from mp_plugin import AdaptivePrecision, Fallback, LossScaling, Telemetry
from mp_plugin.scaling.window import ScaleWindow
from mp_plugin.telemetry.events import Action
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import assert_bitwise_equal, quiet_trainer, regression_data, weights


class _Amplify(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None


class Amplified(nn.Linear):
    """A layer that is used in an amplified way; what it passes on, in both directions, is not amplified."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = _Amplify.apply(x, 1 / self.factor)  # type: ignore[no-untyped-call]
        return _Amplify.apply(super().forward(x), self.factor)  # type: ignore[no-any-return, no-untyped-call]


class Ladder(pl.LightningModule):
    """Two amplified layers between a stem and a head; it hardly moves, so that its gradients stay what they are."""

    def __init__(self, large: float, small: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 1)
        self.large, self.small = Amplified(16, 16), Amplified(16, 16)
        self.large.factor, self.small.factor = large, small

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        x = torch.tanh(self.stem(inputs))
        x = x + self.large(x)
        x = x + self.small(x)
        return nn.functional.mse_loss(self.head(x).float(), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


WIDE, EMPTY = (1e2, 1e-4), (1e5, 1e-6)
"""Between the largest gradient of one layer and the smallest of the other: a window of scales, or none."""


def train(
    factors: tuple[float, float],
    *,
    init_scale: float,
    every_n_steps: int = 3,
    fallback: dict[str, Any] | None = None,
    scaling: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    plugin = AdaptivePrecision(
        "fp16",
        scaling=LossScaling(init_scale=init_scale, **(scaling or {})),
        fallback=Fallback(**{"auto": True, **(fallback or {})}),
        telemetry=Telemetry(every_n_steps=every_n_steps),
    )
    model = Ladder(*factors)
    trainer = quiet_trainer(plugins=[plugin], log_every_n_steps=1, **options)
    trainer.fit(model, regression_data())
    return plugin, model, trainer


def scales_that_fit(model: Ladder) -> dict[str, tuple[float, float]]:
    """For each layer the bounds over all batches, from gradients in fp32 and every single power of two."""
    bounds: dict[str, tuple[float, float]] = {}
    scales = [2.0**power for power in range(25)]
    for batch_idx, batch in enumerate(regression_data()):
        model.zero_grad()
        model.training_step(batch, batch_idx).backward()
        for name in ("stem", "large", "small", "head"):
            grads = torch.cat([each.grad.flatten() for each in model.get_submodule(name).parameters()])  # type: ignore[union-attr]
            values = grads[grads != 0].double()
            fits = [
                scale
                for scale in scales
                if ((values * scale).half() == 0).double().mean() <= 0.05 and (values * scale).half().isfinite().all()
            ]
            lowest, highest = bounds.get(name, (1.0, 2.0**24))
            bounds[name] = max(lowest, fits[0]), min(highest, fits[-1])
    return bounds


def test_the_window_is_sampled_and_shown() -> None:
    plugin, model, trainer = train(WIDE, init_scale=2.0**10, every_n_steps=1)
    window = plugin.scale_window
    assert isinstance(window, ScaleWindow)
    truth = scales_that_fit(model)
    # One batch has less of a range than all of them, and half as precise a gradient.
    assert 1 <= window.lowest <= 2 * max(lowest for lowest, _ in truth.values())
    assert min(highest for _, highest in truth.values()) / 2 <= window.highest < 2.0**24
    assert window.lowest < 2.0**10 < window.highest
    assert window.emptied_by == ()
    assert trainer.callback_metrics["precision/scale_window_low"] == window.lowest
    assert trainer.callback_metrics["precision/scale_window_high"] == window.highest
    assert plugin.summary()["scale_window"] == window.as_dict()
    assert plugin.incidents == []


def test_the_summary_at_the_end_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    plugin, *_ = train(WIDE, init_scale=2.0**10)
    window = plugin.scale_window
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "that fit sampled gradients" in each]
    assert f"{window.lowest:,.15g} to {window.highest:,.15g}" in line


@pytest.mark.parametrize("options", [{"fallback": {"auto": False}}, {"every_n_steps": 0}])
def test_who_wants_no_samples_has_no_window(options: dict[str, Any]) -> None:
    plugin, _, trainer = train(WIDE, init_scale=2.0**10, **options)
    assert plugin.scale_window is None
    assert plugin.summary()["scale_window"] is None
    assert "precision/scale_window_low" not in trainer.callback_metrics


def test_samples_change_nothing() -> None:
    _, sampled, _ = train(WIDE, init_scale=2.0**10, every_n_steps=1)
    _, plain, _ = train(WIDE, init_scale=2.0**10, fallback={"auto": False})
    assert_bitwise_equal(weights(sampled), weights(plain))


@pytest.mark.parametrize("init_scale", [2.0**6, 2.0**10, 2.0**14])
def test_where_no_scale_fits_the_layer_that_empties_the_window_moves_and_the_scale_stays(init_scale: float) -> None:
    plugin, model, _ = train(EMPTY, init_scale=init_scale, every_n_steps=1)
    truth = scales_that_fit(model)
    assert truth["large"][1] < truth["small"][0]
    assert plugin.fp32_layers == ["large"]
    assert plugin.loss_scale == init_scale
    assert (plugin.skipped_steps, plugin.retried_steps, plugin.effective_step) == (0, 1, 8)
    (incident,) = plugin.incidents
    assert (incident.action, incident.cured, incident.culprits) == (Action.fallback, True, ("large",))
    told = incident.evidence["scale_window"]
    assert told["highest"] < told["lowest"]
    assert told["emptied_by"] == ("large",)
    # What is left has a window again, and it is not that of the layer that needs none.
    assert plugin.scale_window.emptied_by == ()
    assert "large" not in plugin.scale_window.by_layer


def test_without_auto_the_scale_is_lowered_and_small_gradients_vanish() -> None:
    """What the fallback is for: the run goes on, but one of its layers hardly learns."""
    plugin, *_ = train(EMPTY, init_scale=2.0**10, fallback={"auto": False}, scaling={"retries": 20})
    assert plugin.fp32_layers == []
    assert plugin.skipped_steps == 0
    assert plugin.loss_scale <= 8


def test_where_a_scale_fits_all_it_is_lowered_and_no_layer_moves() -> None:
    plugin, model, _ = train(WIDE, init_scale=2.0**20, every_n_steps=1, scaling={"retries": 20})
    assert plugin.fp32_layers == []
    assert plugin.skipped_steps == 0
    assert {incident.action for incident in plugin.incidents} == {Action.retry}
    assert plugin.loss_scale <= min(highest for _, highest in scales_that_fit(model).values())


def test_who_wants_no_samples_has_the_scale_lowered() -> None:
    plugin, *_ = train(EMPTY, init_scale=2.0**10, every_n_steps=0, scaling={"retries": 20})
    assert plugin.fp32_layers == []
    assert plugin.loss_scale <= 8


def test_a_layer_that_may_not_move_leaves_the_window_empty_and_named() -> None:
    plugin, *_ = train(EMPTY, init_scale=2.0**10, fallback={"max_fraction": 0}, scaling={"retries": 20})
    assert plugin.fp32_layers == []
    assert "refused" in plugin.incidents[0].evidence["proof"]
    assert plugin.incidents[0].evidence["scale_window"]["emptied_by"] == ("large",)
    assert plugin.skipped_steps == 0


def test_with_hysteresis_a_window_that_is_not_empty_moves_no_layer() -> None:
    plugin, *_ = train(WIDE, init_scale=2.0**20, scaling={"hysteresis": 3})
    assert plugin.fp32_layers == []


def _on_each_rank() -> None:
    plugin, *_ = train(EMPTY, init_scale=2.0**10, every_n_steps=1, strategy="ddp", devices=2)
    assert plugin.fp32_layers == ["large"]
    assert (plugin.loss_scale, plugin.skipped_steps) == (2.0**10, 0)
    window = plugin.scale_window.as_dict()
    everywhere: list[Any] = [None, None]
    torch.distributed.all_gather_object(everywhere, window)
    assert everywhere == [window, window]


@pytest.mark.xdist_group("ranks")
def test_ranks_agree_on_the_window() -> None:
    run_on_ranks(_on_each_rank)
