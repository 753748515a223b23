"""Layers in FP32 by proof outlive their process: a run goes on as if nobody had stopped it, and is tested as it was."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, Fallback, LossScaling
from mp_plugin.fallback.islands import is_island
from mp_plugin.fallback.policy import FallbackState
from tests.helpers.faults.fp32 import Trained, fp32_fault
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

FAULT = fp32_fault("mlp: inside a layer")
CULPRIT = "net.hidden.3"
SCALING = LossScaling(init_scale=2.0**10)

FAULTY = (2, 8, 14)
"""With a probation of four steps: moved at 2, back from 6 on, failed at 8, back from 12 on, failed again at 14."""
LENGTH = 20


class OnePerEpoch(pl.LightningDataModule):
    """Epochs of one batch, so that a checkpoint can be written after any step."""

    def train_dataloader(self) -> Any:
        batches = FAULT.batches(faulty=FAULTY, count=LENGTH)
        return DataLoader([batches[self.trainer.current_epoch]], batch_size=None)  # type: ignore[arg-type, union-attr]


class Watched(Trained):
    """Notes which layers are in FP32 while it is validated and tested."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__(net)
        self.islands: list[list[str]] = []

    def _look(self) -> None:
        self.islands.append([name for name, module in self.named_modules() if is_island(module)])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._look()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._look()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self._look()
        return self(batch.inputs, batch.knob)


def model() -> Watched:
    return Watched(FAULT.make().net)


def data(*faulty: int, count: int = 4) -> Any:
    return DataLoader(FAULT.batches(faulty=faulty, count=count), batch_size=None)  # type: ignore[arg-type]


def auto(**options: Any) -> AdaptivePrecision:
    options = {"auto": True, "probation_steps": 4, **options}
    return AdaptivePrecision("fp16", scaling=SCALING, fallback=Fallback(**options))


def train_until(step: int, checkpoint: Path, *, resume: Path | None = None, **options: Any) -> Any:
    plugin, trained = auto(**options), model()
    trainer = quiet_trainer(plugins=[plugin], max_epochs=step, reload_dataloaders_every_n_epochs=1)
    trainer.fit(trained, datamodule=OnePerEpoch(), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(checkpoint)
    return plugin, trained


@pytest.mark.parametrize("patience", [1, 2])
def test_a_run_that_was_stopped_goes_on_bitwise(tmp_path: Path, patience: int) -> None:
    whole, truth = train_until(LENGTH, tmp_path / "whole.ckpt", patience=patience)
    for stop in (2, 3, 6, 7, 9, 13, 16):
        stopped, _ = train_until(stop, tmp_path / "part.ckpt", patience=patience)
        plugin, trained = train_until(LENGTH, tmp_path / "end.ckpt", resume=tmp_path / "part.ckpt", patience=patience)
        assert plugin.layer_fallback.state == whole.layer_fallback.state, stop
        assert plugin.fp32_layers == whole.fp32_layers
        assert plugin.skipped_steps == 0
        assert plugin.effective_step == LENGTH
        assert_bitwise_equal(weights(trained), weights(truth))
        if patience == 1:
            assert stopped.fp32_layers == ([CULPRIT] if stop in (3, 9, 16) else []), stop
    state = whole.layer_fallback.state
    # Twice on probation, and twice back; with patience 2 the first batch alone was in FP32.
    assert state.failures == {CULPRIT: 2 if patience == 1 else 1}
    assert state.cured == {(CULPRIT,): 3}
    assert [each.cured for each in whole.incidents] == [True, True, True]


def test_a_checkpoint_remembers_since_when(tmp_path: Path) -> None:
    train_until(4, tmp_path / "run.ckpt")
    plugin, _ = train_until(5, tmp_path / "end.ckpt", resume=tmp_path / "run.ckpt")
    demoted = plugin.layer_fallback.state.demoted[CULPRIT]
    assert (demoted.since_step, demoted.clean_steps) == (2, 3)
    why, since = plugin.layer_fallback.reasons[CULPRIT]
    assert since == 2
    assert why.startswith("proved: aten.")
    assert CULPRIT in why
    assert plugin.summary()["fp32_layers"] == {CULPRIT: why}


@pytest.mark.parametrize("fallback", [None, Fallback(), Fallback(layers=["net.head"])])
def test_a_plugin_that_proves_nothing_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fallback: Fallback | None
) -> None:
    train_until(4, tmp_path / "run.ckpt")
    plugin, trained = AdaptivePrecision("fp16", scaling=SCALING, fallback=fallback), model()
    trainer = quiet_trainer(plugins=[plugin], max_epochs=6, reload_dataloaders_every_n_epochs=1)
    with caplog.at_level(logging.WARNING, logger="mp_plugin.layer_fallback"):
        trainer.fit(trained, datamodule=OnePerEpoch(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert f"had {CULPRIT} in FP32 by proof; Fallback(auto=True) would keep that" in caplog.text
    assert plugin.fp32_layers == (["net.head"] if fallback is not None and fallback.layers else [])
    assert plugin.layer_fallback.state == FallbackState()


def test_layers_proved_at_the_lowest_scale_stay_when_the_run_goes_on(tmp_path: Path) -> None:
    scaling = LossScaling(init_scale=1, growth_interval=1000, at_min_scale="fallback", patience=1)  # type: ignore[arg-type]

    fault = fp32_fault("mlp: backward")

    def go_on(epochs: int, checkpoint: Path | None) -> AdaptivePrecision:
        plugin = AdaptivePrecision("fp16", scaling=scaling)
        trainer = quiet_trainer(plugins=[plugin], max_epochs=epochs)
        batches = DataLoader(fault.batches(faulty=(1,)), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(fault.make(), batches, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        return plugin

    assert go_on(1, None).fp32_layers == [*fault.culprits]
    goes_on = go_on(2, tmp_path / "run.ckpt")
    assert goes_on.fp32_layers == [*fault.culprits]
    assert goes_on.guard.record.total_incidents == 1


def test_validation_between_the_steps_runs_with_the_same_layers() -> None:
    plugin, trained = auto(probation_steps=1000), model()
    trainer = quiet_trainer(plugins=[plugin], val_check_interval=1, num_sanity_val_steps=1)
    trainer.fit(trained, data(1), data(count=1))
    assert trained.islands == [[], [], [CULPRIT], [CULPRIT], [CULPRIT]]


def test_a_model_is_tested_after_its_fit_with_the_layers_that_it_ended_with() -> None:
    plugin, trained = auto(probation_steps=1000), model()
    trainer = quiet_trainer(plugins=[plugin])
    trainer.fit(trained, data(1))
    for evaluate in (trainer.test, trainer.validate):
        trained.islands.clear()
        evaluate(trained, data(count=1), verbose=False)
        assert trained.islands == [[CULPRIT]]
    trainer.predict(trained, data(count=1))
    assert trained.islands == [[CULPRIT]] * 2
    assert not any(is_island(module) for module in trained.modules())


@pytest.mark.parametrize("kind", ["test", "validate", "predict"])
def test_a_checkpoint_is_tested_with_the_layers_that_it_had(tmp_path: Path, kind: str) -> None:
    train_until(4, tmp_path / "run.ckpt")
    plugin, trained = auto(), model()
    trainer = quiet_trainer(plugins=[plugin])
    getattr(trainer, kind)(trained, data(count=1), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert trained.islands == [[CULPRIT]]
    assert plugin.fp32_layers == [CULPRIT]
    assert not any(is_island(module) for module in trained.modules())
    # Not for good: this plugin has proved nothing.
    assert plugin.layer_fallback.state == FallbackState()
    assert plugin.effective_step == 0


def test_an_earlier_checkpoint_is_tested_without_layers_that_moved_later(tmp_path: Path) -> None:
    plugin, trained = auto(probation_steps=1000), model()
    trainer = quiet_trainer(plugins=[plugin], max_epochs=1)
    trainer.fit(trained, data())
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trained, data(1))
    assert plugin.fp32_layers == [CULPRIT]
    trainer.test(trained, data(count=1), ckpt_path=tmp_path / "before.ckpt", verbose=False, weights_only=True)
    assert trained.islands == [[]]
    # The run itself goes on with them.
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trained, data())
    assert plugin.fp32_layers == [CULPRIT]


def test_a_second_fit_of_another_model_starts_with_nothing_in_fp32() -> None:
    plugin = auto(probation_steps=1000)
    quiet_trainer(plugins=[plugin]).fit(model(), data(1))
    assert plugin.fp32_layers == [CULPRIT]

    class Looking(Regression):
        islands = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.islands |= any(is_island(module) for module in self.modules())
            return super().training_step(batch, batch_idx)

    other = Looking()
    quiet_trainer(plugins=[plugin]).fit(other, regression_data())
    assert not other.islands
    assert plugin.fp32_layers == []


def test_a_second_fit_of_the_same_model_starts_with_nothing_in_fp32_either() -> None:
    plugin, first, second = auto(), model(), model()
    quiet_trainer(plugins=[plugin]).fit(first, data(1))
    quiet_trainer(plugins=[plugin]).fit(second, data(count=1))
    truth = model()
    quiet_trainer(plugins=[auto()]).fit(truth, data(count=1))
    assert_bitwise_equal(weights(second), weights(truth))


def test_what_was_proved_of_one_model_is_not_asked_of_another(caplog: pytest.LogCaptureFixture) -> None:
    class Tested(Regression):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            assert not any(is_island(module) for module in self.modules())

    plugin = auto()
    trainer = quiet_trainer(plugins=[plugin])
    trainer.fit(model(), data(1))
    trainer.test(Tested(), regression_data(), verbose=False)
    assert f"{CULPRIT} ran in FP32 by proof, in another model than this one: forgotten." in caplog.text


def test_a_checkpoint_of_another_model_whose_layers_are_not_all_there_is_resumed_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Renamed(Trained):
        strict_loading = False  # type: ignore[assignment]

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["optimizer_states"] = [self.configure_optimizers().state_dict()]

    trainer = quiet_trainer(plugins=[auto()])
    trainer.fit(model(), data(1))
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    plugin, other = auto(), Renamed(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10)))
    other(FAULT.batches(count=1)[0].inputs, torch.ones(1))
    quiet_trainer(plugins=[plugin], max_epochs=2).fit(
        other, data(count=1), ckpt_path=tmp_path / "other.ckpt", weights_only=True
    )
    assert plugin.fp32_layers == []
    assert f"{CULPRIT} ran in FP32 by proof, in another model than this one: forgotten." in caplog.text
