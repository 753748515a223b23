"""Whole runs whose verdicts come one step late: how they begin, pause, break off, resume and end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.optim import AdamW

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    fit,
    no_fault,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks:UserWarning")

SCALE = 2.0**10
CLIPPED = {"gradient_clip_val": 0.05}


def plugin_of(*, exact: bool = False, **options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(**{"init_scale": SCALE, **options}), exact=exact)


def fused(**options: Any) -> Regression:
    return Regression(optimizer=AdamW, lr=0.01, fused=True, **options)


def assert_same_run(plugin: AdaptivePrecision, oracle: AdaptivePrecision) -> None:
    assert plugin.guard.record.summary(precision="", scale=1.0) == oracle.guard.record.summary(precision="", scale=1.0)
    assert plugin.scaler is not None
    assert oracle.scaler is not None
    assert plugin.scaler.state == oracle.scaler.state


# Broken off.


class Breaks(Regression):
    """Its forward pass ends the run in batch 5, when the verdict on batch 4 is still outstanding."""

    error: BaseException = RuntimeError("on purpose")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 5:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("fault", "taken"), [(no_fault, 5), (overflowing_at(4), 4)])
@pytest.mark.parametrize(
    ("error", "ends"), [(RuntimeError("on purpose"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_the_newest_step_of_a_run_that_breaks_off_is_counted(
    error: BaseException, ends: type[BaseException], fault: Any, taken: int
) -> None:
    plugin, model = plugin_of(), Breaks(fused=True, fault=fault)
    model.error = error
    with pytest.raises(ends):
        fit(plugin, model)
    assert (plugin.effective_step, plugin.skipped_steps) == (taken, 5 - taken)
    assert plugin.loss_scale == SCALE / 2 ** (5 - taken)


@pytest.mark.parametrize("has_others", [True, False])
def test_what_ended_the_run_is_what_the_user_sees(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, has_others: bool
) -> None:
    """A device that is out of order has no verdict to give, and none is left to the next fit."""
    monkeypatch.setattr("mp_plugin.callbacks.has_other_ranks", lambda: has_others)
    plugin = plugin_of()

    def read(_: Any) -> Any:
        raise OSError("no device")

    class BreaksAtOnce(Breaks):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                raise self.error
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("mp_plugin.scaling.late_verdict.LateVerdict.read", read)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(plugin, BreaksAtOnce(fused=True))
    assert "could not be found out" in caplog.text
    assert plugin.guard.outstanding is None


@pytest.mark.parametrize("asks", [True, False])
def test_a_run_that_broke_off_leaves_nothing_to_the_one_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """With one plugin; and where other ranks would have to be asked, nobody is."""
    if not asks:
        monkeypatch.setattr("mp_plugin.callbacks.has_other_ranks", lambda: True)

    class BreaksInItsSecondEpoch(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.current_epoch == 1 and batch_idx == 5:
                raise RuntimeError("on purpose")
            return super().training_step(batch, batch_idx)

    plugin, oracle = plugin_of(), plugin_of()
    saving = ModelCheckpoint(dirpath=tmp_path, filename="epoch", every_n_epochs=1)
    options = {"max_epochs": 2, "callbacks": [saving], "enable_checkpointing": True}
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(plugin, BreaksInItsSecondEpoch(fused=True), **options)
    assert plugin.guard.outstanding is None
    resumed = Regression(fused=True)
    trainer = quiet_trainer(plugins=[plugin], max_epochs=2)
    trainer.fit(resumed, regression_data(), ckpt_path=tmp_path / "epoch.ckpt", weights_only=True)
    whole = fit(oracle, Regression(fused=True), max_epochs=2)
    assert_bitwise_equal(weights(resumed), weights(whole))
    assert plugin.effective_step == 16
    assert_same_run(plugin, oracle)


# Resumed.


class Spoiled(Regression):
    """Overflows in some of all its batches, counted over epochs."""

    def __init__(self, *batches: int, **options: Any) -> None:
        super().__init__(fused=True, **options)
        self.batches = batches

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return overflowing_at(*self.batches)(loss, 8 * self.current_epoch + batch_idx)  # type: ignore[arg-type]


@pytest.mark.parametrize("batches", [(), (7,), (8,), (6, 7), (7, 8), (3, 7, 9)], ids=str)
@pytest.mark.parametrize("growth_interval", [3, 8, 2000])
@pytest.mark.parametrize("clipping", [{}, CLIPPED], ids=["unclipped", "clipped"])
def test_a_run_that_resumes_equals_the_one_that_went_on(
    tmp_path: Path, batches: tuple[int, ...], growth_interval: int, clipping: dict[str, Any]
) -> None:
    """The checkpoint after batch 7 already knows of it; the run that goes on learns of it with batch 8.

    Should several batches around the checkpoint overflow, the scale may end one back-off apart: batch 8 is of the lower
    scale in one run and of the higher in the other. With a hysteresis of 2 that takes more than two of them.
    """
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    options = {"growth_interval": growth_interval, "hysteresis": 2}
    went_on, resumes = plugin_of(**options), plugin_of(**options)
    whole = fit(went_on, Spoiled(*batches), max_epochs=2, callbacks=[saving], enable_checkpointing=True, **clipping)
    resumed = Spoiled(*batches)
    trainer = quiet_trainer(plugins=[resumes], max_epochs=2, **clipping)
    trainer.fit(resumed, regression_data(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert_bitwise_equal(weights(resumed), weights(whole))
    assert (resumes.effective_step, resumes.skipped_steps) == (16 - len(batches), len(batches))
    assert (went_on.effective_step, went_on.skipped_steps) == (16 - len(batches), len(batches))
    assert resumes.scaler is not None
    assert went_on.scaler is not None
    assert resumes.scaler.state == went_on.scaler.state


def test_a_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """Though it asks for the verdict early."""
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    plugin, oracle = plugin_of(growth_interval=2), plugin_of(growth_interval=2)
    model = fit(plugin, fused(fault=overflowing_at(3)), callbacks=[saving], enable_checkpointing=True)
    assert_bitwise_equal(weights(model), weights(fit(oracle, fused(fault=overflowing_at(3)))))
    assert_same_run(plugin, oracle)


# Used again, paused, cut short.


@pytest.mark.parametrize("first", [no_fault, overflowing_at(3), overflowing_at(7)])
def test_a_plugin_may_be_used_for_a_second_run(first: Any) -> None:
    plugin, oracle = plugin_of(), plugin_of()
    fit(plugin, fused(fault=first))
    model = fit(plugin, fused(fault=overflowing_at(2)))
    assert_bitwise_equal(weights(model), weights(fit(oracle, fused(fault=overflowing_at(2)))))
    assert_same_run(plugin, oracle)


class Validated(Regression):
    seen: int = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen += 1
        self.log("loss", torch.nn.functional.mse_loss(self.net(batch[0]).float(), batch[1]))


def test_validation_in_between_changes_nothing() -> None:
    plugin, oracle = plugin_of(), plugin_of()
    model = Validated(fused=True, fault=overflowing_at(3))
    trainer = quiet_trainer(plugins=[plugin], val_check_interval=2)
    trainer.fit(model, regression_data(), regression_data(batches=2))
    assert model.seen == 2 + 4 * 2
    whole = fit(oracle, Regression(fused=True, fault=overflowing_at(3)))
    assert_bitwise_equal(weights(model), weights(whole))
    assert_same_run(plugin, oracle)
    trainer.validate(model, regression_data(batches=2), verbose=False)
    assert_same_run(plugin, oracle)


@pytest.mark.parametrize("batches", [(), (3,), (4,)], ids=str)
def test_max_steps_ends_a_run_with_its_last_step_known(batches: tuple[int, ...]) -> None:
    runs = [plugin_of(exact=exact, retries=0) for exact in (False, True)]
    models = [fit(plugin, fused(fault=overflowing_at(*batches)), max_steps=5, max_epochs=-1) for plugin in runs]
    assert_bitwise_equal(*map(weights, models))
    assert [(run.effective_step, run.skipped_steps) for run in runs] == [(5 - len(batches), len(batches))] * 2
    assert runs[0].loss_scale == runs[1].loss_scale


def test_overfitting_a_batch() -> None:
    runs = [plugin_of(exact=exact) for exact in (False, True)]
    models = [fit(plugin, fused(), overfit_batches=1, max_epochs=6) for plugin in runs]
    assert_bitwise_equal(*map(weights, models))
    assert [run.effective_step for run in runs] == [6, 6]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's own, of its logger
def test_the_tuner_finds_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    class Tuned(Regression):
        lr = 0.01

        def configure_optimizers(self) -> Any:
            return AdamW(self.parameters(), lr=self.lr, fused=True)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)  # type: ignore[arg-type]
            return loss

    found, models = [], []
    for exact in (False, True):
        plugin, model = plugin_of(exact=exact), Tuned()
        trainer = quiet_trainer(plugins=[plugin], default_root_dir=tmp_path, max_epochs=1)
        finder = Tuner(trainer).lr_find(model, regression_data(batches=40), num_training=20)
        assert finder is not None
        found.append(finder.results)
        trainer.fit(model, regression_data())
        models.append(weights(model))
        assert (plugin.effective_step, plugin.skipped_steps) == (8, 0)
    assert found[0] == found[1]
    assert_bitwise_equal(*models)


# Whoever follows the steps.


class Follows(Callback):
    """Reads the counters after each batch, and at the end."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        plugin = trainer.precision_plugin
        self.seen.append((plugin.effective_step, plugin.skipped_steps))

    on_train_end = on_train_batch_end


def test_counters_are_one_step_behind_and_right_at_the_end() -> None:
    late, exact = Follows(), Follows()
    for plugin, callback in ((plugin_of(), late), (plugin_of(exact=True, retries=0), exact)):
        fit(plugin, fused(fault=overflowing_at(3)), callbacks=[callback])
    assert late.seen == [(0, 0), *exact.seen[:7], exact.seen[-1]]
    assert exact.seen[-1] == (7, 1)


def test_averaged_weights_are_those_of_an_exact_run() -> None:
    models = [
        fit(
            plugin_of(exact=exact, retries=0), fused(fault=overflowing_at(3)), callbacks=[EMAWeightAveraging(decay=0.5)]
        )
        for exact in (False, True)
    ]
    assert_bitwise_equal(*map(weights, models))


# A predictive scale.


class Growing(Regression):
    """Its gradients grow by a quarter with every batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * 1.25**batch_idx  # type: ignore[operator]


class Scales(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.seen.append(trainer.precision_plugin.loss_scale)


@pytest.mark.parametrize("clipping", [{}, CLIPPED], ids=["unclipped", "clipped"])
def test_a_predictive_scale_learns_the_same_on_every_route(clipping: dict[str, Any]) -> None:
    scales: dict[str, list[float]] = {}
    found: dict[str, list[Tensor]] = {}
    for name, exact, options in (
        ("late", False, {"fused": True}),
        ("folded", True, {"fused": True}),
        ("unfused", True, {"foreach": True}),
    ):
        callback = Scales()
        plugin = plugin_of(exact=exact, policy="predictive", init_scale=2.0**16)
        model = Growing(lr=1e-5, **options)
        fit(plugin, model, regression_data(batches=40), callbacks=[callback], **clipping)
        scales[name], found[name] = callback.seen, weights(model)
        assert (plugin.effective_step, plugin.skipped_steps) == (40, 0)
    assert len(set(scales["folded"])) > 1, "the scale never moved"
    assert scales["folded"] == scales["unfused"]
    # What a step teaches is known one step later; a scale that is a power of two changes no weight.
    assert scales["late"][2:] == scales["folded"][1:-1]
    torch.testing.assert_close(found["late"], found["folded"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["unfused"], found["folded"], rtol=0, atol=1e-5)
